"""Distributed trainings on two nodes, started by test_nodes.py; the working directory is a disk of the node's own.

``torchrun --nnodes 2 ... tests/support/nodes_program.py SCENARIO FOLDER`` writes the results of each rank to
``FOLDER/rank-<n>.pt``.
"""

import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, distributed
from torch.distributed.tensor import DTensor

from clipcam_lightning import Capture, ClipCamCallback
from clipcam_lightning.cam.methods import METHODS
from tests.support.modules import FineTuning
from tests.support.ranks_program import Sharded, main, probes, train, whole_weights

TIMEOUT = 15  # seconds that a rank waits for another one
TRAININGS: dict[str, type[FineTuning]] = {"ddp": FineTuning, "fully_shard": Sharded}


class EpochWeights(pl.Callback):
    """Records copies of the weights after each epoch."""

    def __init__(self) -> None:
        self.epochs: list[dict[str, Tensor]] = []

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        root = trainer.strategy.model
        assert root is not None
        self.epochs.append(whole_weights(pl_module, root))


class SleepingMethod:
    """Grad-CAM that creates the file ``asleep`` on rank 1 and sleeps.

    Args:
        folder: of the file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, capture: Capture) -> Tensor:
        if distributed.get_rank() == 1:
            (self.folder / "asleep").touch()
            time.sleep(300)
        return METHODS["gradcam"].function(capture)


def monitored(folder: Path) -> dict[str, Any]:
    """Train with probes and a baseline that only the first node has; on two ranks also a sharded model."""
    results = {}
    for name, module in TRAININGS.items():
        if name == "fully_shard" and distributed.get_world_size() > 2:
            continue
        weights = EpochWeights()
        files = {"probes": folder / "probes.safetensors", "baseline": folder / "baseline.safetensors"}
        callback = ClipCamCallback(**files, on_drift="log", on_error="raise")
        options: dict[str, Any] = {"strategy": ModelParallelStrategy(2, 1)} if name == "fully_shard" else {}
        results[name] = {**train(module(), folder / name, callback, weights, **options), "epochs": weights.epochs}
    return results


def asleep(folder: Path) -> dict[str, Any]:
    """Train until rank 1 falls asleep in an evaluation."""
    return train(FineTuning(), folder / "run", ClipCamCallback(probes(), method=SleepingMethod(folder)))


def out_of_memory_at_start(folder: Path) -> dict[str, Any]:
    """Run out of memory on rank 1 while parameters are gathered to find the CLIP."""
    fail_to_gather(after=5)
    return train_sharded(folder)


def out_of_memory_in_evaluation(folder: Path) -> dict[str, Any]:
    """Run out of memory on rank 1 while parameters are gathered for the first evaluation."""
    fail_to_gather(after=5 + sum(1 for _ in Sharded().parameters()))
    return train_sharded(folder)


def train_sharded(folder: Path) -> dict[str, Any]:
    return train(Sharded(), folder / "run", ClipCamCallback(probes()), strategy=ModelParallelStrategy(2, 1))


def fail_to_gather(after: int) -> None:
    """Let memory run out on rank 1 when so many parameters are gathered."""
    gather, gathered = DTensor.full_tensor, 0

    def full_tensor(parameter: DTensor) -> Tensor:
        nonlocal gathered
        if distributed.get_rank() == 1 and gathered == after:
            raise torch.OutOfMemoryError("CUDA out of memory, on purpose")
        gathered += 1
        return gather(parameter)

    DTensor.full_tensor = full_tensor


if __name__ == "__main__":
    scenarios = (monitored, asleep, out_of_memory_at_start, out_of_memory_in_evaluation)
    main({scenario.__name__: scenario for scenario in scenarios}, timedelta(seconds=TIMEOUT))
