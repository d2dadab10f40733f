"""What goes wrong during a training: with ``on_error="warn"`` one warning, and the training as if nobody looked."""

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
from torch import Tensor

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
pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists", "ignore:The dirpath has changed")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """Weights after a training that nobody watches."""
    with warnings.catch_warnings(action="ignore"):
        return weights_of(train(tmp_path_factory.mktemp("plain")))


def weights_of(trainer: pl.Trainer) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in trainer.lightning_module.state_dict().items()}


def watcher(**arguments: Any) -> ClipCamCallback:
    return ClipCamCallback(**{"probes": two_probes(), "on_drift": "log", "method": "gradcam", **arguments})


def warned(folder: Path, plain: dict[str, Tensor], *callbacks: pl.Callback, **options: Any) -> list[str]:
    """Train, make sure that the training and its checkpoint are what they would have been; the warnings."""
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


def but_of_a_picture(said: list[str]) -> list[str]:
    """The warnings without that of a picture which was on its way to the folder just then, in the background."""
    return [each for each in said if "contact_sheet" not in each]


def steps_in(folder: Path) -> list[int]:
    """Steps in ``history.jsonl``, of which every line must be whole."""
    lines = (folder / "history.jsonl").read_text().splitlines(keepends=True)
    assert all(line.endswith("\n") for line in lines)
    return [json.loads(line)["step"] for line in lines]


def snapshots_in(folder: Path) -> list[int]:
    """Steps of the snapshots in a folder in which everything is a whole file of a look."""
    names = {path.name for path in folder.iterdir()}
    snapshots = sorted(name for name in names if name.startswith("step-"))
    assert names <= {*snapshots, "history.jsonl", "contact_sheet.png"}
    return [Snapshot.load(folder / name).info.step for name in snapshots]


class Disturbed(pl.Callback):
    """Stands before the watcher and does something just before the look at a step, and undoes it just after."""

    def __init__(self, step: int, before: Callable[[], object], after: Callable[[], object]) -> None:
        self.step, self.before, self.after = step, before, after

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step == self.step:
            self.before()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step == self.step:
            self.after()


class TestDisk:
    """Full, read-only, or not what it was: one warning, and what can be written later is."""

    @pytest.fixture
    def small_disk(self, tmp_path: Path) -> Iterator[Path]:
        """A file system with room for about a look."""
        disk = tmp_path / "disk"
        disk.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("mounting a file system is not allowed here")
        yield disk
        subprocess.run(["umount", str(disk)], check=True)

    @pytest.mark.parametrize("left", [0, 1, 3], ids=lambda pages: f"{pages} pages left")
    def test_a_full_disk_and_then_room_again(
        self, left: int, small_disk: Path, plain: dict[str, Tensor], tmp_path: Path
    ) -> None:
        ballast = small_disk / "ballast"

        def fill() -> None:
            with ballast.open("wb", buffering=0) as file:
                with suppress(OSError):
                    while True:
                        file.write(bytes(4096))
                file.truncate(file.tell() - 4096 * left)

        watching = watcher(dirpath=small_disk / "evaluations")
        (said,) = warned(tmp_path, plain, Disturbed(4, fill, ballast.unlink), watching)

        assert "a look could not be written" in said
        assert "No space left on device" in said
        assert watching.monitor is not None
        assert [column.step for column in watching.monitor.history] == STEPS, "the figures are known all the same"
        assert set(snapshots_in(small_disk / "evaluations")) >= {0, 2, 6}
        assert set(steps_in(small_disk / "evaluations")) >= {0, 2, 6}
        assert steps_in(small_disk / "evaluations") == sorted(steps_in(small_disk / "evaluations"))

    @pytest.mark.parametrize("limit", [0, 700, 5000])
    def test_a_file_that_may_not_grow_further_and_then_may(
        self, limit: int, plain: dict[str, Tensor], tmp_path: Path
    ) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        lower = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))  # noqa: E731
        lift = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))  # noqa: E731
        disturbed = Disturbed(4, lower, lift)

        try:
            said = warned(tmp_path, plain, disturbed, watcher(dirpath=tmp_path / "evaluations"), logger=False)
        finally:
            lift()

        assert len(said) == 1
        assert "File too large" in said[0]
        assert set(snapshots_in(tmp_path / "evaluations")) >= {0, 2, 6}
        assert set(steps_in(tmp_path / "evaluations")) >= {0, 2, 6}

    @pytest.mark.parametrize("place", ["/proc/self/fdinfo", "/proc/evaluations"], ids=["folder", "no folder"])
    def test_a_folder_that_nobody_may_write_to(self, place: str, plain: dict[str, Tensor], tmp_path: Path) -> None:
        if not Path("/proc/self").exists():
            pytest.skip("needs a file system that refuses every user")

        (said,) = warned(tmp_path, plain, watcher(dirpath=place))

        assert "a look could not be written" in said
        assert place in said

    def test_a_folder_that_becomes_a_file_and_a_folder_again(self, plain: dict[str, Tensor], tmp_path: Path) -> None:
        evaluations, aside = tmp_path / "evaluations", tmp_path / "aside"

        def replace() -> None:
            evaluations.rename(aside)
            evaluations.write_text("in the way")

        def restore() -> None:
            evaluations.unlink()
            for left in aside.glob(".contact_sheet.png.*"):  # which was being written just when the folder moved
                left.unlink()
            aside.rename(evaluations)

        (said,) = but_of_a_picture(
            warned(tmp_path, plain, Disturbed(4, replace, restore), watcher(dirpath=evaluations))
        )

        assert "a look could not be written" in said
        assert snapshots_in(evaluations) == steps_in(evaluations) == [0, 2, 6]

    def test_a_folder_that_is_deleted_is_made_again(self, plain: dict[str, Tensor], tmp_path: Path) -> None:
        evaluations = tmp_path / "evaluations"
        gone = Disturbed(4, lambda: evaluations.rename(tmp_path / "gone"), lambda: None)

        assert but_of_a_picture(warned(tmp_path, plain, gone, watcher(dirpath=evaluations))) == []
        assert snapshots_in(evaluations) == steps_in(evaluations) == [4, 6]

    def test_a_first_evaluation_that_cannot_be_written_leaves_no_lines_of_another_run(
        self, plain: dict[str, Tensor], tmp_path: Path
    ) -> None:
        evaluations = tmp_path / "evaluations"
        evaluations.mkdir()
        (evaluations / "history.jsonl").write_text('{"step": 99}\n')
        (evaluations / "step-00000000.safetensors").mkdir()

        (said,) = warned(tmp_path, plain, watcher(dirpath=evaluations))

        assert "is not a file" in said
        assert steps_in(evaluations) == [2, 4, 6]

    def test_raises_where_that_was_asked_for(self, tmp_path: Path) -> None:
        (tmp_path / "evaluations").write_text("in the way")
        with pytest.raises(ClipCamError, match="a look could not be written"):
            train(tmp_path, watcher(dirpath=tmp_path / "evaluations", on_error="raise"))


def in_a_tower(fault: Fault, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    # Without validation only a look runs the tower in eval mode.
    module = tiny_module()
    module.model.visual.conv1.register_forward_pre_hook(lambda conv, _: None if conv.training else fault())
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
    """Lightning ignores further Ctrl-C once it was interrupted, for good."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background
    yield
    signal.signal(signal.SIGINT, before)


