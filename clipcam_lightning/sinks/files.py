"""Snapshots and their history as files."""

import json
from pathlib import Path

from clipcam_lightning.monitoring.evaluation import Evaluation, Sink
from clipcam_lightning.storage.atomic import append_line
from clipcam_lightning.visualization.report import report_as_json

HISTORY = "history.jsonl"


class FileSink(Sink):
    """Keeps every look's snapshot and a history of all figures in ``folder``.

    The history has one JSON object a line and look. A run that begins begins it anew; a resumed one goes on in the same
    file: of two lines with one ``step`` the later counts.

    Args:
        folder: made when the first look is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, evaluation: Evaluation) -> None:
        """Write ``step-<n>.safetensors`` and a line of ``history.jsonl``."""
        info = evaluation.snapshot.info
        if evaluation.history[-1].number == 0:
            (self.folder / HISTORY).unlink(missing_ok=True)  # of another run, even if nothing of this can be written
        evaluation.snapshot.save(self.folder / f"step-{info.step:08d}.safetensors")
        line = {"epoch": info.epoch, "metrics": dict(evaluation.metrics), **report_as_json(evaluation.report)}
        append_line(self.folder / HISTORY, json.dumps(line))
