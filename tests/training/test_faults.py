"""Faults during a training: with ``on_error="warn"`` there is one warning, and the training is not changed."""

import gc
import json
import os
import re
import resource
import signal
import subprocess
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from PIL import Image
from torch import Tensor, nn

from clipcam_lightning import Capture, ClipCamCallback, ClipCamError, ClipCamWarning, Snapshot
from clipcam_lightning.cam.methods import METHODS
from clipcam_lightning.shapes_world.scenes import draw_scenes
from tests.support.faulty import (
    STEPS,
    Fault,
    FaultyLogger,
    FaultyMethod,
    FaultyTokenizer,
    FaultyWriter,
    tiny_module,
    train,
    two_probes,
)
from tests.support.modules import FineTuning, Pairs, events

# ModelCheckpoint's own advice, where a run is resumed.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists", "ignore:The dirpath has changed"),
]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """Weights after a training without the callback."""
    with warnings.catch_warnings(action="ignore"):
        return weights_of(train(tmp_path_factory.mktemp("plain")))


def weights_of(trainer: pl.Trainer) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in trainer.lightning_module.state_dict().items()}


def make_callback(**arguments: Any) -> ClipCamCallback:
    return ClipCamCallback(**{"probes": two_probes(), "on_drift": "log", "method": "gradcam", **arguments})


