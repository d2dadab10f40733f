"""Write snapshots and the history of metrics to files."""

import json
from pathlib import Path

from clipcam_lightning.monitoring.evaluation import Evaluation, Sink
from clipcam_lightning.storage.atomic import append_line
from clipcam_lightning.visualization.report import report_as_json

HISTORY = "history.jsonl"


class FileSink(Sink):
    """Keeps the snapshot of every evaluation, and a history of all metrics.

    The history is a file with one line per evaluation, each a JSON object. A new run truncates the file, a resumed run
    appends to it; of two lines with the same ``step`` the later one counts.

    Args:
        folder: created when the first evaluation is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, evaluation: Evaluation) -> None:
        """Write ``step-<n>.safetensors`` and a line of ``history.jsonl``."""
        info = evaluation.snapshot.info
        if evaluation.history[-1].number == 0:
            (self.folder / HISTORY).unlink(missing_ok=True)  # of another run, even if this one cannot be written
        evaluation.snapshot.save(self.folder / f"step-{info.step:08d}.safetensors")
        line = {"epoch": info.epoch, "metrics": dict(evaluation.metrics), **report_as_json(evaluation.report)}
        append_line(self.folder / HISTORY, json.dumps(line))