class TestException:
    """Raised inside a look, by the user's own code."""

    @pytest.mark.parametrize("place", PLACES)
    def test_warns_once_and_the_training_is_as_if_nothing_was_evaluated(
        self, place: Any, plain: dict[str, Tensor], tmp_path: Path
    ) -> None:
        arguments, options = place(Fault(), tmp_path)

        (said,) = warned(tmp_path, plain, watcher(**arguments), **options)

        assert said.startswith("ClipCamCallback: ")
        assert "ZeroDivisionError: on purpose" in said
        assert said.endswith("The training goes on.")

    @pytest.mark.parametrize("place", PLACES)
    def test_is_raised_where_that_was_asked_for(self, place: Any, tmp_path: Path) -> None:
        arguments, options = place(Fault(), tmp_path)

        with pytest.raises(ClipCamError, match="ZeroDivisionError: on purpose"):
            train(tmp_path, watcher(on_error="raise", **arguments), **options)

    @pytest.mark.parametrize("place", PLACES)
    def test_an_interrupt_goes_through(self, place: Any, tmp_path: Path, interrupts: None) -> None:
        arguments, options = place(Fault(KeyboardInterrupt), tmp_path)

        with pytest.raises(SystemExit) as left:
            train(tmp_path, watcher(**arguments), **options)

        assert isinstance(left.value.__context__, KeyboardInterrupt)

    @pytest.mark.parametrize("place", [in_a_writer, in_a_logger])
    def test_of_a_logger_takes_no_file_away(self, place: Any, plain: dict[str, Tensor], tmp_path: Path) -> None:
        arguments, options = place(Fault(), tmp_path)
        warned(tmp_path, plain, watcher(dirpath=tmp_path / "evaluations", **arguments), **options)
        assert snapshots_in(tmp_path / "evaluations") == steps_in(tmp_path / "evaluations") == STEPS

    @pytest.mark.parametrize("place", [in_a_method, in_a_tokenizer])
    def test_that_passes_leaves_one_gap(self, place: Any, plain: dict[str, Tensor], tmp_path: Path) -> None:
        fault = Fault()
        fault.stop()
        arguments, options = place(fault, tmp_path)
        disturbed = Disturbed(2, fault.start, fault.stop)

        (said,) = warned(tmp_path, plain, disturbed, watcher(dirpath=tmp_path / "evaluations", **arguments), **options)

        assert "on purpose, number 1" in said
        assert snapshots_in(tmp_path / "evaluations") == steps_in(tmp_path / "evaluations") == [0, 4, 6]

    def test_is_not_held_on_to(self, plain: dict[str, Tensor], tmp_path: Path) -> None:
        held: list[weakref.ref[Tensor]] = []

        def method(capture: Any) -> Tensor:
            attempt = capture.activations.clone()
            held.append(weakref.ref(attempt))
            raise torch.OutOfMemoryError("CUDA out of memory")

        watching = watcher(method=method)
        warned(tmp_path, plain, watching)
        gc.collect()

        assert held
        assert all(ref() is None for ref in held), "the error's traceback keeps the tensors of the look"