def warnings_of(folder: Path, plain: dict[str, Tensor], *callbacks: pl.Callback, **options: Any) -> list[str]:
    """Train, and check that the training and its checkpoint are the same as without the callback.

    Args:
        folder: for the log and the checkpoint.
        plain: weights after a training without the callback.
        callbacks, options: of the Trainer.

    Returns:
        The messages of the callback's warnings.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = train(folder, *callbacks, **options)
    assert trainer.global_step == STEPS[-1]
    saved = torch.load(folder / "kept" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == STEPS[-1]
    for name, weight in plain.items():
        assert torch.equal(weight, trainer.lightning_module.state_dict()[name]), name
        assert torch.equal(weight, saved["state_dict"][name]), name
    return [str(warning.message) for warning in caught if warning.category is ClipCamWarning]


def without_images(messages: list[str]) -> list[str]:
    """Leave out the warning of an image or report that a thread was writing when its folder disappeared."""
    return [message for message in messages if "contact_sheet" not in message and "report.html" not in message]


def steps_in(folder: Path) -> list[int]:
    """Read the steps in ``history.jsonl``, and check that every line is whole."""
    lines = (folder / "history.jsonl").read_text().splitlines(keepends=True)
    assert all(line.endswith("\n") for line in lines)
    return [json.loads(line)["step"] for line in lines]


def snapshots_in(folder: Path) -> list[int]:
    """Read the steps of the snapshots in a folder, and check that it holds nothing but whole files of evaluations."""
    names = {path.name for path in folder.iterdir()}
    snapshots = sorted(name for name in names if name.startswith("step-"))
    assert names <= {*snapshots, "run.json", "history.jsonl", "contact_sheet.png", "report.html"}
    return [Snapshot.load(folder / name).info.step for name in snapshots]


class Disturbance(pl.Callback):
    """Does something just before the evaluation at one step, and undoes it just after.

    Args:
        step: of the evaluation.
        before: called before it; this callback has to come before the one under test.
        after: called after it.
    """

    def __init__(self, step: int, before: Callable[[], object], after: Callable[[], object]) -> None:
        self.step, self.before, self.after = step, before, after

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step == self.step:
            self.before()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step == self.step:
            self.after()


class TestDisk:
    """A disk that is full, read-only or changed: there is one warning, and later evaluations are written."""

    @pytest.fixture
    def small_disk(self, tmp_path: Path) -> Iterator[Path]:
        """A file system with room for about one evaluation."""
        disk = tmp_path / "disk"
        disk.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("mounting a file system is not allowed here")
        yield disk
        subprocess.run(["umount", str(disk)], check=True)

    @pytest.mark.parametrize("left", [0, 1, 3], ids=lambda pages: f"{pages} pages left")
    def test_that_is_full_and_then_has_room_again(
        self, left: int, small_disk: Path, plain: dict[str, Tensor], tmp_path: Path
    ) -> None:
        ballast = small_disk / "ballast"

        def fill() -> None:
            with ballast.open("wb", buffering=0) as file:
                with suppress(OSError):
                    while True:
                        file.write(bytes(4096))
                file.truncate(file.tell() - 4096 * left)

        callback = make_callback(dirpath=small_disk / "evaluations")
        (message,) = warnings_of(tmp_path, plain, Disturbance(4, fill, ballast.unlink), callback)

        assert "an evaluation could not be written" in message
        assert "No space left on device" in message
        assert [entry.step for entry in callback.history] == STEPS, "the evaluation itself has not failed"
        assert set(snapshots_in(small_disk / "evaluations")) >= {0, 2, 6}
        assert set(steps_in(small_disk / "evaluations")) >= {0, 2, 6}
        assert steps_in(small_disk / "evaluations") == sorted(steps_in(small_disk / "evaluations"))

    @pytest.mark.parametrize("limit", [0, 700, 5000])
    def test_that_limits_the_size_of_a_file_for_a_while(
        self, limit: int, plain: dict[str, Tensor], tmp_path: Path
    ) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        lower = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))  # noqa: E731
        lift = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))  # noqa: E731
        callbacks = Disturbance(4, lower, lift), make_callback(dirpath=tmp_path / "evaluations")

        try:
            messages = warnings_of(tmp_path, plain, *callbacks, logger=False)
        finally:
            lift()

        assert len(messages) == 1
        assert "File too large" in messages[0]
        assert set(snapshots_in(tmp_path / "evaluations")) >= {0, 2, 6}
        assert set(steps_in(tmp_path / "evaluations")) >= {0, 2, 6}

    @pytest.mark.parametrize("place", ["/proc/self/fdinfo", "/proc/evaluations"], ids=["folder", "no folder"])
    def test_with_a_folder_that_nobody_may_write_to(self, place: str, plain: dict[str, Tensor], tmp_path: Path) -> None:
        if not Path("/proc/self").exists():
            pytest.skip("needs a file system that refuses every user")

        (message,) = warnings_of(tmp_path, plain, make_callback(dirpath=place))

        assert "an evaluation could not be written" in message
        assert place in message

    def test_with_a_folder_that_becomes_a_file_and_a_folder_again(
        self, plain: dict[str, Tensor], tmp_path: Path
    ) -> None:
        evaluations, aside = tmp_path / "evaluations", tmp_path / "aside"

        def replace() -> None:
            evaluations.rename(aside)
            evaluations.write_text("in the way")

        def restore() -> None:
            evaluations.unlink()
            for temporary in aside.glob(".contact_sheet.png.*"):  # it was being written when the folder moved
                temporary.unlink()
            aside.rename(evaluations)

        callbacks = Disturbance(4, replace, restore), make_callback(dirpath=evaluations)
        (message,) = without_images(warnings_of(tmp_path, plain, *callbacks))

        assert "an evaluation could not be written" in message
        assert snapshots_in(evaluations) == steps_in(evaluations) == [0, 2, 6]

    def test_with_a_folder_that_is_deleted_and_made_again(self, plain: dict[str, Tensor], tmp_path: Path) -> None:
        evaluations = tmp_path / "evaluations"
        deletion = Disturbance(4, lambda: evaluations.rename(tmp_path / "gone"), lambda: None)

        messages = warnings_of(tmp_path, plain, deletion, make_callback(dirpath=evaluations))

        assert without_images(messages) == []
        assert snapshots_in(evaluations) == steps_in(evaluations) == [4, 6]

    def test_with_lines_of_another_run(self, plain: dict[str, Tensor], tmp_path: Path) -> None:
        evaluations = tmp_path / "evaluations"
        evaluations.mkdir()
        (evaluations / "history.jsonl").write_text('{"step": 99}\n')

        assert warnings_of(tmp_path, plain, make_callback(dirpath=evaluations)) == []

        assert (evaluations / "history.jsonl").read_text() == '{"step": 99}\n'
        assert snapshots_in(evaluations / "run_2") == steps_in(evaluations / "run_2") == STEPS

    def test_with_no_room_for_one_snapshot(self, plain: dict[str, Tensor], tmp_path: Path) -> None:
        evaluations, other = tmp_path / "evaluations", tmp_path / "evaluations" / "step-00000002.safetensors"
        in_the_way = Disturbance(2, other.mkdir, other.rmdir)

        (message,) = warnings_of(tmp_path, plain, in_the_way, make_callback(dirpath=evaluations))

        assert "is not a file" in message
        assert snapshots_in(evaluations) == steps_in(evaluations) == [0, 4, 6]

    def test_with_on_error_raise(self, tmp_path: Path) -> None:
        (tmp_path / "evaluations").write_text("in the way")
        with pytest.raises(ClipCamError, match="an evaluation could not be written"):
            train(tmp_path, make_callback(dirpath=tmp_path / "evaluations", on_error="raise"))


class FaultyConv(nn.Conv2d):
    """A convolution that calls a fault in eval mode."""

    fault: Fault

    def forward(self, images: Tensor) -> Tensor:
        if not self.training:
            self.fault()
        return super().forward(images)


def in_a_tower(fault: Fault, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    # Without validation, only an evaluation runs the tower in eval mode.
    module = tiny_module()
    module.model.visual.conv1.__class__ = FaultyConv
    module.model.visual.conv1.fault = fault
    return {}, {"module": module, "validate": False}


def in_a_method(fault: Fault, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    return {"method": FaultyMethod(fault)}, {}


def in_a_tokenizer(fault: Fault, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    return {"tokenizer": FaultyTokenizer(fault)}, {}


def in_a_writer(fault: Fault, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    logger = TensorBoardLogger(folder, name="", version="run")
    logger._experiment = FaultyWriter(folder / "run", fault)
    return {}, {"logger": logger}


def in_a_logger(fault: Fault, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    return {}, {"logger": FaultyLogger(fault)}


PLACES = [in_a_tower, in_a_method, in_a_tokenizer, in_a_writer, in_a_logger]


@pytest.fixture
def interrupts() -> Iterator[None]:
    """Restore the handler of Ctrl-C afterwards: after one interrupt, Lightning ignores all others."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background
    yield
    signal.signal(signal.SIGINT, before)


