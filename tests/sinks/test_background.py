"""Pictures are written while the training goes on; none is lost, and what goes wrong is said once."""

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
from clipcam_lightning.sinks import images as pictures
from clipcam_lightning.sinks.background import BackgroundSink
from tests.support.modules import FineTuning, Pairs, events, fit

pytestmark = pytest.mark.filterwarnings("ignore:attention drifted:clipcam_lightning.ClipCamWarning")

SCENES = draw_scenes(3, seed=9)
PATIENCE = 60  # seconds after which a hang is a failure


def probes() -> ProbeSet:
    rows = zip(SCENES.images, SCENES.captions, strict=True)
    return ProbeSet(Probe(image, caption) for image, caption in rows)


class Recorder(Sink):
    """Takes numbers for looks; those in ``held`` wait until the gate opens, those in ``bad`` fail."""

    def __init__(self, held: tuple[int, ...] = (), bad: tuple[int, ...] = ()) -> None:
        self.held, self.bad, self.gate = held, bad, threading.Event()
        self.written: list[int] = []
        self.threads: list[threading.Thread] = []
        self.closed = False

    def write(self, evaluation: Evaluation) -> None:
        number = cast(int, evaluation)
        self.threads.append(threading.current_thread())
        if number in self.held:
            assert self.gate.wait(PATIENCE)
        if number in self.bad:
            raise OSError(f"look {number} failed on purpose")
        self.written.append(number)

    def close(self) -> None:
        self.closed = True


def as_evaluation(number: int) -> Evaluation:
    return cast(Evaluation, number)


@pytest.mark.usefixtures("unchecked")
class TestBackgroundSink:
    def test_only_the_first_evaluation_is_written_in_the_thread_that_trains(self) -> None:
        recorder = Recorder()
        sink = BackgroundSink(recorder)
        for number in range(3):
            sink.write(as_evaluation(number))
        sink.close()
        assert [thread is threading.current_thread() for thread in recorder.threads] == [True, False, False]

    def test_a_evaluation_waits_for_the_one_before_and_no_longer(self) -> None:
        recorder = Recorder(held=(1, 2))
        sink = BackgroundSink(recorder)
        sink.write(as_evaluation(0))
        sink.write(as_evaluation(1))
        assert recorder.written == [0], "it has not waited"
        threading.Timer(0.1, recorder.gate.set).start()
        sink.write(as_evaluation(2))
        assert 1 in recorder.written
        sink.close()

    def test_evaluations_arrive_in_order_and_all_by_the_time_it_is_closed(self) -> None:
        recorder = Recorder()
        sink = BackgroundSink(recorder)
        for number in range(50):
            sink.write(as_evaluation(number))
        sink.close()
        assert recorder.written == list(range(50))
        assert recorder.closed

    def test_an_error_is_raised_by_the_next_write_which_loses_nothing_and_by_it_alone(self) -> None:
        recorder = Recorder(bad=(1,))
        sink = BackgroundSink(recorder)
        sink.write(as_evaluation(0))
        sink.write(as_evaluation(1))
        with pytest.raises(OSError, match="look 1 failed"):
            sink.write(as_evaluation(2))
        sink.write(as_evaluation(3))
        sink.close()
        assert recorder.written == [0, 2, 3]

    def test_the_error_of_the_last_evaluation_is_raised_by_close(self) -> None:
        sink = BackgroundSink(Recorder(bad=(1,)))
        sink.write(as_evaluation(0))
        sink.write(as_evaluation(1))
        with pytest.raises(OSError, match="look 1 failed"):
            sink.close()


