"""Images are written while the training goes on; none is lost, and each failure is warned of once."""

import copy
import json
import signal
import threading
import time
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from torch.utils.data import DataLoader

from clipcam_lightning import ClipCamCallback, ClipCamWarning, Probe, ProbeSet
from clipcam_lightning.monitoring.evaluation import Evaluation, Sink
from clipcam_lightning.shapes_world.scenes import draw_scenes
from clipcam_lightning.sinks import drawing
from clipcam_lightning.sinks.background import BackgroundSink
from tests.support.modules import FineTuning, Pairs, events, fit

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:attention drifted:clipcam_lightning.ClipCamWarning"),
]

SCENES = draw_scenes(3, seed=9)
TIMEOUT = 60  # seconds after which a hang is a failure


def probes() -> ProbeSet:
    rows = zip(SCENES.images, SCENES.captions, strict=True)
    return ProbeSet(Probe(image, caption) for image, caption in rows)


class Recorder(Sink):
    """Takes numbers for evaluations; those in ``held`` wait until the gate opens, those in ``bad`` fail."""

    def __init__(self, held: tuple[int, ...] = (), bad: tuple[int, ...] = ()) -> None:
        self.held, self.bad, self.gate = held, bad, threading.Event()
        self.written: list[int] = []
        self.threads: list[threading.Thread] = []
        self.closed = False

    def write(self, evaluation: Evaluation) -> None:
        number = cast(int, evaluation)
        self.threads.append(threading.current_thread())
        if number in self.held:
            assert self.gate.wait(TIMEOUT)
        if number in self.bad:
            raise OSError(f"evaluation {number} failed on purpose")
        self.written.append(number)

    def close(self) -> None:
        self.closed = True


def as_evaluation(number: int) -> Evaluation:
    return cast(Evaluation, number)


@pytest.mark.usefixtures("unchecked")
class TestBackgroundSink:
    def test_only_the_first_evaluation_is_written_in_the_training_thread(self) -> None:
        recorder = Recorder()
        sink = BackgroundSink(recorder, first_at_once=True)
        for number in range(3):
            sink.write(as_evaluation(number))
        sink.close()
        assert [thread is threading.current_thread() for thread in recorder.threads] == [True, False, False]

    def test_an_evaluation_waits_for_the_previous_one_and_no_longer(self) -> None:
        recorder = Recorder(held=(1, 2))
        sink = BackgroundSink(recorder, first_at_once=True)
        sink.write(as_evaluation(0))
        sink.write(as_evaluation(1))
        assert recorder.written == [0], "it does not wait for its own"
        threading.Timer(0.1, recorder.gate.set).start()
        sink.write(as_evaluation(2))
        assert 1 in recorder.written
        sink.close()

    def test_a_new_evaluation_is_not_written_if_the_previous_one_takes_too_long(self) -> None:
        recorder = Recorder(held=(0,))
        sink = BackgroundSink(recorder, patience=0.05)
        sink.write(as_evaluation(0))
        for number in (1, 2):
            with pytest.raises(TimeoutError, match=r"still being written after 0\.05 s"):
                sink.write(as_evaluation(number))
        recorder.gate.set()
        sink.patience = TIMEOUT
        sink.write(as_evaluation(3))
        sink.close()
        assert recorder.written == [0, 3]

    def test_a_closed_sink_can_be_used_and_copied_again(self) -> None:
        recorder = Recorder()
        sink = BackgroundSink(recorder)
        sink.write(as_evaluation(0))
        sink.close()
        sink.write(as_evaluation(1))
        copied = copy.copy(sink)
        sink.close()
        copied.write(as_evaluation(2))
        copied.close()
        assert recorder.written == [0, 1, 2]

    def test_all_evaluations_are_written_in_order_when_the_sink_is_closed(self) -> None:
        recorder = Recorder()
        sink = BackgroundSink(recorder)
        for number in range(50):
            sink.write(as_evaluation(number))
        sink.close()
        assert recorder.written == list(range(50))
        assert recorder.closed

    def test_an_error_is_raised_once_by_the_next_write_which_is_not_lost(self) -> None:
        recorder = Recorder(bad=(1,))
        sink = BackgroundSink(recorder)
        sink.write(as_evaluation(0))
        sink.write(as_evaluation(1))
        with pytest.raises(OSError, match="evaluation 1 failed"):
            sink.write(as_evaluation(2))
        sink.write(as_evaluation(3))
        sink.close()
        assert recorder.written == [0, 2, 3]

    def test_close_raises_the_error_of_the_last_evaluation_and_closes_the_sink(self) -> None:
        recorder = Recorder(bad=(1,))
        sink = BackgroundSink(recorder)
        sink.write(as_evaluation(0))
        sink.write(as_evaluation(1))
        with pytest.raises(OSError, match="evaluation 1 failed"):
            sink.close()
        assert recorder.closed