class TestException:
    """An exception inside an evaluation, raised by the user's own code."""

    @pytest.mark.parametrize("place", PLACES)
    def test_becomes_one_warning_and_does_not_change_the_training(
        self, place: Any, plain: dict[str, Tensor], tmp_path: Path
    ) -> None:
        arguments, options = place(Fault(), tmp_path)

        (message,) = warnings_of(tmp_path, plain, make_callback(**arguments), **options)

        assert message.startswith("ClipCamCallback: ")
        assert "ZeroDivisionError: on purpose" in message
        assert message.endswith("The training goes on.")

    @pytest.mark.parametrize("place", PLACES)
    def test_is_raised_with_on_error_raise(self, place: Any, tmp_path: Path) -> None:
        arguments, options = place(Fault(), tmp_path)

        with pytest.raises(ClipCamError, match="ZeroDivisionError: on purpose"):
            train(tmp_path, make_callback(on_error="raise", **arguments), **options)

    @pytest.mark.parametrize("place", PLACES)
    def test_that_is_an_interrupt_ends_the_training(self, place: Any, tmp_path: Path, interrupts: None) -> None:
        arguments, options = place(Fault(KeyboardInterrupt), tmp_path)

        with pytest.raises(SystemExit) as raised:
            train(tmp_path, make_callback(**arguments), **options)

        assert isinstance(raised.value.__context__, KeyboardInterrupt)

    @pytest.mark.parametrize("place", [in_a_writer, in_a_logger])
    def test_of_a_logger_does_not_stop_the_files(self, place: Any, plain: dict[str, Tensor], tmp_path: Path) -> None:
        arguments, options = place(Fault(), tmp_path)
        warnings_of(tmp_path, plain, make_callback(dirpath=tmp_path / "evaluations", **arguments), **options)
        assert snapshots_in(tmp_path / "evaluations") == steps_in(tmp_path / "evaluations") == STEPS

    @pytest.mark.parametrize("place", [in_a_method, in_a_tokenizer])
    def test_in_one_evaluation_leaves_one_gap(self, place: Any, plain: dict[str, Tensor], tmp_path: Path) -> None:
        fault = Fault()
        fault.stop()
        arguments, options = place(fault, tmp_path)
        callbacks = (
            Disturbance(2, fault.start, fault.stop),
            make_callback(dirpath=tmp_path / "evaluations", **arguments),
        )

        (message,) = warnings_of(tmp_path, plain, *callbacks, **options)

        assert "on purpose, number 1" in message
        assert snapshots_in(tmp_path / "evaluations") == steps_in(tmp_path / "evaluations") == [0, 4, 6]

    def test_is_not_kept(self, plain: dict[str, Tensor], tmp_path: Path) -> None:
        references: list[weakref.ref[Tensor]] = []

        def method(capture: Any) -> Tensor:
            attempt = capture.activations.clone()
            references.append(weakref.ref(attempt))
            raise torch.OutOfMemoryError("CUDA out of memory")

        callback = make_callback(method=method)
        warnings_of(tmp_path, plain, callback)
        gc.collect()

        assert references
        assert all(reference() is None for reference in references), "a traceback keeps tensors of the evaluation"


