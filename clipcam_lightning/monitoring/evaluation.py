"""The result of one evaluation of the probe set, and the protocol of what writes it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from jaxtyping import Bool, UInt8
from torch import Tensor

from clipcam_lightning.cam.representation import short_repr
from clipcam_lightning.drift.report import DriftReport
from clipcam_lightning.drift.snapshot import Snapshot
from clipcam_lightning.errors import ConfigError, abridge
from clipcam_lightning.monitoring.history import HistoryEntry
from clipcam_lightning.monitoring.notices import Notice


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation:
    """One evaluation of the whole probe set, as sinks receive it.

    Attributes:
        pixels: what the model sees of each probe. All evaluations share it: copy it to draw on it.
        masks: at the size of ``pixels``; ``None`` for a probe without a mask.
        snapshot: maps and metrics of this evaluation.
        baseline: the snapshot it is compared with; the same object at the first evaluation.
        report: the comparison.
        history: the evaluations so far, this one last; of many the first and evenly spaced later ones.
        digests: one per probe, by which evaluations of other runs are matched.
        metrics: means over the probes by name (``drift``, ``similarity``, ...), all finite.
        visible: share of each probe's image that the model sees, below 1 where it is cropped; empty if unknown.

    Example:
        >>> from clipcam_lightning import evaluate
        >>> from clipcam_lightning.shapes_world import WordTokenizer, draw_scenes, trained_clip
        >>> scenes = draw_scenes(2)
        >>> probes = list(zip(scenes.images, scenes.captions))
        >>> evaluation = evaluate(trained_clip("vit"), probes, tokenizer=WordTokenizer())
        >>> sorted(evaluation.metrics)
        ['alarm', 'degenerate', 'drift', 'drift_max', 'flagged', 'named_without_object', 'similarity']
    """

    pixels: UInt8[Tensor, "n 3 y x"]
    masks: Sequence[Bool[Tensor, "y x"] | None]
    snapshot: Snapshot
    baseline: Snapshot
    report: DriftReport
    history: Sequence[HistoryEntry]
    digests: Sequence[str]
    metrics: Mapping[str, float]
    visible: Sequence[float] = ()

    __repr__ = short_repr


@dataclass(frozen=True)
class Outcome:
    """What an evaluation came to, without maps and images: small enough to be sent to every rank.

    Attributes:
        metrics: as in :class:`Evaluation`.
        report: the comparison; ``None`` if the evaluation failed.
        notes: which probes have no valid baseline, why there is a new baseline, why a noise floor is unknown, and
            whether nothing changed.
        problems: one per part of the evaluation that failed.
    """

    metrics: Mapping[str, float] = field(default_factory=dict)
    report: DriftReport | None = None
    notes: tuple[Notice, ...] = ()
    problems: tuple[Notice, ...] = ()


@runtime_checkable
class Sink(Protocol):
    """Something that writes evaluations somewhere: a logger, a file, a database. A sink of your own is derived from it.

    A sink that raises stops neither the training nor another sink; a warning names it by its ``str``, the name of its
    class.

    Example:
        >>> class PrintingSink(Sink):
        ...     def write(self, evaluation: Evaluation) -> None:
        ...         print(evaluation.snapshot.info.step, evaluation.metrics["drift"])
    """

    def write(self, evaluation: Evaluation) -> None:
        """Write one evaluation."""
        ...

    def __str__(self) -> str:
        return type(self).__name__

    def close(self) -> None:
        """Wait until every evaluation is written.

        Raises:
            Exception: a late write failed.
        """
        return


def require_sinks(sinks: object) -> None:
    """Check an argument ``sinks`` when it is given, not at the end of a training.

    Raises:
        ConfigError: it is no list of sinks.
    """
    advice = "derive a class from clipcam_lightning.Sink, and give a list of its objects"
    if not isinstance(sinks, list | tuple):
        raise ConfigError(f"sinks must be a list (got {abridge(repr(sinks))}); {advice}.")
    for sink in sinks:
        if isinstance(sink, type) or not isinstance(sink, Sink):
            raise ConfigError(
                f"sinks takes objects with the methods write and close (got {abridge(repr(sink))}); {advice}."
            )