class Poisoned(FineTuning):
    """A weight that has gone bad, in the second epoch and for good."""

    value = float("nan")

    def on_train_epoch_start(self) -> None:
        if self.current_epoch == 1:
            with torch.no_grad():
                self.model.visual.proj.fill_(self.value)


class PoisonedByInfinity(Poisoned):
    value = float("inf")


@pytest.mark.parametrize("kind", [Poisoned, PoisonedByInfinity])
def test_weights_that_are_not_finite_leave_finite_figures_and_a_monitor_that_works(
    kind: type[FineTuning], tmp_path: Path
) -> None:
    unwatched = train(tmp_path / "plain", module=tiny_module(kind))
    watching, stopper = watcher(), EarlyStopping("clipcam/drift", patience=99)

    trainer = train(tmp_path / "watched", watching, stopper, module=tiny_module(kind))

    assert trainer.global_step == STEPS[-1]
    for name, weight in weights_of(unwatched).items():
        assert torch.equal(weight.nan_to_num(7.0), weights_of(trainer)[name].nan_to_num(7.0)), name
    log = events(tmp_path / "watched")
    assert [event.step for event in log.Scalars("clipcam/drift")] == STEPS
    assert [event.value for event in log.Scalars("clipcam/degenerate")] == [0, 0, 2, 2]
    assert [event.value for event in log.Scalars("clipcam/drift")][2:] == [1, 1]
    assert watching.monitor is not None
    assert watching.monitor.last is not None
    assert [probe.degenerate for probe in watching.monitor.last.report.probes] == ["not finite"] * 2
    assert all(torch.tensor(list(watching.monitor.metrics.values())).isfinite())


class TestLoggers:
    """Any logger, none, or several."""

    def test_one_without_images(self, plain: dict[str, Tensor], tmp_path: Path) -> None:
        assert warned(tmp_path, plain, watcher(), logger=CSVLogger(tmp_path, name="", version="run")) == []
        assert snapshots_in(tmp_path / "run" / "clipcam") == STEPS

    def test_none(self, plain: dict[str, Tensor], tmp_path: Path) -> None:
        assert warned(tmp_path, plain, watcher(), logger=False) == []
        assert snapshots_in(tmp_path / "clipcam") == STEPS

    def test_two_get_the_same(self, plain: dict[str, Tensor], tmp_path: Path) -> None:
        loggers = [TensorBoardLogger(tmp_path / each, name="", version="run") for each in "ab"]

        assert warned(tmp_path, plain, watcher(), logger=loggers) == []

        first, second = (events(tmp_path / each) for each in "ab")
        assert first.Tags() == second.Tags()
        for tag in ("clipcam/drift", "clipcam/similarity"):
            values = [[(event.step, event.value) for event in log.Scalars(tag)] for log in (first, second)]
            assert values[0] == values[1]
            assert [step for step, _ in values[0]] == STEPS


