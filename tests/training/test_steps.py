"""Steps of a manual optimization, whose optimizers Lightning may not see."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from clipcam_lightning import ClipCamCallback
from tests.support.faulty import two_probes
from tests.support.modules import FineTuning, fit

ACCUMULATED = 2  # batches per optimizer step


class Manual(FineTuning):
    """Takes an optimizer step after every other batch, and clamps a parameter after each batch."""

    def __init__(self, is_seen: bool = True, is_fused: bool = False) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.is_seen, self.is_fused = is_seen, is_fused

    def configure_optimizers(self) -> torch.optim.Optimizer:
        # A fused optimizer leaves no trace in the version counters of the weights.
        return torch.optim.AdamW(self.model.visual.parameters(), 1e-3, fused=self.is_fused)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.manual_backward(super().training_step(batch, batch_idx))
        optimizer = self.optimizers(use_pl_optimizer=self.is_seen)
        if (batch_idx + 1) % ACCUMULATED == 0:
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, 4)


class Sharpness(torch.optim.Optimizer):
    """Takes two steps per batch by methods of its own, the second with another optimizer, as implementations of SAM."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {})
        self.base = torch.optim.SGD(self.param_groups, 1e-2)

    def first_step(self) -> None:
        self.zero_grad()

    def second_step(self) -> None:
        self.base.step()
        self.zero_grad()

    def step(self, closure: Any = None) -> None:
        raise AssertionError("its steps are those above")


class SharpnessAware(FineTuning):
    """Steps an optimizer that Lightning knows by methods that it does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def configure_optimizers(self) -> Any:
        return Sharpness(self.model.visual.parameters())

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()
        for step in (optimizer.first_step, optimizer.second_step):
            self.manual_backward(super().training_step(batch, batch_idx))
            step()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        FineTuning.training_step(self, batch, batch_idx)


class OptimizerOfItsOwn(SharpnessAware):
    """Steps an optimizer that Lightning does not know."""

    def configure_optimizers(self) -> Any:
        self.own = torch.optim.SGD(self.model.visual.parameters(), 1e-2)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.own.zero_grad()
        self.manual_backward(FineTuning.training_step(self, batch, batch_idx))
        self.own.step()


class OptimizerPerParameter(SharpnessAware):
    """Steps in the backward pass."""

    def configure_optimizers(self) -> Any:
        for parameter in self.model.visual.parameters():
            parameter.register_post_accumulate_grad_hook(self.step)

    def step(self, parameter: Any) -> None:
        torch.optim.SGD([parameter], 1e-2).step()
        parameter.grad = None

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.manual_backward(FineTuning.training_step(self, batch, batch_idx))


class NoOptimizer(OptimizerPerParameter):
    """Steps without an optimizer of torch."""

    def step(self, parameter: Any) -> None:
        with torch.no_grad():
            parameter -= 1e-2 * parameter.grad
        parameter.grad = None


class Steps(pl.Callback):
    """Counts the batches of a fit."""

    batches = 0

    def on_train_batch_end(self, *_arguments: Any, **_named: Any) -> None:
        self.batches += 1


@pytest.mark.filterwarnings("ignore:attention drifted:clipcam_lightning.ClipCamWarning")
@pytest.mark.parametrize("is_fused", [True, False])
@pytest.mark.parametrize("is_seen", [True, False])
def test_accumulated_steps_of_a_manual_optimization_never_run_backwards(
    is_seen: bool, is_fused: bool, tmp_path: Path
) -> None:
    every = 1 if is_seen else ACCUMULATED
    callback, counter = ClipCamCallback(two_probes(), every_n_train_steps=every), Steps()
    fit(Manual(is_seen, is_fused), tmp_path, callback, counter, validate=False)
    steps = [entry.step for entry in callback.history]
    taken = counter.batches // ACCUMULATED
    assert taken >= 2
    assert steps == [every * i for i in range(taken + 1)]


@pytest.mark.filterwarnings("ignore:attention drifted:clipcam_lightning.ClipCamWarning")
@pytest.mark.filterwarnings("ignore:`LightningModule.configure_optimizers` returned `None`")
@pytest.mark.parametrize("module", [SharpnessAware, OptimizerOfItsOwn, OptimizerPerParameter, NoOptimizer])
@pytest.mark.parametrize("validate", [True, False])
def test_each_epoch_is_evaluated_whatever_takes_the_steps(module: Any, validate: bool, tmp_path: Path) -> None:
    callback, counter = ClipCamCallback(two_probes()), Steps()
    fit(module(), tmp_path, callback, counter, validate=validate)
    steps = [entry.step for entry in callback.history]
    assert len(steps) == 3
    assert (steps[0], steps[-1]) == (0, counter.batches)
