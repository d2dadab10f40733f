"""Write the metrics of an evaluation to any Lightning logger."""

import math
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from clipcam_lightning.monitoring.evaluation import Evaluation, Sink


@runtime_checkable
class MetricsLogger(Protocol):
    """A logger of Lightning or Fabric, or anything with its ``log_metrics``."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log values by name at a step."""
        ...


class MetricsSink(Sink):
    """Writes metrics with ``logger.log_metrics``, in one call per evaluation.

    Args:
        logger: gets the metrics.
        root: first word of every name.
        per_probe: whether to log the metrics of each probe, too.
    """

    def __init__(self, logger: MetricsLogger, root: str, per_probe: bool) -> None:
        self.logger = logger
        self.root = root
        self.per_probe = per_probe

    def __str__(self) -> str:
        return type(self.logger).__name__

    def write(self, evaluation: Evaluation) -> None:
        """Log the metrics at the step of the evaluation."""
        metrics = collect_metrics(evaluation, self.root, self.per_probe)
        self.logger.log_metrics(metrics, step=evaluation.report.step)


def collect_metrics(
    evaluation: Evaluation, root: str, per_probe: bool, names: Sequence[str] | None = None
) -> dict[str, float]:
    """Collect the metrics of an evaluation under the names that every logger shows.

    Args:
        evaluation: the evaluation.
        root: first word of every name.
        per_probe: whether to include the metrics of each probe.
        names: of the probes, where a logger does not accept their own.

    Returns:
        Finite values by name: ``<root>/<metric>`` for means, ``<root>_<metric>/<probe>`` for the metrics of a probe.
    """
    metrics = {f"{root}/{name}": value for name, value in evaluation.metrics.items()}
    probes = evaluation.report.probes if per_probe else ()
    for name, probe in zip(names or evaluation.snapshot.names, probes, strict=False):
        metrics[f"{root}_drift/{name}"] = probe.drift
        metrics[f"{root}_similarity/{name}"] = probe.similarity
        metrics[f"{root}_energy_inside_mask/{name}"] = probe.energy_inside_mask
    return {name: value for name, value in metrics.items() if math.isfinite(value)}