@pytest.fixture
def slow_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Contact sheets take so long that a training is over before they are drawn."""
    draw = drawing.contact_sheet

    def draw_slowly(*arguments: Any) -> Image.Image:
        time.sleep(0.3)
        return draw(*arguments)

    monkeypatch.setattr(drawing, "contact_sheet", draw_slowly)


class FailsAfterTheLastEvaluation(pl.Callback):
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        raise self.error


@pytest.mark.parametrize("error", [None, ValueError("on purpose"), KeyboardInterrupt()], ids=["none", "error", "^C"])
def test_every_image_is_on_disk_after_a_fit_however_it_ends(
    error: BaseException | None, tmp_path: Path, slow_drawing: None
) -> None:
    before = signal.getsignal(signal.SIGINT)
    callbacks = [ClipCamCallback(probes(), method="hirescam")] + ([FailsAfterTheLastEvaluation(error)] if error else [])
    try:
        fit(FineTuning(), tmp_path, *callbacks)
    except (ValueError, SystemExit):  # Lightning makes the latter of Ctrl-C
        assert error is not None
    finally:
        signal.signal(signal.SIGINT, before)  # Lightning sets it to be ignored

    for tag in events(tmp_path).Tags()["images"]:
        assert [event.step for event in events(tmp_path).Images(tag)] == [0, 4, 8]
    with Image.open(tmp_path / "run" / "clipcam" / "contact_sheet.png") as sheet:
        assert sheet.width == 8 + 4 * 138, "input and three evaluations"
    assert len(list((tmp_path / "run").glob("events*"))) == 1, "the writer of the logger was not closed too early"
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("clipcam")]


@pytest.mark.parametrize("broken_from", [0, 1], ids=["from the first evaluation on", "at the last evaluation"])
def test_images_that_cannot_be_written_are_warned_of_once_and_the_training_goes_on(
    broken_from: int, tmp_path: Path
) -> None:
    class InTheWay(pl.Callback):
        def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            if trainer.current_epoch == broken_from:
                (tmp_path / "x" / "contact_sheet.png").unlink(missing_ok=True)
                (tmp_path / "x" / "contact_sheet.png").mkdir()

    callback = ClipCamCallback(probes(), method="hirescam", dirpath=tmp_path / "x")
    with pytest.warns(ClipCamWarning, match="could not be written") as caught:
        trainer = fit(FineTuning(), tmp_path, callback, InTheWay())

    assert len([warning for warning in caught if "could not be written" in str(warning.message)]) == 1
    assert trainer.global_step == 8
    assert len(list((tmp_path / "x").glob("step-*.safetensors"))) == 3
    assert [event.step for event in events(tmp_path).Images("clipcam_contact_sheet/all_probes")] == [0, 4, 8]


def test_panels_are_drawn_of_the_first_probes_and_metrics_are_logged_of_all(tmp_path: Path) -> None:
    callback = ClipCamCallback(probes(), method="hirescam", num_images=1, max_drift=1.9)
    fit(FineTuning(), tmp_path, callback)

    log = events(tmp_path)
    drawn = {
        (event.step, tag.removeprefix("clipcam_maps/"))
        for tag in log.Tags()["images"]
        if tag.startswith("clipcam_maps/")
        for event in log.Images(tag)
    }
    lines = [json.loads(line) for line in (tmp_path / "run" / "clipcam" / "history.jsonl").read_text().splitlines()]
    worst = {(line["step"], max(line["probes"], key=lambda probe: probe["drift"])["name"]) for line in lines}
    assert drawn == worst
    assert len([tag for tag in log.Tags()["scalars"] if tag.startswith("clipcam_drift/")]) == 3
    assert [len(line["probes"]) for line in lines] == [3, 3, 3]


@pytest.mark.forks
def test_a_training_with_forked_dataloader_workers_is_bit_identical(tmp_path: Path, slow_drawing: None) -> None:
    def trained(folder: Path, *callbacks: pl.Callback) -> dict[str, torch.Tensor]:
        pl.seed_everything(11, verbose=False)
        module = FineTuning()
        trainer = pl.Trainer(
            accelerator="cpu", max_epochs=3, callbacks=list(callbacks), logger=TensorBoardLogger(folder, "", "run"),
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1,
        )  # fmt: skip
        loaders = [DataLoader(Pairs(seed=seed), 8, shuffle=not seed, num_workers=1, timeout=TIMEOUT) for seed in (0, 1)]
        trainer.fit(module, *loaders)
        return module.state_dict()

    plain = trained(tmp_path / "plain")
    monitored = trained(tmp_path / "monitored", ClipCamCallback(probes(), method="hirescam"))

    assert all(torch.equal(value, monitored[name]) for name, value in plain.items())
