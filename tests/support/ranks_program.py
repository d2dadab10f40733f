"""Distributed trainings on two processes, started by test_ranks.py.

``torchrun --nproc-per-node 2 tests/support/ranks_program.py SCENARIO FOLDER`` writes the results of each rank to
``FOLDER/rank-<n>.pt``.
"""

import faulthandler
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.utils.data import DataLoader

from clipcam_lightning import Capture, ClipCamCallback, ClipCamError, ClipCamWarning, Probe, ProbeSet
from clipcam_lightning.cam import compact_images
from clipcam_lightning.cam.finding import ModelSpec
from clipcam_lightning.cam.methods import METHODS
from clipcam_lightning.cam.model import ClipModel
from clipcam_lightning.shapes_world.models import build_clip
from clipcam_lightning.shapes_world.scenes import draw_scenes
from clipcam_lightning.training import session
from clipcam_lightning.training.sharded import reserve_memory
from tests.support.modules import FineTuning, Pairs
from tests.support.suspicion import always_suspicious

PROBES = 5
find = ModelSpec.find


def probes() -> ProbeSet:
    scenes = draw_scenes(PROBES, seed=9)
    return ProbeSet(
        Probe(image, caption, mask=mask[0])
        for image, caption, mask in zip(scenes.images, scenes.captions, scenes.masks, strict=True)
    )


class Normalized(FineTuning):
    """A module whose image tower begins with a BatchNorm, whose statistics differ between the ranks."""

    def __init__(self) -> None:
        torch.manual_seed(3)
        clip = build_clip("vit")
        clip.visual.conv1 = nn.Sequential(nn.BatchNorm2d(3), clip.visual.conv1)
        super().__init__(clip=clip)


class Sharded(FineTuning):
    """A module sharded over the ranks by ``fully_shard``: each block of both towers, and the rest of the CLIP."""

    def __init__(self) -> None:
        super().__init__()
        scale = self.model.logit_scale.detach()[None]  # FSDP does not support scalars
        self.model.logit_scale = nn.Parameter(scale, requires_grad=False)

    def configure_model(self) -> None:
        if isinstance(next(self.model.parameters()), DTensor):
            return
        mesh = self.device_mesh["data_parallel"]
        for block in (*self.model.visual.transformer.resblocks, *self.model.transformer.resblocks):
            fully_shard(block, mesh=mesh)
        fully_shard(self.model, mesh=mesh)
        for name in ("encode_image", "encode_text"):
            torch.distributed.fsdp.register_fsdp_forward_method(self.model, name)


class TensorParallel(FineTuning):
    """A module whose MLPs in the image tower are sharded over the ranks."""

    def configure_model(self) -> None:
        for block in self.model.visual.transformer.resblocks:
            plan = {"c_fc": ColwiseParallel(), "c_proj": RowwiseParallel()}
            parallelize_module(block.mlp, self.device_mesh["tensor_parallel"], plan)


class Wrapped(FineTuning):
    """A module whose image tower has each block in a ``FullyShardedDataParallel``."""

    def __init__(self) -> None:
        super().__init__()
        self.model.logit_scale = nn.Parameter(self.model.logit_scale.detach()[None])

    def configure_model(self) -> None:
        blocks = self.model.visual.transformer.resblocks
        for i, block in enumerate(blocks):
            blocks[i] = on_cpu(block)


def on_cpu(module: nn.Module) -> FullyShardedDataParallel:
    return FullyShardedDataParallel(module, device_id=torch.device("cpu"), use_orig_params=True)


class OnCPU(FSDPStrategy):
    """Lightning's FSDP strategy on the CPU, which neither Lightning nor torch chooses by itself."""

    def _setup_model(self, model: nn.Module) -> nn.Module:
        return on_cpu(model)


class EpochMetrics(pl.Callback):
    """Records the metrics of each epoch."""

    def __init__(self) -> None:
        self.epochs: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        metrics = trainer.callback_metrics.items()
        self.epochs.append({name: float(value) for name, value in metrics if name.startswith("clipcam")})


