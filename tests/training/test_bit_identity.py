"""The training is the same to the last bit with and without the callback, however one trains."""

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
from lightning.pytorch.callbacks import EMAWeightAveraging, WeightAveraging
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from clipcam_lightning import ClipCamCallback, ClipCamWarning, Snapshot
from clipcam_lightning.cam.capture import ScoreCapture
from clipcam_lightning.cam.methods import Method
from clipcam_lightning.cam.targets import Contrast, LogSoftmax
from clipcam_lightning.shapes_world.scenes import draw_scenes
from tests.support.trainings import Contrastive, Training, Tuning, digests

pytestmark = [
    # torch.compile looks whether there is a gradient, and hides the warning in a way that "error" does not see.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
    pytest.mark.filterwarnings("ignore:Found . module.* in eval mode"),  # on purpose, where statistics are frozen
]

SCENES = draw_scenes(2, seed=9)
GIVEN = list(zip(SCENES.images, SCENES.captions, strict=True))


# What people train.


class ByHand(Tuning):
    """Two optimizers, stepped by hand."""

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
    """Two of three BatchNorms stay in eval mode while the rest trains."""
    batchnorm(module)
    module.extra[1].eval()
    module.clip.visual.conv1[0].eval()


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


# How people look.


def drawing(capture: ScoreCapture) -> Float[Tensor, "b p h w"]:
    """Scores under masks that are drawn from every generator there is, as an importance of each cell."""
    grid = capture.activations.shape[-2:]
    drawn = torch.rand(20, *grid) + float(np.random.rand()) + random.random() > 1.5
    masks = drawn.to(capture.images)

    def masked(image: int, which: slice) -> Tensor:
        shown = nn.functional.interpolate(masks[which, None], capture.images.shape[-2:])
        return capture.images[image] * shown

    return torch.einsum("bkp,khw->bphw", capture.score_variants(masked, len(masks)), masks)


@dataclass(frozen=True)
class Case:
    """A training, how the callback watches it, and how many looks that comes to."""

    training: Training = field(default_factory=Training)
    session: Mapping[str, Any] = field(default_factory=dict)
    evaluations: int = 3  # before the first step and after each of two epochs
    compiles: bool = False


HOOKED = {"method": "hirescam"}  # it sees the model through a hook, which compiled code may skip


def average(kind: type[WeightAveraging], where: str, **options: Any) -> Training:
    return Training(change=batchnorm, **{where: lambda: [kind(**options)]})


