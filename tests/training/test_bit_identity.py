"""A training is bit-identical with and without the callback, in all the ways that users train."""

import random
import shutil
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from jaxtyping import Float
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelPruning, WeightAveraging
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from clipcam_lightning import ClipCamCallback, ClipCamWarning, Snapshot
from clipcam_lightning.cam.capture import ScoreCapture
from clipcam_lightning.cam.methods import Method
from clipcam_lightning.cam.targets import Contrast, LogSoftmax
from clipcam_lightning.monitoring.evaluation import Evaluation, Sink
from clipcam_lightning.shapes_world.scenes import draw_scenes
from tests.support.suspicion import always_suspicious
from tests.support.trainings import Contrastive, Training, Tuning, digests

pytestmark = [
    pytest.mark.slow,
    # torch.compile reads .grad, and hides the warning in a way that does not work if warnings are errors.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
    pytest.mark.filterwarnings("ignore:Found . module.* in eval mode"),  # on purpose, where statistics are frozen
]

SCENES = draw_scenes(2, seed=9)
PROBES = list(zip(SCENES.images, SCENES.captions, strict=True))


# Modules that users train.


class ManualOptimization(Tuning):
    """A module that steps two optimizers itself."""

    def __init__(self, tower: str) -> None:
        super().__init__(tower)
        self.automatic_optimization = False

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()
        return loss

    def configure_optimizers(self) -> Any:
        visual, textual = self.clip.visual.parameters(), self.clip.transformer.parameters()
        return [torch.optim.SGD(visual, 0.01, momentum=0.9), torch.optim.AdamW(textual, 3e-3)]


def dropout(module: Contrastive) -> None:
    for block in module.clip.visual.transformer.resblocks:
        block.mlp.add_module("drop", nn.Dropout(0.2))
        block.attn.dropout = 0.1


def batchnorm(module: Contrastive) -> None:
    module.extra = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3))
    module.clip.visual.conv1 = nn.Sequential(nn.BatchNorm2d(3), module.clip.visual.conv1)


def frozen_statistics(module: Contrastive) -> None:
    """Put two of three BatchNorms into eval mode while the rest trains."""
    batchnorm(module)
    module.extra[1].eval()
    module.clip.visual.conv1[0].eval()


