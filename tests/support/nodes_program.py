"""Distributed trainings on two nodes, started by test_nodes.py; the working directory is a disk of the node's own.

``torchrun --nnodes 2 ... tests/support/nodes_program.py SCENARIO FOLDER`` writes the results of each rank to
``FOLDER/rank-<n>.pt``.
"""

import itertools
import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, distributed
from torch.distributed.tensor import DTensor

from clipcam_lightning import Capture, ClipCamCallback
from clipcam_lightning.cam.methods import METHODS
from tests.support.modules import FineTuning
from tests.support.ranks_program import Sharded, main, probes, train, whole_weights

PORT = 29501
TIMEOUT = 10  # seconds that a rank waits for another one that may be dead
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
    shorten_timeout()
    return train(FineTuning(), folder / "run", ClipCamCallback(probes(), method=SleepingMethod(folder)))


def shorten_timeout() -> None:
    """Begin another process group, now that both nodes have started, which may take longer than the timeout."""
    rank, size = distributed.get_rank(), distributed.get_world_size()
    store = distributed.TCPStore(os.environ["MASTER_ADDR"], PORT, size, is_master=rank == 0)
    distributed.destroy_process_group()
    timeout = timedelta(seconds=TIMEOUT)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=timeout)


def out_of_memory_to_find_the_clip(folder: Path) -> dict[str, Any]:
    """Run out of memory on rank 1 while parameters are gathered to find the CLIP."""
    with patch.object(DTensor, "full_tensor", failing_gather(after=5)):
        return train_sharded(folder)


def out_of_memory_to_evaluate(folder: Path) -> dict[str, Any]:
    """Run out of memory on rank 1 while parameters are gathered for an evaluation."""
    gathered_before = sum(1 for _ in Sharded().parameters())  # to find the CLIP
    with patch.object(DTensor, "full_tensor", failing_gather(after=gathered_before + 5)):
        return train_sharded(folder)


def train_sharded(folder: Path) -> dict[str, Any]:
    return train(Sharded(), folder / "run", ClipCamCallback(probes()), strategy=ModelParallelStrategy(2, 1))


def failing_gather(after: int) -> Callable[[DTensor], Tensor]:
    """Make a ``DTensor.full_tensor`` for which memory runs out on rank 1 when it has gathered so many parameters."""
    gather, count = DTensor.full_tensor, itertools.count()

    def full_tensor(parameter: DTensor) -> Tensor:
        if next(count) == after and distributed.get_rank() == 1:
            raise torch.OutOfMemoryError("CUDA out of memory, on purpose")
        return gather(parameter)

    return full_tensor


if __name__ == "__main__":
    scenarios = (monitored, asleep, out_of_memory_to_find_the_clip, out_of_memory_to_evaluate)
    main({scenario.__name__: scenario for scenario in scenarios})
