"""Write snapshots, the history of metrics, the contact sheet and the report to the folder of the run."""

import json
from contextlib import ExitStack

from clipcam_lightning.monitoring.evaluation import Evaluation, Sink
from clipcam_lightning.sinks.drawing import Drawer
from clipcam_lightning.storage.atomic import append_line, write_atomically
from clipcam_lightning.storage.run_folder import RunFolder
from clipcam_lightning.visualization.report import report_as_json

HISTORY, CONTACT_SHEET, REPORT = "history.jsonl", "contact_sheet.png", "report.html"


class FileSink(Sink):
    """Keeps the snapshot of every evaluation, and a history of all metrics.

    The history is a file with one line per evaluation, each a JSON object. A resumed run appends to it; of two lines
    with the same ``step`` the later one counts.

    Args:
        folder: claimed when the first evaluation is written.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder

    def __str__(self) -> str:
        return "its folder"

    def write(self, evaluation: Evaluation) -> None:
        """Write ``step-<n>.safetensors`` and a line of ``history.jsonl``."""
        info, folder = evaluation.snapshot.info, self.folder.path
        evaluation.snapshot.save(folder / f"step-{info.step:08d}.safetensors")
        line = {"epoch": info.epoch, "metrics": dict(evaluation.metrics), **report_as_json(evaluation.report)}
        append_line(folder / HISTORY, json.dumps(line))


class ImageFileSink(Sink):
    """Keeps the contact sheet of the run up to date, and writes the report of each alarm and of the last evaluation.

    Args:
        folder: for ``contact_sheet.png`` and ``report.html``.
        draw: draws the images of an evaluation.
    """

    def __init__(self, folder: RunFolder, draw: Drawer) -> None:
        self.folder = folder
        self.draw = draw
        self._without_report: Evaluation | None = None

    def __str__(self) -> str:
        return "its folder"

    def write(self, evaluation: Evaluation) -> None:
        """Write the contact sheet, and the report if there is an alarm.

        Raises:
            Exception: one of them could not be written; the other one is.
        """
        self._without_report = None
        with ExitStack() as stack:  # calls all that it holds, even if one of them raises
            if evaluation.report.alarm:
                stack.callback(self._write_report, evaluation)
            stack.callback(self._write_sheet, evaluation)
        if not evaluation.report.alarm:
            self._without_report = evaluation

    def close(self) -> None:
        """Write the report of the last evaluation, if that was no alarm and could be written.

        Raises:
            Exception: it could not be written.
        """
        last, self._without_report = self._without_report, None
        if last is not None:
            self._write_report(last)

    def _write_sheet(self, evaluation: Evaluation) -> None:
        sheet = self.draw(evaluation).sheet_png
        write_atomically(self.folder.path / CONTACT_SHEET, sheet)

    def _write_report(self, evaluation: Evaluation) -> None:
        report = self.draw(evaluation).report.encode()
        write_atomically(self.folder.path / REPORT, report)
