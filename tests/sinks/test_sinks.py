"""The sinks of a run: which are made, and that one that fails does not stop another."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from clipcam_lightning.monitoring.evaluation import Evaluation, Sink
from clipcam_lightning.sinks import UnreachableSink, make_sinks
from clipcam_lightning.sinks.images import ImageSink
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
    return [type(sink).__name__ for sink in sinks]


def images_in(folder: Path) -> list[str]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return events.Tags()["images"]


def test_each_logger_with_a_tensorboard_gets_its_sinks_and_others_none(tmp_path: Path) -> None:
    loggers = [TensorBoardLogger(tmp_path, "", "run"), CSVLogger(tmp_path), object()]
    without = make_sinks([], tmp_path, "clipcam", num_images=2)
    sinks = make_sinks(loggers, tmp_path, "clipcam", num_images=2)
    added = Counter(names_of(sinks)) - Counter(names_of(without))
    assert added == Counter(["TensorBoardSink", "TabSink"])
    for sink in sinks:
        sink.close()


def test_a_logger_that_cannot_be_opened_does_not_stop_the_other_sinks(tmp_path: Path, evaluation: Evaluation) -> None:
    sinks = make_sinks([Unreachable(), TensorBoardLogger(tmp_path, "", "run")], tmp_path, "clipcam", num_images=2)
    assert {"FileSink", "UnreachableSink", "TensorBoardSink", "TabSink", "BackgroundSink"} <= set(names_of(sinks))

    for sink in sinks:
        if isinstance(sink, UnreachableSink):
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
    ImageSink(tmp_path, [writer], "clipcam", num_images=2).write(evaluation)
    writer.close()
    panels = {tag for tag in images_in(tmp_path / "run") if tag.startswith("clipcam/")}
    assert panels == {"clipcam/probe-0", "clipcam/probe-1"}


@pytest.mark.parametrize("broken", [0, 1])
def test_a_writer_that_fails_stops_neither_the_other_writer_nor_the_file(
    broken: int, tmp_path: Path, evaluation: Evaluation
) -> None:
    kinds: list[Any] = [SummaryWriter, SummaryWriter]
    kinds[broken] = FullDisk
    writers = [kind(tmp_path / f"run-{i}") for i, kind in enumerate(kinds)]

    with pytest.raises(OSError, match="No space"):
        ImageSink(tmp_path, writers, "clipcam", num_images=3).write(evaluation)

    writers[1 - broken].close()
    assert len(images_in(tmp_path / f"run-{1 - broken}")) == 4
    with Image.open(tmp_path / "contact_sheet.png") as sheet:
        sheet.load()


def test_a_file_that_cannot_be_written_does_not_stop_the_writers(tmp_path: Path, evaluation: Evaluation) -> None:
    (tmp_path / "contact_sheet.png").mkdir()
    writer = SummaryWriter(tmp_path / "run")

    with pytest.raises(OSError, match="is not a file"):
        ImageSink(tmp_path, [writer], "clipcam", num_images=3).write(evaluation)

    writer.close()
    assert len(images_in(tmp_path / "run")) == 4
