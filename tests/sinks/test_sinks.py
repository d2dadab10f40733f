"""The sinks of a run: which are made, and that one that fails does not stop another."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from clipcam_lightning.errors import ConfigError
from clipcam_lightning.monitoring.evaluation import Evaluation, Sink, require_sinks
from clipcam_lightning.sinks import BackgroundSink, LoggingSettings, UnopenedSink, make_sinks
from clipcam_lightning.sinks.drawing import Drawer, Drawings
from clipcam_lightning.sinks.files import ImageFileSink
from clipcam_lightning.sinks.logger import LoggerSink
from clipcam_lightning.sinks.tensorboard_images import TensorBoardImageSink
from clipcam_lightning.storage.paths import as_path
from clipcam_lightning.storage.run_folder import RunFolder
from tests.support.synthetic_evaluations import evaluations_of


class Unreachable:
    """A logger whose server does not respond."""

    @property
    def experiment(self) -> None:
        raise ConnectionError("no server")


class FullDisk(SummaryWriter):
    def flush(self) -> None:
        raise OSError(28, "No space left on device")


@pytest.fixture
def evaluation() -> Evaluation:
    """Three probes, of which the second drifted furthest and the third did not drift."""
    before, after = torch.rand(2, 3, 8, 8)
    after[0], after[1], after[2] = 0.7 * before[0] + 0.3 * after[0], -before[1], before[2]
    return evaluations_of({0: before, 10: after}, ["a", "b", "c"])[-1]


def names_of(sinks: list[Sink]) -> list[str]:
    return [type(sink.sink if isinstance(sink, BackgroundSink) else sink).__name__ for sink in sinks]


def folder_in(path: Path) -> RunFolder:
    return RunFolder(as_path(path), "id")


def images_in(folder: Path) -> list[str]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return events.Tags()["images"]


def test_each_logger_gets_what_it_can_show(tmp_path: Path) -> None:
    loggers = [TensorBoardLogger(tmp_path, "", "run"), CSVLogger(tmp_path), object()]
    without = make_sinks([], folder_in(tmp_path), LoggingSettings())
    sinks = make_sinks(loggers, folder_in(tmp_path), LoggingSettings())
    board = ["TensorBoardSink", "TabSink", "TensorBoardImageSink"]
    assert Counter(names_of(sinks)) - Counter(names_of(without)) == Counter([*board, "MetricsSink"])
    for sink in sinks:
        sink.close()


def test_a_logger_that_cannot_be_opened_does_not_stop_the_other_sinks(tmp_path: Path, evaluation: Evaluation) -> None:
    loggers = [Unreachable(), TensorBoardLogger(tmp_path, "", "run")]
    sinks = make_sinks(loggers, folder_in(tmp_path), LoggingSettings())
    assert {"FileSink", "UnopenedSink", "TensorBoardSink", "TabSink", "ImageFileSink"} <= set(names_of(sinks))

    for sink in sinks:
        if isinstance(sink, UnopenedSink):
            for _ in range(2):
                with pytest.raises(ConnectionError, match="no server"):
                    sink.write(evaluation)
        else:
            sink.write(evaluation)
        sink.close()
    assert {path.name for path in tmp_path.iterdir()} >= {"history.jsonl", "step-00000010.safetensors", "run"}


def test_panels_are_those_of_the_first_probes_in_the_order_of_the_report(
    tmp_path: Path, evaluation: Evaluation
) -> None:
    assert evaluation.report.flagged_first == [1, 0, 2]
    writer = SummaryWriter(tmp_path / "run")
    TensorBoardImageSink(writer, "clipcam", Drawer(2)).write(evaluation)
    writer.close()
    panels = {tag for tag in images_in(tmp_path / "run") if tag.startswith("clipcam_maps/")}
    assert panels == {"clipcam_maps/probe-0", "clipcam_maps/probe-1"}


def test_panels_stay_in_the_order_of_the_probes(evaluation: Evaluation) -> None:
    drawings = Drawer(2)(evaluation)
    assert [panel.index for panel in drawings.panels] == [0, 1]


def test_each_image_is_drawn_once_for_all_sinks(evaluation: Evaluation) -> None:
    draw = Drawer(2)
    assert draw(evaluation).panels is draw(evaluation).panels
    assert draw(evaluation).sheet is draw(evaluation).sheet


def test_a_sheet_that_cannot_be_written_does_not_stop_the_report(tmp_path: Path, evaluation: Evaluation) -> None:
    (tmp_path / "contact_sheet.png").mkdir()
    (tmp_path / "run.json").write_text('{"run": "id"}')
    assert evaluation.report.alarm
    with pytest.raises(OSError, match="is not a file"):
        ImageFileSink(folder_in(tmp_path), Drawer(3)).write(evaluation)
    assert (tmp_path / "report.html").exists()


def test_the_report_of_a_run_without_alarm_is_written_at_its_end(tmp_path: Path) -> None:
    maps = torch.rand(2, 8, 8)
    sink = ImageFileSink(folder_in(tmp_path), Drawer(3))
    for each in evaluations_of({0: maps, 10: maps}, ["a", "b"]):
        assert not each.report.alarm
        sink.write(each)
    assert not (tmp_path / "report.html").exists()
    sink.close()
    assert ">10<" in (tmp_path / "report.html").read_text()


class WriteOnly:
    def write(self, evaluation: Evaluation) -> None: ...


UNOPENED = UnopenedSink(None, list, OSError())


@pytest.mark.parametrize(
    "sinks",
    [UNOPENED, [UnopenedSink], [WriteOnly()], [print], [None], "sink"],
    ids=["no list", "a class", "no close", "a function", "None", "a string"],
)
def test_what_is_no_list_of_sinks_is_refused(sinks: object) -> None:
    with pytest.raises(ConfigError, match=r"derive a class from clipcam_lightning\.Sink"):
        require_sinks(sinks)


def test_sinks_are_accepted() -> None:
    require_sinks([UNOPENED])
    require_sinks(())


class RecordingSink(LoggerSink):
    """Records the steps of which a contact sheet, and of which a report was logged."""

    def __init__(self) -> None:
        super().__init__("logger", "clipcam", per_probe=False, draw=Drawer(1))
        self.sheets: list[int] = []
        self.reports: list[int] = []

    def log(self, drawings: Drawings, *, with_report: bool) -> None:
        if drawings.is_sheet_due or with_report:
            self.sheets.append(drawings.evaluation.report.step)
        if with_report:
            self.log_report(drawings)

    def log_report(self, drawings: Drawings, *, with_sheet: bool = False) -> None:
        self.reports.append(drawings.evaluation.report.step)
        if with_sheet:
            self.sheets.append(drawings.evaluation.report.step)


@pytest.mark.parametrize(
    ("alarms", "sheets", "reports"),
    [
        ([], [0, 10, 30, 60], [60]),
        ([20, 50], [0, 10, 20, 30, 50, 60], [20, 50, 60]),
        ([20, 60], [0, 10, 20, 30, 60], [20, 60]),
    ],
    ids=["no alarm", "alarms", "the last is an alarm"],
)
def test_loggers_get_the_sheets_of_evaluations_1_2_4_of_alarms_and_of_the_end(
    alarms: list[int], sheets: list[int], reports: list[int]
) -> None:
    torch.manual_seed(0)
    before = torch.rand(3, 8, 8)
    maps = {step: before if step not in alarms else -before for step in range(0, 70, 10)}
    sink = RecordingSink()
    for evaluation in evaluations_of(maps, ["a", "b", "c"]):
        sink.write(evaluation)

    sink.close()

    assert (sink.sheets, sink.reports) == (sheets, reports)
