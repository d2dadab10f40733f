"""Short trainings under every argument of the Trainer and every global setting of torch, with and without the callback.

``test_bit_identity.py`` covers more ways to train, with fewer arguments.
"""

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    DeviceStatsMonitor,
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
    OnExceptionCheckpoint,
    StochasticWeightAveraging,
    Timer,
)
from lightning.pytorch.callbacks.throughput_monitor import ThroughputMonitor
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.plugins import AsyncCheckpointIO, MixedPrecision
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.profilers import PyTorchProfiler
from torch import Tensor, distributed
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.module import register_module_forward_hook, register_module_full_backward_hook
from torch.overrides import TorchFunctionMode
from torch.testing import assert_close
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

import clipcam_lightning
from clipcam_lightning import ClipCamCallback, Probe, ProbeSet, Snapshot
from clipcam_lightning.shapes_world.scenes import draw_scenes
from tests.support.trainings import SceneDataset, Training, Tuning

# The run-time checks of shapes draw random numbers.
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("unchecked")]

PACKAGE = Path(clipcam_lightning.__file__).parent
FEW = {"limit_train_batches": 2, "limit_val_batches": 1}


class EpochMetrics(pl.Callback):
    """Records the metrics that another callback can read at the end of each epoch."""

    def __init__(self) -> None:
        self.epochs: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        metrics = trainer.callback_metrics
        self.epochs.append({name: float(value) for name, value in metrics.items() if name.startswith("clipcam/")})


@dataclass(frozen=True)
class Mode:
    """A way to train.

    Attributes:
        trainer: arguments of the Trainer.
        steps: of the evaluations.
        around: entered around the whole training.
        options: of the :class:`Training`.
        monitors: makes callbacks that read the metrics.
    """

    trainer: dict[str, Any] = field(default_factory=dict)
    steps: Sequence[int] = (0, 2, 4)
    around: Callable[[], AbstractContextManager[Any]] = nullcontext
    options: dict[str, Any] = field(default_factory=dict)
    monitors: Callable[[], Sequence[pl.Callback]] = lambda: [EarlyStopping("clipcam/drift", patience=99)]


def run_twice(mode: Mode, folder: Path) -> ClipCamCallback:
    """Train without and with the callback, and check that both trainings are equal and the evaluations are complete."""
    training = Training(**{**mode.options, "trainer": {**FEW, **mode.trainer}})
    callback = make_callback()
    recorder = EpochMetrics()
    with mode.around():
        plain = training.run(folder / "plain")
    with mode.around():
        monitored = training.run(folder / "monitored", callback, recorder, *mode.monitors())
    assert monitored == plain
    assert [entry.step for entry in callback.history] == list(mode.steps)
    assert all(math.isfinite(value) for epoch in recorder.epochs for value in epoch.values())
    if mode.steps:
        assert all("clipcam/drift" in epoch for epoch in recorder.epochs)
        assert recorder.epochs[-1]["clipcam/drift"] > 0
    return callback


