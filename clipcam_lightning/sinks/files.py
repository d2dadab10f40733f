"""Write snapshots, the history of metrics, the contact sheet and the report to the folder of the run."""

import json
from contextlib import ExitStack

import torch
from torch import Tensor

from clipcam_lightning.cam.writing import write_atomically
from clipcam_lightning.drift.report_json import report_as_json
from clipcam_lightning.drift.snapshot import Snapshot
from clipcam_lightning.errors import SnapshotError
from clipcam_lightning.monitoring.evaluation import Evaluation, Sink
from clipcam_lightning.sinks.drawing import Drawer
from clipcam_lightning.storage.atomic import append_line
from clipcam_lightning.storage.run_folder import BASELINE, CONTACT_SHEET, HISTORY, REPORT, RunFolder, name_snapshot


class FileSink(Sink):
    """Keeps the snapshot of every evaluation, and a history of all metrics.

    The history is a file with one line per evaluation, each a JSON object. A resumed run appends to it: a line counts
    unless a later one has the same or an earlier ``step``. The value ``baseline`` of a line names the snapshot in the
    folder that the evaluation was compared with: one of the run, or ``baseline.safetensors`` for one of another run,
    such as a file, or the start of a training that is resumed in another folder.

    Args:
        folder: claimed when the first evaluation is written.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        # By their maps, compared by identity to detect a baseline that is stored already.
        self._baseline: tuple[Tensor, str] | None = None
        self._newest: tuple[Tensor, str] | None = None

    def __str__(self) -> str:
        return "its folder"

    def write(self, evaluation: Evaluation) -> None:
        """Write ``step-<n>.safetensors``, a line of ``history.jsonl`` and, if it is new, ``baseline.safetensors``."""
        info, folder = evaluation.snapshot.info, self.folder.path
        name = name_snapshot(info.step)
        evaluation.snapshot.save(folder / name)
        self._baseline = self._store_baseline(evaluation, name)
        self._newest = evaluation.snapshot.maps, name
        line = {
            "epoch": info.epoch,
            "baseline": self._baseline[1],
            "metrics": dict(evaluation.metrics),
            **report_as_json(evaluation.report),
        }
        append_line(folder / HISTORY, json.dumps(line))

    def _store_baseline(self, evaluation: Evaluation, name: str) -> tuple[Tensor, str]:
        """Return the maps of the baseline and the name of its file, which is written unless the folder has it."""
        baseline = evaluation.baseline
        for maps, file in filter(None, ((evaluation.snapshot.maps, name), self._newest, self._baseline)):
            if baseline.maps is maps:
                return maps, file
        if not self._is_stored(baseline):
            baseline.save(self.folder.path / BASELINE)
            return baseline.maps, BASELINE
        return baseline.maps, name_snapshot(baseline.info.step)

    def _is_stored(self, baseline: Snapshot) -> bool:
        """Check whether the folder has a baseline as the snapshot of an earlier fit of the run."""
        try:
            stored = Snapshot.load(self.folder.path / name_snapshot(baseline.info.step))
        except SnapshotError:
            return False
        same_content = stored.info == baseline.info and stored.images == baseline.images
        return same_content and torch.equal(stored.maps, baseline.maps)


class ImageFileSink(Sink):
    """Keeps the contact sheet of the run up to date, and writes the report of each alarm and of the last evaluation.

    Args:
        folder: for ``contact_sheet.png``, and ``report.html`` with further pages in ``report_pages``.
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
        for path, html in self.draw(evaluation).report_pages(REPORT):
            write_atomically(self.folder.path / path, html.encode())