class Counting(nn.Module):
    """Counts its forwards, of training and of evaluation, remembers the last one, draws noise, and depends on all."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.last: list[Tensor] = []
        self.generators = {"noise": torch.Generator().manual_seed(1)}

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        images = images + torch.randn(images.shape, generator=self.generators["noise"]) / 100
        before = self.last[-1].mean() if self.last else 0.0
        self.last = [images.detach()]
        return images * (1 + self.calls / 100) + before / 10


def counting(module: Contrastive) -> None:
    module.clip.visual.conv1 = nn.Sequential(Counting(), module.clip.visual.conv1)


def spectral_norm(module: Contrastive) -> None:
    """Let each read of a weight in train mode be a step of a power iteration."""
    module.clip.visual.conv1 = nn.Sequential(nn.utils.parametrizations.spectral_norm(module.clip.visual.conv1))
    for block in module.clip.visual.transformer.resblocks:
        nn.utils.parametrizations.spectral_norm(block.mlp.c_fc)


class MlpPruning(ModelPruning):
    """Prunes in each epoch the weights that the last forward computed."""

    def __init__(self) -> None:
        super().__init__(
            "l1_unstructured",
            amount=0.5,
            use_global_unstructured=True,
            parameter_names=["weight"],
            make_pruning_permanent=False,
        )

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        blocks = pl_module.clip.visual.transformer.resblocks
        self._parameters_to_prune = [
            (layer, "weight") for block in blocks for layer in (block.mlp.c_fc, block.mlp.c_proj)
        ]
        super().setup(trainer, pl_module, stage)


def frozen_tower(module: Contrastive) -> None:
    module.clip.visual.requires_grad_(False)


def lora(module: Contrastive) -> None:
    module.clip = get_peft_model(module.clip, LoraConfig(target_modules=["attn", "c_fc"], r=2, lora_dropout=0.0))


def checkpointed(module: Contrastive) -> None:
    dropout(module)
    module.clip.set_grad_checkpointing(True)


def compiled_whole(module: Contrastive) -> Any:
    return torch.compile(module, backend="eager")


def compiled_inside(module: Contrastive) -> None:
    module.clip = torch.compile(module.clip, backend="eager")


def compiled_in_place(module: Contrastive) -> None:
    module.clip.compile(backend="eager")


def compiled_method(module: Contrastive) -> None:
    module.clip.encode_image = torch.compile(module.clip.encode_image, backend="aot_eager")


def compiled_by_default(module: Contrastive) -> None:
    module.clip.visual.transformer.resblocks[-1].compile()


# Evaluations of all kinds.


class DrawingSink(Sink):
    """Draws from the generators of torch, numpy and Python."""

    def write(self, evaluation: Evaluation) -> None:
        torch.rand(3)
        np.random.rand()
        random.random()


def random_masks(capture: ScoreCapture) -> Float[Tensor, "b p h w"]:
    """Weigh each cell by the scores under masks that are drawn from the generators of torch, numpy and Python."""
    grid = capture.activations.shape[-2:]
    drawn = torch.rand(20, *grid) + float(np.random.rand()) + random.random() > 1.5
    masks = drawn.to(capture.images)

    def masked(image: int, rows: slice) -> Tensor:
        visible = nn.functional.interpolate(masks[rows, None], capture.images.shape[-2:])
        return capture.images[image] * visible

    return torch.einsum("bkp,khw->bphw", capture.score_variants(masked, len(masks)).abs(), masks)


@dataclass(frozen=True)
class Case:
    """A training with the callback.

    Attributes:
        training: without the callback.
        arguments: of the callback.
        evaluations: how many are expected; by default before the first step and after each of two epochs.
        compiles: whether torch compiles something in it.
    """

    training: Training = field(default_factory=Training)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    evaluations: int = 3
    compiles: bool = False


HOOKED = {"method": "hirescam"}  # it reads the model through a hook, which compiled code may skip


def average(kind: type[WeightAveraging], where: str, **options: Any) -> Training:
    return Training(change=batchnorm, **{where: lambda: [kind(**options)]})


CASES: dict[str, Case] = {
    "default": Case(),
    "resnet": Case(Training(tower="resnet")),
    # precision and optimisation
    "bf16-mixed": Case(Training(trainer={"precision": "bf16-mixed"})),
    "bf16-true": Case(Training(trainer={"precision": "bf16-true"})),
    "accumulated gradients, validated in between": Case(
        Training(trainer={"accumulate_grad_batches": 3, "val_check_interval": 4}), evaluations=5
    ),
    "gradients clipped by norm": Case(Training(trainer={"gradient_clip_val": 0.1})),
    "gradients clipped by value": Case(
        Training(trainer={"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"})
    ),
    "manual optimization": Case(Training(module=ManualOptimization)),
    # modules
    "dropout": Case(Training(change=dropout)),
    "batchnorm": Case(Training(change=batchnorm)),
    "batchnorm frozen by the user": Case(Training(change=frozen_statistics, validate=False)),
    "forwards that count themselves": Case(Training(change=counting)),
    "spectral norm": Case(Training(change=spectral_norm, validate=False)),
    "pruning after the callback": Case(
        Training(
            later_callbacks=lambda: [MlpPruning()], validate=False, trainer={"max_epochs": 3, "limit_train_batches": 3}
        ),
        evaluations=4,
    ),
    "frozen image tower": Case(Training(change=frozen_tower)),
    # PEFT merges and unmerges in every forward, which leaves rounding errors. Those of a validation would hide those of
    # the last evaluation, since both are the same.
    "LoRA": Case(Training(change=lora, validate=False)),
    "gradient checkpointing": Case(Training(change=checkpointed)),
    "torch.compile(LightningModule)": Case(Training(change=compiled_whole), HOOKED, compiles=True),
    "torch.compile(clip)": Case(Training(change=compiled_inside), HOOKED, compiles=True),
    "clip.compile()": Case(Training(change=compiled_in_place), HOOKED, compiles=True),
    "block.compile(), by the default backend": Case(
        Training(change=compiled_by_default, validate=False), HOOKED, compiles=True
    ),
    "compiled encode_image": Case(Training(change=compiled_method, validate=False), HOOKED, compiles=True),
    # averaged weights
    "weight averaging before the callback": Case(average(WeightAveraging, "callbacks", use_buffers=False)),
    "weight averaging after the callback": Case(average(WeightAveraging, "later_callbacks", use_buffers=False)),
    "EMA before the callback": Case(average(EMAWeightAveraging, "callbacks", decay=0.8)),
    "EMA after the callback": Case(average(EMAWeightAveraging, "later_callbacks", decay=0.8)),
    # loops
    "two validations per epoch": Case(Training(trainer={"val_check_interval": 0.5}), evaluations=7),
    "validation every second epoch": Case(Training(trainer={"check_val_every_n_epoch": 2})),
    "no validation": Case(Training(validate=False)),
    "no sanity check": Case(Training(trainer={"num_sanity_val_steps": 0})),
    "overfitted batches": Case(Training(trainer={"overfit_batches": 2}, loader={"shuffle": False})),
    "fewer batches": Case(Training(trainer={"limit_train_batches": 2, "limit_val_batches": 1})),
    "validation switched off": Case(Training(trainer={"limit_val_batches": 0})),
    "fast_dev_run": Case(Training(trainer={"fast_dev_run": True}), evaluations=0),
    # data
    "a worker": Case(Training(loader={"num_workers": 1}, scenes={"augmented": True})),
    "a persistent worker": Case(
        Training(loader={"num_workers": 1, "persistent_workers": True}, scenes={"augmented": True})
    ),
    "augmentation in the main process": Case(Training(scenes={"augmented": True})),
    "a stream": Case(Training(stream=True)),
    # evaluations
    "a method with gradients": Case(arguments={"method": "layercam", "layers": (-2, -1)}),
    "a method with attention": Case(arguments={"method": "gae"}),
    "a method with curvature": Case(arguments={"method": "shapleycam"}),
    "a perturbation-based method": Case(arguments={"method": "occlusion"}),
    "a sink that draws random numbers": Case(arguments={"sinks": [DrawingSink()]}),
    "a method that draws random numbers": Case(arguments={"method": Method(random_masks, ScoreCapture)}),
    "every step, mid-accumulation": Case(
        Training(change=dropout, trainer={"accumulate_grad_batches": 2}), {"every_n_train_steps": 1}, evaluations=7
    ),
    "negatives": Case(arguments={"target": Contrast(negatives=("a blue square",))}),
    "probes of the user": Case(arguments={"probes": PROBES, "target": LogSoftmax(negatives=("a blue square",))}),
    "an alarm": Case(arguments={"max_drift": 0.0, "on_drift": "warn"}),
    "previous evaluation as baseline": Case(arguments={"baseline": "previous"}),
    # the other Lightning package
    "pytorch_lightning": Case(Training(package="pytorch_lightning", change=batchnorm)),
}


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=name, marks=pytest.mark.forks if "num_workers" in case.training.loader else ())
        for name, case in CASES.items()
    ],
)
def test_a_training_is_bit_identical_with_and_without_the_callback(case: Case, tmp_path: Path, unchecked: None) -> None:
    if case.training.change is compiled_by_default and not shutil.which("g++"):
        pytest.skip("no C++ compiler, which torch.compile needs by default")
    callback = make_callback(**case.arguments)

    plain = case.training.run(tmp_path / "plain")
    with pytest.warns(ClipCamWarning, match="attention drifted") if callback.on_drift == "warn" else nullcontext():
        monitored = case.training.run(tmp_path / "monitored", callback)

    assert monitored == plain
    assert plain[".compiled"] == repr(case.compiles)
    assert_evaluated(callback, case.evaluations, tmp_path)


@pytest.mark.parametrize("change", [dropout, batchnorm, compiled_inside])
def test_a_training_is_bit_identical_if_each_evaluation_gathers_evidence(
    change: Callable[[nn.Module], None], tmp_path: Path, unchecked: None
) -> None:
    training, callback = Training(change=change), make_callback(probes=PROBES)

    plain = training.run(tmp_path / "plain")
    with always_suspicious():
        monitored = training.run(tmp_path / "monitored", callback)

    assert monitored == plain
    assert callback.snapshot is not None
    assert callback.snapshot.transplants_named is not None
    assert callback.snapshot.covered_loss is not None
    assert callback.snapshot.covered_loss.isfinite().any()


# Lightning warns if the run goes on in another folder.
@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])
@pytest.mark.parametrize(
    ("before", "after", "evaluations"),
    [(True, True, 3), (True, False, 0), (False, True, 2)],
    ids=["monitored throughout", "monitored before", "monitored after"],
)
def test_a_resumed_training_is_bit_identical_with_and_without_the_callback(
    before: bool, after: bool, evaluations: int, package: str, tmp_path: Path, unchecked: None
) -> None:
    plain, monitored = tmp_path / "plain", tmp_path / "monitored"
    training = Training(package=package, change=batchnorm, keep=True)
    callback = make_callback()

    expected = training.run(plain / "a"), training.run(plain / "b", ckpt_path=checkpoint_in(plain / "a"))
    whole = training.run(monitored / "a", *([make_callback()] if before else []))
    resumed = training.run(monitored / "b", *([callback] if after else []), ckpt_path=checkpoint_in(monitored / "a"))

    assert (whole, resumed) == expected
    for run, epoch in (("a", 0), ("a", 1), ("b", 1)):
        files = [checkpoint_in(each / run, epoch) for each in (plain, monitored)]
        assert checkpoint_digests(files[0]) == checkpoint_digests(files[1])
    assert_evaluated(callback, evaluations, tmp_path)


def draw(_module: nn.Module) -> None:
    torch.rand(1)


def draw_with_numpy(_module: nn.Module) -> None:
    np.random.rand()


def draw_with_python(_module: nn.Module) -> None:
    random.random()


def thaw_statistics(module: nn.Module) -> None:
    module.extra[1].train()


def forget_gradients(module: nn.Module) -> None:
    module.zero_grad()


def leave_a_gradient(module: nn.Module) -> None:
    module.clip.visual.proj.grad = torch.zeros_like(module.clip.visual.proj)


def pass_in_train_mode(module: nn.Module) -> None:
    with torch.no_grad():
        module.extra(torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)))


def freeze(module: nn.Module) -> None:
    module.clip.logit_scale.requires_grad_(False)


@pytest.mark.parametrize(
    ("change", "hook", "differences"),
    [
        (draw, "on_train_start", {"random", "log", "weights"}),
        (draw_with_numpy, "on_train_start", {"random"}),
        (draw_with_python, "on_train_start", {"random"}),
        (thaw_statistics, "on_train_batch_start", {"training", "buffers", "weights", "log"}),
        (forget_gradients, "on_train_batch_end", {"weights", "optimizer", "log"}),
        (leave_a_gradient, "on_train_end", {"gradient"}),
        (pass_in_train_mode, "on_train_end", {"buffers"}),
        (freeze, "on_train_end", {"trainable"}),
    ],
)
def test_a_callback_that_changes_the_training_is_noticed(
    change: Callable[[nn.Module], None], hook: str, differences: set[str], tmp_path: Path
) -> None:
    class HarmfulCallback(pl.Callback):
        """Changes something in one hook."""

    setattr(HarmfulCallback, hook, lambda _self, _trainer, module, *_: change(module))
    training = Training(change=frozen_statistics, trainer={"accumulate_grad_batches": 2})

    plain, changed = training.run(tmp_path / "a"), training.run(tmp_path / "b", HarmfulCallback())

    assert differences <= {name.split(".")[1] for name in plain if plain[name] != changed.get(name)}


def make_callback(**arguments: Any) -> ClipCamCallback:
    """Make a callback that raises its errors, and does not warn of drift: a model of random weights drifts soon."""
    return ClipCamCallback(**{"on_error": "raise", "on_drift": "log", **arguments})


def assert_evaluated(callback: ClipCamCallback, evaluations: int, folder: Path) -> None:
    """Check that there were so many evaluations, that no map was degenerate, and that the maps moved."""
    assert len(callback.history) == evaluations
    if not evaluations:
        assert callback.monitor is None
        return
    snapshots = [Snapshot.load(file) for file in folder.rglob("step-*.safetensors")]
    assert snapshots
    assert not any(state.is_degenerate for snapshot in snapshots for state in snapshot.states)
    assert callback.report is not None
    assert callback.report.drift > 0


def checkpoint_in(folder: Path, epoch: int = 0) -> Path:
    return folder / "checkpoints" / f"epoch={epoch}.ckpt"


def checkpoint_digests(file: Path) -> dict[str, str]:
    """Digest everything in a checkpoint except the states of callbacks."""
    content = torch.load(file, weights_only=True)
    return digests({name: value for name, value in content.items() if name not in ("callbacks", "clipcam")})