CASES: dict[str, Case] = {
    "as it comes": Case(),
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
    "two optimizers by hand": Case(Training(module=ByHand)),
    # modules
    "dropout": Case(Training(change=dropout)),
    "batchnorm": Case(Training(change=batchnorm)),
    "batchnorm frozen by the user": Case(Training(change=frozen_statistics, validate=False)),
    "frozen image tower": Case(Training(change=frozen_tower)),
    # Its look after the last step is the last pass; any other would round the merged weights in the same way.
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
    "weight averaging in front": Case(average(WeightAveraging, "callbacks", use_buffers=False)),
    "weight averaging behind": Case(average(WeightAveraging, "later_callbacks", use_buffers=False)),
    "EMA in front": Case(average(EMAWeightAveraging, "callbacks", decay=0.8)),
    "EMA behind": Case(average(EMAWeightAveraging, "later_callbacks", decay=0.8)),
    # loops
    "two validations an epoch": Case(Training(trainer={"val_check_interval": 0.5}), evaluations=7),
    "validation every second epoch": Case(Training(trainer={"check_val_every_n_epoch": 2})),
    "no validation": Case(Training(validate=False)),
    "no sanity check": Case(Training(trainer={"num_sanity_val_steps": 0})),
    "overfitted batches": Case(Training(trainer={"overfit_batches": 2}, loader={"shuffle": False})),
    "fewer batches": Case(Training(trainer={"limit_train_batches": 2, "limit_val_batches": 1})),
    "validation switched off": Case(Training(trainer={"limit_val_batches": 0})),
    "fast_dev_run": Case(Training(trainer={"fast_dev_run": True}), evaluations=0),
    # data
    "a worker": Case(Training(loader={"num_workers": 1}, pictures={"augmented": True})),
    "a persistent worker": Case(
        Training(loader={"num_workers": 1, "persistent_workers": True}, pictures={"augmented": True})
    ),
    "augmentation in the main process": Case(Training(pictures={"augmented": True})),
    "a stream": Case(Training(stream=True)),
    # looks
    "a method with gradients": Case(session={"method": "layercam", "layers": (-2, -1)}),
    "a method with attention": Case(session={"method": "gae"}),
    "a method with curvature": Case(session={"method": "shapleycam"}),
    "a method that tries": Case(session={"method": "occlusion"}),
    "a method that draws": Case(session={"method": Method(drawing, ScoreCapture)}),
    "every step, mid-accumulation": Case(
        Training(change=dropout, trainer={"accumulate_grad_batches": 2}), {"every_n_train_steps": 1}, evaluations=7
    ),
    "negatives": Case(session={"target": Contrast(negatives=("a blue square",))}),
    "probes that were given": Case(session={"probes": GIVEN, "target": LogSoftmax(negatives=("a blue square",))}),
    "an alarm": Case(session={"max_drift": 0.0, "on_drift": "warn"}),
    "previous look as baseline": Case(session={"baseline": "previous"}),
    # the other package
    "pytorch_lightning": Case(Training(package="pytorch_lightning", change=batchnorm)),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_training_is_bit_identical(case: Case, tmp_path: Path, unchecked: None) -> None:
    if case.training.change is compiled_by_default and not shutil.which("g++"):
        pytest.skip("no C++ compiler, which torch.compile needs by default")
    watcher = watching(**case.session)

    plain = case.training.run(tmp_path / "plain")
    with pytest.warns(ClipCamWarning, match="attention drifted") if watcher.on_drift == "warn" else nullcontext():
        watched = case.training.run(tmp_path / "watched", watcher)

    assert watched == plain
    assert plain[".compiled"] == repr(case.compiles)
    assert_evaluated(watcher, case.evaluations, tmp_path)


# Lightning's advice for a checkpoint of callbacks that are gone, and for one that goes on elsewhere.
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`", "ignore:The dirpath has changed")
@pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])
@pytest.mark.parametrize(
    ("before", "after", "evaluations"),
    [(True, True, 3), (True, False, 0), (False, True, 2)],
    ids=["watched throughout", "watched before", "watched after"],
)
def test_a_resumed_training_is_bit_identical(
    before: bool, after: bool, evaluations: int, package: str, tmp_path: Path, unchecked: None
) -> None:
    plain, watched = tmp_path / "plain", tmp_path / "watched"
    training = Training(package=package, change=batchnorm, keep=True)
    watcher = watching()

    expected = training.run(plain / "a"), training.run(plain / "b", ckpt_path=kept(plain / "a"))
    whole = training.run(watched / "a", *([watching()] if before else []))
    resumed = training.run(watched / "b", *([watcher] if after else []), ckpt_path=kept(watched / "a"))

    assert (whole, resumed) == expected
    for run in ("a", "b"):
        assert checkpoint(kept(watched / run, epoch=1)) == checkpoint(kept(plain / run, epoch=1))
    assert checkpoint(kept(watched / "a")) == checkpoint(kept(plain / "a"))
    assert_evaluated(watcher, evaluations, tmp_path)


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
    ("clumsiness", "hook", "seen_in"),
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
def test_a_callback_that_does_change_something_is_noticed(
    clumsiness: Callable[[nn.Module], None], hook: str, seen_in: set[str], tmp_path: Path
) -> None:
    class Clumsy(pl.Callback):
        """Does something in one hook that a callback had better not do."""

    setattr(Clumsy, hook, lambda _self, _trainer, module, *_: clumsiness(module))
    training = Training(change=frozen_statistics, trainer={"accumulate_grad_batches": 2})

    plain, disturbed = training.run(tmp_path / "a"), training.run(tmp_path / "b", Clumsy())

    assert seen_in <= {name.split(".")[1] for name in plain if plain[name] != disturbed.get(name)}


def watching(**settings: Any) -> ClipCamCallback:
    """A callback that conceals no failure, and keeps quiet of drift: nets of random weights soon look elsewhere."""
    return ClipCamCallback(**{"on_error": "raise", "on_drift": "log", **settings})


def assert_evaluated(watcher: ClipCamCallback, evaluations: int, folder: Path) -> None:
    """That it saw something each time, and not the same: not a stale model, and not nothing."""
    if not evaluations:
        assert watcher.monitor is None
        return
    assert watcher.monitor is not None
    assert watcher.monitor.last is not None
    assert len(watcher.monitor.history) == evaluations
    snapshots = [Snapshot.load(file) for file in folder.rglob("step-*.safetensors")]
    assert snapshots
    assert not any(why for snapshot in snapshots for why in snapshot.degeneracies)
    assert watcher.monitor.last.report.drift > 0


def kept(folder: Path, epoch: int = 0) -> Path:
    return folder / "checkpoints" / f"epoch={epoch}.ckpt"


def checkpoint(file: Path) -> dict[str, str]:
    """All that a checkpoint holds, but for what callbacks keep there."""
    content = torch.load(file, weights_only=True)
    del content["callbacks"]
    return digests(content)