class NanWeights(FineTuning):
    """A module whose weights become NaN in the second epoch."""

    value = float("nan")

    def on_train_epoch_start(self) -> None:
        if self.current_epoch == 1:
            with torch.no_grad():
                self.model.visual.proj.fill_(self.value)


class InfiniteWeights(NanWeights):
    """A module whose weights become infinite in the second epoch."""

    value = float("inf")


@pytest.mark.parametrize("kind", [NanWeights, InfiniteWeights])
def test_metrics_are_finite_when_weights_are_not(kind: type[FineTuning], tmp_path: Path) -> None:
    plain = train(tmp_path / "plain", module=tiny_module(kind))
    callback, stopper = make_callback(), EarlyStopping("clipcam/drift", patience=99)

    trainer = train(tmp_path / "monitored", callback, stopper, module=tiny_module(kind))

    assert trainer.global_step == STEPS[-1]
    for name, weight in weights_of(plain).items():
        assert torch.equal(weight.nan_to_num(7.0), weights_of(trainer)[name].nan_to_num(7.0)), name
    log = events(tmp_path / "monitored")
    assert [event.step for event in log.Scalars("clipcam/drift")] == STEPS
    assert [event.value for event in log.Scalars("clipcam/degenerate")] == [0, 0, 2, 2]
    assert [event.value for event in log.Scalars("clipcam/drift")][2:] == [1, 1]
    assert callback.report is not None
    assert [probe.degenerate for probe in callback.report.probes] == ["not finite"] * 2
    metrics = [value for name, value in trainer.callback_metrics.items() if name.startswith("clipcam/")]
    assert torch.stack(metrics).isfinite().all()


class TestLoggers:
    """Any logger, no logger, or several loggers."""

    def test_one_that_cannot_show_images(self, plain: dict[str, Tensor], tmp_path: Path) -> None:
        assert warnings_of(tmp_path, plain, make_callback(), logger=CSVLogger(tmp_path, name="", version="run")) == []
        assert snapshots_in(tmp_path / "run" / "clipcam") == STEPS

    def test_no_logger(self, plain: dict[str, Tensor], tmp_path: Path) -> None:
        assert warnings_of(tmp_path, plain, make_callback(), logger=False) == []
        assert snapshots_in(tmp_path / "clipcam") == STEPS

    def test_two_that_get_the_same_metrics(self, plain: dict[str, Tensor], tmp_path: Path) -> None:
        loggers = [TensorBoardLogger(tmp_path / each, name="", version="run") for each in "ab"]

        assert warnings_of(tmp_path, plain, make_callback(), logger=loggers) == []

        first, second = (events(tmp_path / each) for each in "ab")
        assert first.Tags() == second.Tags()
        for tag in ("clipcam/drift", "clipcam/similarity"):
            values = [[(event.step, event.value) for event in log.Scalars(tag)] for log in (first, second)]
            assert values[0] == values[1]
            assert [step for step, _ in values[0]] == STEPS