TRAINER: dict[str, Mode] = {
    "accelerator, devices and strategy": Mode({"accelerator": "auto", "devices": 1, "strategy": "auto"}),
    "num_nodes": Mode({"num_nodes": 1}),
    "32-true": Mode({"precision": "32-true"}),
    "64-true": Mode({"precision": "64-true"}),
    "16-true": Mode({"precision": "16-true"}),
    "logger=True": Mode({"logger": True}),
    "logger=False": Mode({"logger": False}),
    "two loggers": Mode({"logger": [CSVLogger("csv"), TensorBoardLogger("board")]}),
    "fast_dev_run=2": Mode({"fast_dev_run": 2}, steps=()),
    "min_epochs": Mode({"min_epochs": 3, "max_epochs": 3}, steps=(0, 2, 4, 6)),
    "min_steps": Mode({"min_steps": 3, "max_epochs": 1}, steps=(0, 2)),
    "max_steps": Mode({"max_steps": 3, "max_epochs": -1}, steps=(0, 2, 3)),
    "max_steps=0": Mode({"max_steps": 0}, steps=()),
    "max_epochs=0": Mode({"max_epochs": 0}, steps=()),
    "max_time": Mode({"max_time": {"hours": 1}}),
    "max_time that is over at once": Mode({"max_time": timedelta(0)}, steps=()),
    "fractions of the batches": Mode({"limit_train_batches": 0.4, "limit_val_batches": 0.2}),
    "no batches of training": Mode({"limit_train_batches": 0}, steps=(), monitors=list),
    "no batches of validation": Mode({"limit_val_batches": 0}),
    "no batches of test and prediction": Mode({"limit_test_batches": 0, "limit_predict_batches": 0}),
    "val_check_interval across epochs": Mode(
        {"val_check_interval": 3, "check_val_every_n_epoch": None, "max_epochs": 3}, steps=(0, 2, 3, 4, 6)
    ),
    # EarlyStopping cannot be used with it.
    "val_check_interval as a time": Mode({"val_check_interval": "00:00:00:00"}, steps=(0, 1, 2, 3, 4), monitors=list),
    "num_sanity_val_steps=-1": Mode({"num_sanity_val_steps": -1}),
    "log_every_n_steps=0": Mode({"log_every_n_steps": 0}),
    "checkpoints": Mode({"enable_checkpointing": True}),
    "progress bar and model summary": Mode({"enable_progress_bar": True, "enable_model_summary": True}),
    "deterministic=True": Mode({"deterministic": True}),
    "deterministic='warn'": Mode({"deterministic": "warn"}),
    "benchmark": Mode({"benchmark": True}),
    "inference_mode=False": Mode({"inference_mode": False}),
    "use_distributed_sampler=False": Mode({"use_distributed_sampler": False}),
    "simple profiler": Mode({"profiler": "simple"}),
    "advanced profiler": Mode({"profiler": "advanced"}),
    "pytorch profiler": Mode({"profiler": PyTorchProfiler(schedule=None)}),
    "detect_anomaly": Mode({"detect_anomaly": True}),
    "AsyncCheckpointIO": Mode({"plugins": AsyncCheckpointIO(), "enable_checkpointing": True}),
    "a precision plugin": Mode({"plugins": MixedPrecision("bf16-mixed", "cpu")}),
    "a cluster environment": Mode({"plugins": [LightningEnvironment()]}),
    "sync_batchnorm": Mode({"sync_batchnorm": True}),
    "reload_dataloaders_every_n_epochs": Mode({"reload_dataloaders_every_n_epochs": 1}),
    "a relative default_root_dir with blanks": Mode({"default_root_dir": "my runs/of today", "logger": False}),
    "model_registry": Mode({"model_registry": "team/model"}),
    "enable_autolog_hparams=False": Mode({"enable_autolog_hparams": False}),
    "accumulate_grad_batches": Mode({"accumulate_grad_batches": 3}, steps=(0, 1, 2)),
}