class Deleted(pl.Callback):
    """Stands behind the watcher and deletes a file after everyone's setup."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.file.unlink()


@pytest.mark.parametrize("probes", [None, two_probes()], ids=["captured", "given"])
def test_a_baseline_file_that_is_deleted_after_setup_is_still_compared_with(
    probes: Any, plain: dict[str, Tensor], tmp_path: Path
) -> None:
    train(tmp_path / "a", watcher(probes=probes))
    baseline = tmp_path / "a" / "run" / "clipcam" / "step-00000006.safetensors"
    maps, watching = Snapshot.load(baseline).maps, watcher(probes=probes, baseline=baseline)

    assert warned(tmp_path / "b", plain, watching, Deleted(baseline)) == []

    assert watching.monitor is not None
    assert torch.equal(watching.monitor.baseline.maps, maps)  # type: ignore[union-attr]
    assert [event.step for event in events(tmp_path / "b").Scalars("clipcam/drift")] == STEPS
    train(tmp_path / "c", watching, max_epochs=1)  # nor does the next fit ask for it


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run with captured probes, after two of three epochs."""
    folder = tmp_path_factory.mktemp("two epochs")
    train(folder, watcher(probes=None), max_epochs=2)
    return folder / "kept" / "last.ckpt"


DAMAGES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "an older version without looks": (lambda state: state.pop("evaluations"), "KeyError: 'looks'"),
    "a newer version": (lambda state: state["monitor"].update(version=2), "format version 2, this package reads 1"),
    "a newer version with more in the history": (
        lambda state: state["monitor"]["history"][0].update(mood="good"),
        "no whole history of looks: TypeError.*mood",
    ),
    "no monitor": (lambda state: state.pop("monitor"), "KeyError: 'monitor'"),
    "no history": (lambda state: state["monitor"].pop("history"), "no whole history.*'history'"),
    "a history of another length": (
        lambda state: state["monitor"]["history"][1].update(maps=torch.zeros(5, 4, 4)),
        "not as many maps as there are probes",
    ),
    "figures of another kind": (lambda state: state["monitor"].update(metrics=[1, 2]), "no whole history"),
    "a cut baseline": (
        lambda state: state["monitor"]["baseline"]["tensors"].update(maps=torch.zeros(1, 4, 4)),
        "not equally many",
    ),
    "no probes": (lambda state: state.pop("probes"), "KeyError: 'probes'"),
    "a number of looks that is none": (lambda state: state.update(evaluations="many"), "ValueError"),
}


class TestResume:
    """From a checkpoint that does not fit any more, or is damaged: said once, and a new baseline."""

    @staticmethod
    def resumed(folder: Path, plain: dict[str, Tensor], watching: ClipCamCallback) -> list[str]:
        return warned(folder, plain, watching, ckpt_path=folder / "kept" / "last.ckpt")

    def test_with_a_probe_folder_that_changed(self, plain: dict[str, Tensor], tmp_path: Path) -> None:
        probes = tmp_path / "probes"
        probes.mkdir()
        for i, image in enumerate(draw_scenes(3, seed=9).images):
            Image.fromarray(image).save(probes / f"{i}.png")
        (probes / "probes.csv").write_text("image,prompt\n0.png,a red star\n1.png,a blue star\n")
        first = watcher(probes=probes)
        train(tmp_path, first, max_epochs=2)
        (probes / "2.png").replace(probes / "1.png")
        again = watcher(probes=probes)

        (said,) = self.resumed(tmp_path, plain, again)

        assert first.monitor is not None
        assert again.monitor is not None
        was, now = first.monitor.probes.digest[:12], again.monitor.probes.digest[:12]
        assert (
            f"the checkpoint was made with other probes (digest {was}, these have {now}); use the same images" in said
        )
        assert [column.step for column in again.monitor.history] == [4, 6]
        assert again.monitor.baseline is not None
        assert again.monitor.baseline.info.step == 4
        assert steps_in(tmp_path / "run" / "clipcam") == [4, 6]

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
        (state,) = (state for key, state in content["callbacks"].items() if key.startswith("ClipCamCallback"))
        damage(state)
        file.parent.mkdir()
        torch.save(content, file)

        with pytest.raises(ClipCamError, match=words):
            train(tmp_path, watcher(probes=None, on_error="raise"), ckpt_path=file)

        again = watcher(probes=None)
        (said,) = self.resumed(tmp_path, plain, again)
        assert re.search(f"baseline and history are not used: .*{words}", said)
        assert again.monitor is not None
        assert [column.step for column in again.monitor.history] == [4, 6]
        assert steps_in(tmp_path / "run" / "clipcam") == [4, 6]