class Deletion(pl.Callback):
    """Deletes a file after the ``setup`` of all callbacks."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.file.unlink()


@pytest.mark.parametrize("probes", [None, two_probes()], ids=["of a batch", "of the user"])
def test_a_baseline_file_may_be_deleted_after_setup(probes: Any, plain: dict[str, Tensor], tmp_path: Path) -> None:
    train(tmp_path / "a", make_callback(probes=probes))
    baseline = tmp_path / "a" / "run" / "clipcam" / "step-00000006.safetensors"
    maps, callback = Snapshot.load(baseline).maps, make_callback(probes=probes, baseline=baseline)

    assert warnings_of(tmp_path / "b", plain, callback, Deletion(baseline)) == []

    assert callback.monitor is not None
    assert torch.equal(callback.monitor.baseline.maps, maps)  # type: ignore[union-attr]
    assert [event.step for event in events(tmp_path / "b").Scalars("clipcam/drift")] == STEPS
    train(tmp_path / "c", callback, max_epochs=1)  # the next fit does not read it either


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoint of a run with probes of a batch, after two of three epochs."""
    folder = tmp_path_factory.mktemp("two epochs")
    train(folder, make_callback(probes=None), max_epochs=2)
    return folder / "kept" / "last.ckpt"


DAMAGES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no number of evaluations": (lambda state: state.pop("evaluations"), "KeyError: 'evaluations'"),
    "a newer version": (lambda state: state["monitor"].update(version=2), "format version 2, this package reads 1"),
    "an unknown field in the history": (
        lambda state: state["monitor"]["history"][0].update(mood="good"),
        "state in the checkpoint is damaged: TypeError.*mood",
    ),
    "no monitor": (lambda state: state.pop("monitor"), "KeyError: 'monitor'"),
    "no history": (
        lambda state: state["monitor"].pop("history"),
        "state in the checkpoint is damaged: KeyError.*'history'",
    ),
    "a history of another length": (
        lambda state: state["monitor"]["history"][1].update(maps=torch.zeros(5, 4, 4)),
        "another number of maps than there are probes",
    ),
    "metrics of another type": (
        lambda state: state["monitor"].update(metrics=[1, 2]),
        "state in the checkpoint is damaged: AttributeError",
    ),
    "a cut baseline": (
        lambda state: state["monitor"]["baseline"]["tensors"].update(maps=torch.zeros(1, 4, 4)),
        "state in the checkpoint is damaged: ValueError.*names, prompts, maps",
    ),
    "no probes": (lambda state: state.pop("probes"), "KeyError: 'probes'"),
    "a number of evaluations that is not a number": (lambda state: state.update(evaluations="many"), "ValueError"),
}


class TestResume:
    """A checkpoint that no longer fits, or is damaged: there is one warning, and a new baseline."""

    def test_with_a_probe_folder_that_changed(self, plain: dict[str, Tensor], tmp_path: Path) -> None:
        probes = tmp_path / "probes"
        probes.mkdir()
        for i, image in enumerate(draw_scenes(3, seed=9).images):
            Image.fromarray(image).save(probes / f"{i}.png")
        (probes / "probes.csv").write_text("image,prompt\n0.png,a red star\n1.png,a blue star\n")
        first = make_callback(probes=probes)
        train(tmp_path, first, max_epochs=2)
        (probes / "2.png").replace(probes / "1.png")
        again = make_callback(probes=probes)

        (message,) = warnings_of(tmp_path, plain, again, ckpt_path=tmp_path / "kept" / "last.ckpt")

        assert first.monitor is not None
        assert again.monitor is not None
        before, now = first.monitor.probes.digest[:12], again.monitor.probes.digest[:12]
        assert f"the checkpoint was made with other probes (digest {before}, these have {now}); use the same" in message
        assert [entry.step for entry in again.history] == [4, 6]
        assert again.monitor.baseline is not None
        assert again.monitor.baseline.info.step == 4
        assert steps_in(tmp_path / "run" / "clipcam") == [0, 2, 4]
        assert steps_in(tmp_path / "run" / "clipcam" / "run_2") == [4, 6]

    @pytest.mark.parametrize(("damage", "words"), DAMAGES.values(), ids=DAMAGES)
    def test_with_a_state_that_cannot_be_used(
        self,
        damage: Callable[[Any], object],
        words: str,
        checkpoint: Path,
        plain: dict[str, Tensor],
        tmp_path: Path,
        unchecked: None,
    ) -> None:
        file = tmp_path / "kept" / "last.ckpt"
        content = torch.load(checkpoint, weights_only=True)
        damage(content["clipcam"])
        file.parent.mkdir()
        torch.save(content, file)

        with pytest.raises(ClipCamError, match=words):
            train(tmp_path, make_callback(probes=None, on_error="raise"), ckpt_path=file)

        again = make_callback(probes=None)
        (message,) = warnings_of(tmp_path, plain, again, ckpt_path=file)
        assert re.search(f"baseline and history are not used: .*{words}", message)
        assert [entry.step for entry in again.history] == [4, 6]
        assert steps_in(tmp_path / "run" / "clipcam") == [4, 6]