@pytest.fixture
def slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sheets take so long that a training is over before they are drawn."""
    draw = pictures.contact_sheet

    def drawn(*arguments: Any) -> Image.Image:
        time.sleep(0.3)
        return draw(*arguments)

    monkeypatch.setattr(pictures, "contact_sheet", drawn)


class FailsAfterTheLastEvaluation(pl.Callback):
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        raise self.error


@pytest.mark.parametrize("error", [None, ValueError("on purpose"), KeyboardInterrupt()], ids=["none", "error", "^C"])
def test_when_a_fit_is_over_however_it_ends_every_picture_is_on_disk(
    error: BaseException | None, tmp_path: Path, slowly: None
) -> None:
    before = signal.getsignal(signal.SIGINT)
    callbacks = [ClipCamCallback(probes(), method="hirescam")] + ([FailsAfterTheLastEvaluation(error)] if error else [])
    try:
        fit(FineTuning(), tmp_path, *callbacks)
    except (ValueError, SystemExit):  # Lightning makes the latter of Ctrl-C
        assert error is not None
    finally:
        signal.signal(signal.SIGINT, before)  # which Lightning sets to be ignored

    for tag in events(tmp_path).Tags()["images"]:
        assert [event.step for event in events(tmp_path).Images(tag)] == [0, 4, 8]
    with Image.open(tmp_path / "run" / "clipcam" / "contact_sheet.png") as sheet:
        assert sheet.width == 158 + 4 * 120, "input and three looks"
    assert len(list((tmp_path / "run").glob("events*"))) == 1, "the logger's writer was not closed too early"
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("clipcam")]


@pytest.mark.parametrize("broken_from", [0, 1], ids=["from the first look on", "at the last look"])
def test_pictures_that_cannot_be_written_are_warned_of_once_and_the_training_goes_on(
    broken_from: int, tmp_path: Path
) -> None:
    class InTheWay(pl.Callback):
        def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            if trainer.current_epoch == broken_from:
                (tmp_path / "x" / "contact_sheet.png").unlink(missing_ok=True)
                (tmp_path / "x" / "contact_sheet.png").mkdir()

    watcher = ClipCamCallback(probes(), method="hirescam", dirpath=tmp_path / "x")
    with pytest.warns(ClipCamWarning, match="a look could not be written") as caught:
        trainer = fit(FineTuning(), tmp_path, watcher, InTheWay())

    assert len([warning for warning in caught if "could not be written" in str(warning.message)]) == 1
    assert trainer.global_step == 8
    assert len(list((tmp_path / "x").glob("step-*.safetensors"))) == 3
    assert [event.step for event in events(tmp_path).Images("clipcam_contact_sheet/all_probes")] == [0, 4, 8]


def test_of_many_probes_the_worst_are_pictured_and_the_figures_are_of_all(tmp_path: Path) -> None:
    watcher = ClipCamCallback(probes(), method="hirescam", num_images=1, max_drift=1.9)
    fit(FineTuning(), tmp_path, watcher)

    log = events(tmp_path)
    pictured = {
        (event.step, tag.removeprefix("clipcam/"))
        for tag in log.Tags()["images"]
        if tag.startswith("clipcam/")
        for event in log.Images(tag)
    }
    lines = [json.loads(line) for line in (tmp_path / "run" / "clipcam" / "history.jsonl").read_text().splitlines()]
    worst = {(line["step"], max(line["probes"], key=lambda probe: probe["drift"])["name"]) for line in lines}
    assert pictured == worst
    assert len([tag for tag in log.Tags()["scalars"] if tag.startswith("clipcam_drift/")]) == 3
    assert [len(line["probes"]) for line in lines] == [3, 3, 3]


@pytest.mark.forks
def test_a_training_whose_data_come_from_forked_workers_is_bit_identical(tmp_path: Path, slowly: None) -> None:
    def trained(folder: Path, *callbacks: pl.Callback) -> dict[str, torch.Tensor]:
        pl.seed_everything(11, verbose=False)
        module = FineTuning()
        trainer = pl.Trainer(
            accelerator="cpu", max_epochs=3, callbacks=list(callbacks), logger=TensorBoardLogger(folder, "", "run"),
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1,
        )  # fmt: skip
        loaders = [
            DataLoader(Pairs(seed=seed), 8, shuffle=not seed, num_workers=1, timeout=PATIENCE) for seed in (0, 1)
        ]
        trainer.fit(module, *loaders)
        return module.state_dict()

    plain = trained(tmp_path / "plain")
    watched = trained(tmp_path / "watched", ClipCamCallback(probes(), method="hirescam"))

    assert all(torch.equal(value, watched[name]) for name, value in plain.items())
