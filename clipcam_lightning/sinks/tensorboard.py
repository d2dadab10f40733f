"""The figures of a look as TensorBoard shows them: scalars, and a table of the probes."""

import math
import re

from torch.utils.tensorboard import SummaryWriter

from clipcam_lightning.drift.compare import ProbeDrift
from clipcam_lightning.monitoring.evaluation import Evaluation, Sink


class TensorBoardSink(Sink):
    """Writes through the logger's own writer: a second event file in a run hides the first from TensorBoard.

    Args:
        writer: ``TensorBoardLogger.experiment``.
        root: first word of every tag; two callbacks in one run need two.
    """

    def __init__(self, writer: SummaryWriter, root: str = "clipcam") -> None:
        self.writer = writer
        self.root = root
        self._has_table = False

    def write(self, evaluation: Evaluation) -> None:
        """Write all figures at the look's step and flush once."""
        step = evaluation.snapshot.info.step
        for metric, value in evaluation.metrics.items():
            self._scalar(f"{self.root}/{metric}", value, step)
        for probe in evaluation.report.probes:
            self._scalar(f"{self.root}_drift/{probe.name}", probe.drift, step)
            self._scalar(f"{self.root}_similarity/{probe.name}", probe.similarity, step)
            self._scalar(f"{self.root}_energy_inside_mask/{probe.name}", probe.energy_inside_mask, step)
        if not self._has_table:
            self.writer.add_text(f"{self.root}/probes", probe_table(evaluation), step)
            self._has_table = True
        self.writer.flush()

    def _scalar(self, tag: str, value: float, step: int) -> None:
        if math.isfinite(value):
            self.writer.add_scalar(tag, value, step)


def probe_table(evaluation: Evaluation) -> str:
    """Markdown: one row a probe, with how the maps are made above it."""
    info = evaluation.snapshot.info
    lines = [
        f"method **{escaped(info.method)}**, target **{escaped(info.target)}**, "
        f"layer **{escaped(', '.join(info.layers))}**, alarm: {escaped(str(evaluation.report.rule))}",
        "",
        "| probe | prompt | object mask |",
        "| --- | --- | --- |",
    ]
    masks = zip(evaluation.report.probes, evaluation.masks, strict=True)
    return "\n".join(lines + [_row(probe, mask is not None) for probe, mask in masks])


def escaped(text: str) -> str:
    """Text as markdown and HTML that shows exactly this text: all but letters, digits and blanks as entities.

    Control characters and half surrogate pairs are blanks: an entity of theirs would show another character.
    """
    text = re.sub(r"[\0-\x1f\x7f-\x9f\ud800-\udfff]", " ", text)
    return re.sub(r"[^\w ]|_", lambda match: f"&#{ord(match[0])};", " ".join(text.split()))


def _row(probe: ProbeDrift, has_mask: bool) -> str:
    return f"| {escaped(probe.name)} | {escaped(probe.prompt)} | {'yes' if has_mask else 'no'} |"