def test_nothing_depends_on_a_clock_that_jumps_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tmp_path / "steady", watcher())
    backwards = iter(range(2_000_000_000, 0, -1_000_000))
    monkeypatch.setattr(time, "time", lambda: next(backwards))

    train(tmp_path / "jumping", watcher())

    monkeypatch.undo()
    steady, jumping = (tmp_path / each / "run" / "clipcam" for each in ("steady", "jumping"))
    assert {path.name: path.read_bytes() for path in steady.iterdir()} == {
        path.name: path.read_bytes() for path in jumping.iterdir()
    }
    values = [
        [(event.step, event.value) for event in events(tmp_path / each).Scalars("clipcam/drift")]
        for each in ("steady", "jumping")
    ]
    assert values[0] == values[1]


class Breaking(Pairs):
    """Data whose third batch cannot be had."""

    def __getitem__(self, i: int) -> Any:
        if i == 8:
            raise OSError("the share is gone")
        return super().__getitem__(i)


class Interrupted(FineTuning):
    """Somebody presses Ctrl-C in the first step of the second epoch."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if self.trainer.training and self.current_epoch == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize(
    ("kind", "data", "error", "steps"),
    [(FineTuning, Breaking(count=12), OSError, [0]), (Interrupted, None, SystemExit, [0, 2])],
    ids=["data that breaks in mid-epoch", "ctrl-C in a step"],
)
def test_a_training_that_ends_early_leaves_whole_files_and_a_callback_that_let_go(
    kind: Any, data: Any, error: Any, steps: list[int], tmp_path: Path, interrupts: None
) -> None:
    watching, module = watcher(), tiny_module(kind)
    with pytest.raises(error):
        train(tmp_path / "a", watching, module=module, data=data)

    evaluations = tmp_path / "a" / "run" / "clipcam"
    assert snapshots_in(evaluations) == steps_in(evaluations) == steps
    assert [event.step for event in events(tmp_path / "a").Scalars("clipcam/drift")] == steps
    train(tmp_path / "b", watching)
    assert watching.monitor is not None
    assert [column.step for column in watching.monitor.history] == [*steps, 2, 4, 6]
    assert snapshots_in(tmp_path / "b" / "run" / "clipcam") == STEPS[1:]


@pytest.mark.parametrize(("room", "taken"), [(1, STEPS), (0, [])], ids=["for one image at a time", "for none"])
def test_a_evaluation_that_does_not_fit_into_memory_takes_fewer_images_at_a_time(
    room: int, taken: list[int], plain: dict[str, Tensor], tmp_path: Path
) -> None:
    def hungry(capture: Capture) -> Tensor:
        if len(capture.activations) > room:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return METHODS["gradcam"].function(capture)

    said = warned(tmp_path, plain, watcher(method=hungry, dirpath=tmp_path / "evaluations"))

    assert len(said) == (0 if taken else 1)
    assert all("not enough memory to explain even one image at a time" in each for each in said)
    assert (snapshots_in(tmp_path / "evaluations") if taken else []) == taken


def test_a_callback_holds_no_model_after_a_training_that_failed(tmp_path: Path) -> None:
    watching, module = watcher(), tiny_module()
    with pytest.raises(OSError, match="the share is gone"):
        train(tmp_path, watching, module=module, data=Breaking(count=12))

    model = weakref.ref(module.model)
    del module, watching.log, watching.log_dict  # these two are Lightning's own, which it gives every callback
    gc.collect()

    assert model() is None
