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