@pytest.mark.parametrize("mode", TRAINER.values(), ids=TRAINER)
def test_a_training_is_the_same_and_is_evaluated_under_an_argument_of_the_trainer(
    mode: Mode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run_twice(mode, tmp_path)


class IdleFunctionMode(TorchFunctionMode):
    """Calls each function of torch as it is."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class IdleDispatchMode(TorchDispatchMode):
    """Calls each operator of torch as it is."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@contextmanager
def set_(setter: Callable[..., Any], value: Any, before: Any) -> Iterator[None]:
    setter(value)
    try:
        yield
    finally:
        setter(before)


@contextmanager
def hooked(register: Any, hook: Any) -> Iterator[None]:
    handle = register(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def deterministic(warn_only: bool) -> Iterator[None]:
    torch.use_deterministic_algorithms(True, warn_only=warn_only)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def default_dtype(dtype: torch.dtype) -> Mode:
    around = lambda: set_(lambda _: torch.set_default_dtype(torch.float32), None, None)  # noqa: E731
    return Mode(around=around, options={"change": lambda _: torch.set_default_dtype(dtype)})


TORCH: dict[str, Mode] = {
    "default dtype float64": default_dtype(torch.float64),
    "default dtype bfloat16": default_dtype(torch.bfloat16),
    "default device": Mode(around=lambda: set_(torch.set_default_device, "cpu", None)),
    "a device as a context": Mode(around=lambda: torch.device("cpu")),
    "no_grad": Mode(around=torch.no_grad),
    "deterministic algorithms": Mode(around=lambda: deterministic(False)),
    "deterministic algorithms, warn_only": Mode(around=lambda: deterministic(True)),
    "float32 matmul precision": Mode(around=lambda: set_(torch.set_float32_matmul_precision, "medium", "highest")),
    "one thread": Mode(around=lambda: set_(torch.set_num_threads, 1, torch.get_num_threads())),
    "warnings each time": Mode(around=lambda: set_(torch.set_warn_always, True, False)),
    "autograd in one thread": Mode(around=lambda: torch.autograd.set_multithreading_enabled(False)),
    "anomalies detected": Mode(around=lambda: torch.autograd.set_detect_anomaly(True)),
    "saved tensors on the CPU": Mode(around=torch.autograd.graph.save_on_cpu),
    "saved tensors that may be changed": Mode(around=torch.autograd.graph.allow_mutation_on_saved_tensors),
    "forward-mode differentiation": Mode(around=torch.autograd.forward_ad.dual_level),
    "no mkldnn": Mode(around=lambda: torch.backends.mkldnn.flags(enabled=False)),
    "no fast path of attention": Mode(around=lambda: set_(torch.backends.mha.set_fastpath_enabled, False, True)),
    "no optimized einsum": Mode(around=lambda: torch.backends.opt_einsum.flags(enabled=False)),
    "attention by formula": Mode(around=lambda: sdpa_kernel(SDPBackend.MATH)),
    "attention without the formula": Mode(around=lambda: set_(torch.backends.cuda.enable_math_sdp, False, True)),
    "flash attention alone": Mode(around=lambda: sdpa_kernel(SDPBackend.FLASH_ATTENTION)),
    "no flash attention": Mode(around=lambda: set_(torch.backends.cuda.enable_flash_sdp, False, True)),
    "no efficient attention": Mode(around=lambda: set_(torch.backends.cuda.enable_mem_efficient_sdp, False, True)),
    "denormals flushed": Mode(around=lambda: set_(torch.set_flush_denormal, True, False)),
    "print options": Mode(
        around=lambda: set_(lambda profile: torch.set_printoptions(profile=profile, sci_mode=None), "short", "default")
    ),
    "errors of numpy": Mode(around=lambda: np.errstate(all="raise")),
    "a function mode": Mode(around=IdleFunctionMode),
    "a dispatch mode": Mode(around=IdleDispatchMode),
    "FLOPs counted": Mode(around=lambda: FlopCounterMode(display=False)),
    "a profiler": Mode(around=torch.profiler.profile),
    "eager code forced": Mode(around=lambda: torch.compiler.set_stance("force_eager")),
    "a forward hook of all modules": Mode(around=lambda: hooked(register_module_forward_hook, lambda *_: None)),
    "a backward hook of all modules": Mode(around=lambda: hooked(register_module_full_backward_hook, lambda *_: None)),
    "parameters swapped on conversion": Mode(
        {"precision": "64-true"},
        around=lambda: set_(torch.__future__.set_swap_module_params_on_conversion, True, False),
    ),
    "parameters overwritten on conversion": Mode(
        {"precision": "64-true"},
        around=lambda: set_(torch.__future__.set_overwrite_module_params_on_conversion, True, False),
    ),
}


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """The baseline of a training under torch's own settings."""
    callback = make_callback()
    Training(trainer=FEW).run(tmp_path_factory.mktemp("usual"), callback)
    return baseline_of(callback)


# torch warns of hooks on modules whose input has no gradient, and of a setting for other GPUs that it makes by itself.
@pytest.mark.filterwarnings("ignore:Full backward hook is firing", "ignore:TF32 acceleration on top of oneDNN")
@pytest.mark.parametrize("mode", TORCH.values(), ids=TORCH)
def test_a_training_is_the_same_and_is_evaluated_under_a_global_setting_of_torch(
    mode: Mode, usual: Snapshot, tmp_path: Path
) -> None:
    baseline = baseline_of(run_twice(mode, tmp_path))

    assert usual.noise_floor is not None
    for now, before in ((baseline.maps, usual.maps), (baseline.noise_floor, usual.noise_floor)):
        assert_close(now, before, atol=1e-4, rtol=1e-3)


class FactoryCalls(TorchFunctionMode):
    """Records the lines of the package that make a tensor of the default device or the default type.

    Attributes:
        lines: file and number.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lines: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        result = func(*args, **options)
        caller = sys._getframe(1)
        file = Path(caller.f_code.co_filename)
        if func in _device_constructors() and PACKAGE in file.parents and "shapes_world" not in file.parts:
            has_own_type = "dtype" in options or func is torch.as_tensor or not result.is_floating_point()
            if options.get("device") is None or not has_own_type:
                self.lines.add(f"{file.relative_to(PACKAGE)}:{caller.f_lineno}")
        return result


@pytest.mark.parametrize("method", ["decomposition", "occlusion", "gradcam"])
def test_each_tensor_of_the_package_has_a_device_and_a_type_of_its_own(method: str, tmp_path: Path) -> None:
    calls = FactoryCalls()
    scenes = draw_scenes(2, seed=9)
    probes = zip(scenes.images, scenes.captions, scenes.masks[:, 0], strict=True)
    given = ProbeSet(Probe(image, caption, mask=mask) for image, caption, mask in probes)

    with calls:
        Training(trainer=FEW).run(tmp_path, make_callback(probes=given, method=method))

    assert calls.lines == set(), "under torch.set_default_device('cuda') these would be on the GPU"


# Lightning warns that self.log() of the module has no effect.
@pytest.mark.filterwarnings("ignore:You are trying to `self.log:UserWarning")
def test_with_barebones_there_is_one_line_and_no_evaluation(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"barebones": True, "logger": False, "log_every_n_steps": 0}
    mode = Mode(options, steps=(), monitors=list)

    run_twice(mode, tmp_path)

    (line,) = (each.message for each in caplog.records if each.message.startswith("ClipCamCallback"))
    assert line == "ClipCamCallback: no evaluations, because barebones=True measures the bare training."
    assert not list(tmp_path.rglob("clipcam*"))


class Tunable(Tuning):
    """A module whose learning rate and batch size can be found.

    Attributes:
        flops_per_batch: for ThroughputMonitor.
    """

    lr, batch_size, flops_per_batch = 1e-3, 2, 1

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), self.lr)

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(SceneDataset(32, seed=0), self.batch_size)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(SceneDataset(32, seed=1), self.batch_size)


CALLBACKS: dict[str, Mode] = {
    "SWA": Mode(options={"callbacks": lambda: [StochasticWeightAveraging(1e-3, swa_epoch_start=1)]}),
    "SWA after it": Mode(options={"later_callbacks": lambda: [StochasticWeightAveraging(1e-3, swa_epoch_start=1)]}),
    "accumulation scheduler": Mode(
        options={"callbacks": lambda: [GradientAccumulationScheduler({1: 2})]}, steps=(0, 2, 3)
    ),
    "learning rate finder": Mode(
        options={"later_callbacks": lambda: [LearningRateFinder(num_training_steps=4, min_lr=1e-5, max_lr=1e-4)]}
    ),
    "timer": Mode(options={"callbacks": lambda: [Timer(timedelta(hours=1))]}),
    "throughput": Mode(
        {"logger": TensorBoardLogger("board")},  # what it logs are times, which are never equal
        options={"callbacks": lambda: [ThroughputMonitor(lambda batch: len(batch[0]), window_size=2)]},
    ),
    "learning rate monitor": Mode(options={"callbacks": lambda: [LearningRateMonitor()]}),
    "device statistics": Mode(options={"callbacks": lambda: [DeviceStatsMonitor(cpu_stats=False)]}),
    "checkpoint on an exception": Mode(
        {"enable_checkpointing": True}, options={"callbacks": lambda: [OnExceptionCheckpoint("exceptions")]}
    ),
}


# Lightning warns that with OnExceptionCheckpoint it looks for a checkpoint to resume from.
@pytest.mark.filterwarnings(
    r"ignore:`?\.fit\(ckpt_path=(None\)` was called without a model|.last.\) is set, but there is no)"
)
@pytest.mark.parametrize("mode", CALLBACKS.values(), ids=CALLBACKS)
def test_a_training_is_the_same_and_is_evaluated_beside_another_callback(
    mode: Mode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run_twice(replace(mode, options={"module": Tunable, **mode.options}), tmp_path)


def test_a_training_is_the_same_and_is_evaluated_beside_the_batch_size_finder(tmp_path: Path) -> None:
    def run(folder: Path, *callbacks: pl.Callback) -> dict[str, Tensor]:
        pl.seed_everything(11, verbose=False)
        finder = BatchSizeFinder(steps_per_trial=1, init_val=2, max_trials=2)
        module = Tunable()
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=2,
            callbacks=[*callbacks, finder],
            logger=False,
            default_root_dir=folder,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module)
        assert module.batch_size == 4
        return module.state_dict()

    callback = make_callback()
    plain, monitored = run(tmp_path / "plain"), run(tmp_path / "monitored", callback)

    assert all(torch.equal(plain[name], monitored[name]) for name in plain)
    assert [entry.step for entry in callback.history] == [0, 3, 6]


def test_monitors_that_are_listed_first_read_the_metrics_of_their_epoch(tmp_path: Path) -> None:
    keeper = ModelCheckpoint(tmp_path / "kept", monitor="clipcam/drift", filename="{step}", save_top_k=-1)
    stopper = EarlyStopping("clipcam/drift", patience=99)
    callback = make_callback()

    Training(trainer={**FEW, "enable_checkpointing": True}).run(tmp_path, keeper, stopper, callback)

    assert callback.report is not None
    assert {file.name for file in (tmp_path / "kept").iterdir()} == {"step=2.ckpt", "step=4.ckpt"}
    assert float(keeper.best_k_models[str(tmp_path / "kept" / "step=4.ckpt")]) == pytest.approx(callback.report.drift)
    assert float(stopper.best_score) <= callback.report.drift


@pytest.fixture
def process_group() -> Iterator[None]:
    yield
    if distributed.is_initialized():
        distributed.destroy_process_group()


# Lightning recommends sync_dist=True for what the module logs.
@pytest.mark.filterwarnings("ignore:It is recommended to use `self.log")
def test_a_training_is_the_same_and_is_evaluated_under_ddp_on_one_device(tmp_path: Path, process_group: None) -> None:
    run_twice(Mode({"strategy": "ddp_find_unused_parameters_true", "devices": 1, "sync_batchnorm": True}), tmp_path)


def make_callback(**arguments: Any) -> ClipCamCallback:
    defaults = {"on_drift": "log", "on_error": "raise", "method": "gradcam", "num_probes": 2}
    return ClipCamCallback(**{**defaults, **arguments})


def baseline_of(callback: ClipCamCallback) -> Snapshot:
    assert callback.monitor is not None
    assert callback.monitor.baseline is not None
    return callback.monitor.baseline
