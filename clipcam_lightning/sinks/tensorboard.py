"""Write the metrics of an evaluation to TensorBoard: scalars, and a table of the probes."""

import re

from torch.utils.tensorboard import SummaryWriter

from clipcam_lightning.drift.probe_drift import ProbeDrift
from clipcam_lightning.monitoring.evaluation import Evaluation, Sink
from clipcam_lightning.sinks.metrics import collect_metrics

MEANINGS = {
    "drift": "mean of 1 minus the correlation with the baseline's map: 0 for equal, 1 unrelated, 2 inverted maps",
    "drift_max": "largest drift of a probe, 0 to 2",
    "named_without_object": "share of images without their object that are still closest to their prompt, 0 to 1; "
    "lower is better",
    "similarity": "mean cosine of image and prompt, -1 to 1; higher is a better match",
    "flagged": "number of probes that violate the rule; lower is better",
    "alarm": "1 if the evaluation is an alarm, else 0",
    "degenerate": "number of probes with a map that carries no information; lower is better",
    "energy_inside_mask": "mean share of a map that lies on the object, 0 to 1; higher is better",
    "pointing": "share of the maps whose hottest pixel is on the object, 0 to 1; higher is better",
}
"""What the metrics of an evaluation mean."""


class TensorBoardSink(Sink):
    """Writes scalars at each evaluation, and once a table of the probes.

    It uses the logger's own writer: a second event file in a run would hide the first from TensorBoard.

    Args:
        writer: ``TensorBoardLogger.experiment``.
        root: first word of every tag; each callback of a run needs its own.
        per_probe: whether to write the metrics of each probe, too.
    """

    def __init__(self, writer: SummaryWriter, root: str = "clipcam", per_probe: bool = True) -> None:
        self.writer = writer
        self.root = root
        self.per_probe = per_probe
        self._has_table = False

    def __str__(self) -> str:
        return "TensorBoard"

    def write(self, evaluation: Evaluation) -> None:
        """Write all metrics at the step of the evaluation, and flush once."""
        step = evaluation.snapshot.info.step
        for tag, value in collect_metrics(evaluation, self.root, self.per_probe).items():
            self.writer.add_scalar(tag, value, step)
        if not self._has_table:
            self.writer.add_text(f"{self.root}/probes", format_probe_table(evaluation), step)
            self._has_table = True
        self.writer.flush()


def format_probe_table(evaluation: Evaluation) -> str:
    """Format settings, metrics and probes as Markdown: a line, a list and a table with one row per probe."""
    info = evaluation.snapshot.info
    lines = [
        f"method **{escape_markup(info.method)}**, target **{escape_markup(info.target)}**, "
        f"layer **{escape_markup(', '.join(info.layers))}**, alarm: {escape_markup(str(evaluation.report.rule))}",
        "",
        *(f"- **{escape_markup(name)}**: {escape_markup(MEANINGS[name])}" for name in evaluation.metrics),
        "",
        "| probe | prompt | object mask |",
        "| --- | --- | --- |",
    ]
    masks = zip(evaluation.report.probes, evaluation.masks, strict=True)
    return "\n".join(lines + [_row(probe, mask is not None) for probe, mask in masks])


def escape_markup(text: str) -> str:
    """Escape a text so that Markdown and HTML show exactly this text, on one line.

    All characters but letters, digits and blanks become entities. Control characters and half surrogate pairs become
    blanks: their entities would show other characters.
    """
    text = re.sub(r"[\0-\x1f\x7f-\x9f\ud800-\udfff]", " ", text)
    return re.sub(r"[^\w ]|_", lambda match: f"&#{ord(match[0])};", " ".join(text.split()))


def _row(probe: ProbeDrift, has_mask: bool) -> str:
    return f"| {escape_markup(probe.name)} | {escape_markup(probe.prompt)} | {'yes' if has_mask else 'no'} |"