def test_files_and_metrics_do_not_depend_on_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tmp_path / "steady", make_callback())
    backwards = iter(range(2_000_000_000, 0, -1_000_000))
    monkeypatch.setattr(time, "time", lambda: next(backwards))

    train(tmp_path / "jumping", make_callback())

    monkeypatch.undo()
    steady, jumping = (tmp_path / each / "run" / "clipcam" for each in ("steady", "jumping"))
    contents = [
        {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "run.json"}
        for folder in (steady, jumping)
    ]
    assert contents[0] == contents[1]
    values = [
        [(event.step, event.value) for event in events(tmp_path / each).Scalars("clipcam/drift")]
        for each in ("steady", "jumping")
    ]
    assert values[0] == values[1]


class BrokenPairs(Pairs):
    """Data whose third batch cannot be read."""

    def __getitem__(self, i: int) -> Any:
        if i == 8:
            raise OSError("the share is gone")
        return super().__getitem__(i)


class Interrupted(FineTuning):
    """A module that receives Ctrl-C in the first step of the second epoch."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if self.trainer.training and self.current_epoch == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize(
    ("kind", "data", "error", "steps"),
    [(FineTuning, BrokenPairs(count=12), OSError, [0]), (Interrupted, None, SystemExit, [0, 2])],
    ids=["data that cannot be read", "Ctrl-C in a step"],
)
def test_a_training_that_ends_early_leaves_whole_files_and_a_callback_that_can_be_used_again(
    kind: Any, data: Any, error: Any, steps: list[int], tmp_path: Path, interrupts: None
) -> None:
    callback, module = make_callback(), tiny_module(kind)
    with pytest.raises(error):
        train(tmp_path / "a", callback, module=module, data=data)

    evaluations = tmp_path / "a" / "run" / "clipcam"
    assert snapshots_in(evaluations) == steps_in(evaluations) == steps
    assert [event.step for event in events(tmp_path / "a").Scalars("clipcam/drift")] == steps
    train(tmp_path / "b", callback)
    assert [entry.step for entry in callback.history] == STEPS
    assert snapshots_in(tmp_path / "b" / "run" / "clipcam") == STEPS


@pytest.mark.parametrize(("room", "steps"), [(1, STEPS), (0, [])], ids=["for one image", "for no image"])
def test_an_evaluation_that_does_not_fit_into_memory_uses_smaller_batches(
    room: int, steps: list[int], plain: dict[str, Tensor], tmp_path: Path
) -> None:
    def greedy(capture: Capture) -> Tensor:
        if len(capture.activations) > room:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return METHODS["gradcam"].function(capture)

    messages = warnings_of(tmp_path, plain, make_callback(method=greedy, dirpath=tmp_path / "evaluations"))

    assert len(messages) == (0 if steps else 1)
    assert all("not enough memory to explain even one image at a time" in message for message in messages)
    assert (snapshots_in(tmp_path / "evaluations") if steps else []) == steps


def test_a_callback_releases_the_model_after_a_training_that_failed(tmp_path: Path) -> None:
    callback, module = make_callback(), tiny_module()
    with pytest.raises(OSError, match="the share is gone"):
        train(tmp_path, callback, module=module, data=BrokenPairs(count=12))

    model = weakref.ref(module.model)
    del module, callback.log, callback.log_dict  # Lightning gives these two to every callback
    gc.collect()

    assert model() is None