class CountingMethod:
    """Grad-CAM that records its batch sizes.

    Args:
        failing: the rank on which it raises instead.
    """

    def __init__(self, failing: int | None = None) -> None:
        self.images: list[int] = []
        self.failing = failing

    def __call__(self, capture: Capture) -> Tensor:
        if distributed.get_rank() == self.failing:
            raise RuntimeError("a method that fails on this rank")
        self.images.append(len(capture.activations))
        return METHODS["gradcam"].function(capture)


def train(
    module: pl.LightningModule,
    folder: Path,
    *callbacks: pl.Callback,
    epochs: int = 2,
    start: Path | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Fit on all ranks that torchrun started.

    Returns:
        Weights, random state, metrics per epoch, step and warnings of this rank after the fit.
    """
    pl.seed_everything(5, verbose=False)
    metrics = EpochMetrics()
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=int(os.environ["LOCAL_WORLD_SIZE"]),
        num_nodes=int(os.environ["GROUP_WORLD_SIZE"]),
        callbacks=[*callbacks, metrics],
        logger=TensorBoardLogger(folder, name="", version="run"),
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        **{"strategy": "ddp_find_unused_parameters_true", "enable_checkpointing": False, **options},
    )
    data = (DataLoader(Pairs("tokens", seed=seed), batch_size=4, shuffle=seed == 0) for seed in (0, 1))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(module, *data, ckpt_path=start)
    weights = whole_weights(module, trainer.strategy.model)
    return {
        "weights": weights,
        "random": torch.get_rng_state(),
        "metrics": metrics.epochs,
        "step": trainer.global_step,
        "warnings": [str(each.message) for each in caught if issubclass(each.category, ClipCamWarning)],
    }


def whole_weights(module: nn.Module, root: nn.Module) -> dict[str, Tensor]:
    """Collect unsharded copies of weights and buffers, by the names they have in an unsharded module."""
    if isinstance(root, FullyShardedDataParallel):
        with FullyShardedDataParallel.summon_full_params(root, writeback=False):
            named = [*module.named_parameters(), *module.named_buffers()]
            return {name.replace("_fsdp_wrapped_module.", ""): value.detach().clone() for name, value in named}
    return {
        name: (value.full_tensor() if isinstance(value, DTensor) else value).detach().clone()
        for name, value in module.state_dict().items()
    }


def ddp(folder: Path) -> dict[str, Any]:
    """Train under DDP with and without the callback, and count the images that each rank explains."""
    method = CountingMethod()
    callback = ClipCamCallback(probes(), method=method, on_drift="log", on_error="raise")
    options = {"limit_val_batches": 0}  # DDP would make the statistics equal before a validation
    with always_suspicious():
        monitored = train(Normalized(), folder / "monitored", callback, **options)
    return {
        "plain": train(Normalized(), folder / "plain", **options),
        "monitored": monitored,
        "images": method.images,
        "monitor": callback.monitor is not None,
    }


def captured(folder: Path) -> dict[str, Any]:
    """Train with probes from a batch, with stops, with files that only rank 0 has, and with errors of one rank."""
    stop = EarlyStopping("clipcam/drift", divergence_threshold=-1.0, check_on_train_epoch_end=True)
    file = folder / "probes.safetensors"
    if distributed.get_rank() == 0:
        probes().save(file)
    else:
        file = folder / "on another machine"
    with patch.object(ModelSpec, "find", find_on_rank_0):
        unfound = train(FineTuning(), folder / "e", ClipCamCallback(probes(), on_drift="log"))
    return {
        "no clip on one rank": unfound,
        "captured": train(FineTuning(), folder / "captured", ClipCamCallback(on_drift="log", on_error="raise")),
        "stopped by a monitor": train(FineTuning(), folder / "a", ClipCamCallback(probes(), on_drift="log"), stop),
        "stopped by an alarm": train(FineTuning(), folder / "b", ClipCamCallback(max_drift=0.0, on_drift="stop")),
        "files of one rank": train(FineTuning(), folder / "c", ClipCamCallback(file, on_drift="log", on_error="raise")),
        "failing on one rank": train(
            FineTuning(), folder / "d", ClipCamCallback(probes(), method=CountingMethod(failing=1), on_drift="log")
        ),
    }


def find_on_rank_0(spec: ModelSpec, module: nn.Module) -> ClipModel:
    """Find the CLIP in a module; fail on rank 1."""
    if distributed.get_rank() == 1:
        raise RuntimeError("a model that fails on this rank")
    return find(spec, module)


def sharded(folder: Path) -> dict[str, Any]:
    """Train under ``fully_shard`` with and without the callback."""
    callback = ClipCamCallback(probes(), on_drift="log", on_error="raise")
    module = Sharded()
    with always_suspicious():
        monitored = train(module, folder / "monitored", callback, strategy=ModelParallelStrategy(2, 1))
    plain = train(Sharded(), folder / "plain", strategy=ModelParallelStrategy(2, 1))
    rows = module.model.visual.conv1.weight.to_local().shape[0]
    with patch.object(session, "reserve_memory", reserve_memory_on_rank_0):
        callback = ClipCamCallback(probes(), on_drift="log")
        short = train(Sharded(), folder / "short of memory", callback, strategy=ModelParallelStrategy(2, 1))
    return {"monitored": monitored, "plain": plain, "rows": rows, "short of memory": short}


def reserve_memory_on_rank_0(module: nn.Module, root: nn.Module) -> None:
    """Reserve memory for the parameters, of which rank 1 has too little."""
    if distributed.get_rank() == 1:
        raise torch.OutOfMemoryError("CUDA out of memory, on purpose")
    reserve_memory(module, root)


def tensor_parallel(folder: Path) -> dict[str, Any]:
    """Train under tensor parallelism with and without the callback."""
    callback = ClipCamCallback(probes(), on_drift="log", on_error="raise")
    monitored = train(TensorParallel(), folder / "monitored", callback, strategy=ModelParallelStrategy(1, 2))
    return {
        "monitored": monitored,
        "plain": train(TensorParallel(), folder / "plain", strategy=ModelParallelStrategy(1, 2)),
    }


def wrapped(folder: Path) -> dict[str, Any]:
    """Train under ``FullyShardedDataParallel`` with and without the callback, whose method freezes the parameters."""
    callback = ClipCamCallback(probes(), method="attnlrp", on_drift="log", on_error="raise")
    monitored = train(Wrapped(), folder / "monitored", callback, strategy=OnCPU())
    return {"monitored": monitored, "plain": train(Wrapped(), folder / "plain", strategy=OnCPU())}


def resumed(folder: Path) -> dict[str, Any]:
    """Train one epoch under ``fully_shard``, then another from its checkpoint."""
    keeper = ModelCheckpoint(folder / "kept", save_last=True)
    options: dict[str, Any] = {"enable_checkpointing": True}
    for epochs, start in ((1, None), (2, folder / "kept" / "last.ckpt")):
        callback = ClipCamCallback(probes(), on_drift="log", on_error="raise", dirpath=folder / "evaluations")
        strategy = ModelParallelStrategy(2, 1, save_distributed_checkpoint=False)
        train(Sharded(), folder / "run", callback, keeper, strategy=strategy, epochs=epochs, start=start, **options)
    return {"steps": [entry.step for entry in callback.history]}


def raising(folder: Path) -> dict[str, Any]:
    """Train with an error of rank 1 alone in an evaluation, and with one of rank 0 alone before training."""
    messages = {}
    failing = ClipCamCallback(probes(), method=CountingMethod(failing=1), on_error="raise")
    for name, callback in (
        ("in an evaluation", failing),
        ("before training", ClipCamCallback(folder / "no such probes")),
    ):
        try:
            train(FineTuning(), folder, callback)
        except ClipCamError as error:
            messages[name] = str(error)
    return messages


SCENARIOS: dict[str, Callable[[Path], dict[str, Any]]] = {
    scenario.__name__: scenario for scenario in (ddp, captured, sharded, tensor_parallel, wrapped, resumed, raising)
}


def main(scenarios: Mapping[str, Callable[[Path], dict[str, Any]]]) -> None:
    """Run the scenario that the command line names, and save the results of this rank."""
    faulthandler.enable()
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    output = Path(sys.argv[2])
    compact_images.PART = 2 * 64**2  # two images at once, so that ranks are asked for several parts
    results = scenarios[sys.argv[1]](output)
    torch.save(results, output / f"rank-{distributed.get_rank()}.pt")
    distributed.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # the interpreter's own exit sometimes finds a thread of torch still running, and aborts


if __name__ == "__main__":
    main(SCENARIOS)
