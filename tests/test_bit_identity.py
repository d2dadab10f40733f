"""The training is the same to the last bit with and without the callback."""

import random
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from modules import FineTuning, fit
from torch import nn

from clipcam_lightning import ClipCamCallback
from clipcam_lightning.shapes_world.models import build_clip
from clipcam_lightning.shapes_world.scenes import draw_scenes

# Nets of random weights that learn for a few steps do look elsewhere afterwards.
pytestmark = pytest.mark.filterwarnings("ignore:attention drifted:clipcam_lightning.ClipCamWarning")


class FrozenStatistics(FineTuning):
    """A user who keeps one BatchNorm in eval mode while the rest trains."""

    def on_train_epoch_start(self) -> None:
        self.extra[1].eval()


def with_dropout_and_batchnorm(kind: type[FineTuning] = FineTuning) -> FineTuning:
    torch.manual_seed(3)
    clip = build_clip("vit")
    for block in clip.visual.transformer.resblocks:
        block.mlp.add_module("drop", nn.Dropout(0.2))
        block.attn.dropout = 0.1
    clip.visual.conv1 = nn.Sequential(nn.BatchNorm2d(3), clip.visual.conv1)
    extra = nn.Sequential(nn.Dropout(0.1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    return kind(clip=clip, extra=extra)


CASES: dict[str, dict[str, Any]] = {
    "validation": {},
    "no validation": {"validate": False},
    "accumulated gradients": {"accumulate_grad_batches": 3},
    "two validations an epoch": {"val_check_interval": 0.5},
    "no sanity check": {"num_sanity_val_steps": 0},
    "clipped gradients": {"gradient_clip_val": 0.1},
}
LOOKS: dict[str, dict[str, Any]] = {
    "captured probes": {},
    "given probes, every step": {"probes": "given", "every_n_train_steps": 1},
}


def trained(kind: type[FineTuning], folder: Path, *callbacks: pl.Callback, **options: Any) -> dict[str, Any]:
    """Everything a training leaves behind."""
    module = with_dropout_and_batchnorm(kind)
    pl.seed_everything(11, verbose=False)
    trainer = fit(module, folder, *callbacks, **options)
    moments = trainer.optimizers[0].state_dict()["state"]
    return {
        "weights": {name: value.clone() for name, value in module.state_dict().items()},
        "gradients": {name: value.grad for name, value in module.named_parameters() if value.grad is not None},
        "moments": {f"{i}.{key}": value for i, state in moments.items() for key, value in state.items()},
        "random": {"torch": torch.get_rng_state(), "numpy": torch.from_numpy(np.random.get_state()[1].astype(int))},
        "losses": {"loss": trainer.callback_metrics["loss"]},
        "modes": {"training": torch.tensor([part.training for part in module.modules()])},
    }


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
@pytest.mark.parametrize("kind", [FineTuning, FrozenStatistics])
@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_a_training_is_bit_identical(
    options: dict[str, Any], kind: type[FineTuning], look: dict[str, Any], tmp_path: Path
) -> None:
    scene = draw_scenes(1)
    given = {**look, "probes": [(scene.images[0], scene.captions[0])]} if "probes" in look else look
    watcher = ClipCamCallback(method="hirescam", **given)

    plain = trained(kind, tmp_path / "plain", **options)
    watched = trained(kind, tmp_path / "watched", watcher, **options)

    assert watcher.monitor is not None
    assert len(watcher.monitor.history) >= 3
    for what, values in plain.items():
        assert values.keys() == watched[what].keys(), what
        for name, value in values.items():
            assert torch.equal(value, watched[what][name]), f"{what} {name}"


def test_the_comparison_can_fail(tmp_path: Path) -> None:
    """A callback that merely draws a random number is noticed."""

    class Clumsy(pl.Callback):
        def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            torch.rand(1)

    plain, disturbed = trained(FineTuning, tmp_path / "a"), trained(FineTuning, tmp_path / "b", Clumsy())

    assert not all(torch.equal(value, disturbed["weights"][name]) for name, value in plain["weights"].items())


def test_python_random_is_kept_while_looking(tmp_path: Path, unchecked: None) -> None:
    def state_after(*callbacks: pl.Callback) -> Any:
        random.seed(5)
        trained(FineTuning, tmp_path, *callbacks)
        return random.getstate()

    assert state_after() == state_after(ClipCamCallback(method="hirescam"))
