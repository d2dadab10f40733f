"""What two processes of a distributed training do; run by torchrun from test_ranks.py.

``torchrun --nproc-per-node 2 tests/support/ranks_program.py SCENARIO FOLDER`` writes what each rank saw to
``FOLDER/rank-<n>.pt``.
"""

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
from clipcam_lightning.cam.methods import METHODS
from clipcam_lightning.shapes_world.models import build_clip
from clipcam_lightning.shapes_world.scenes import draw_scenes
from tests.support.modules import FineTuning, Pairs

PROBES = 5


def probes() -> ProbeSet:
    scenes = draw_scenes(PROBES, seed=9)
    return ProbeSet(
        Probe(image, caption, mask=mask[0])
        for image, caption, mask in zip(scenes.images, scenes.captions, scenes.masks, strict=True)
    )


class Normalized(FineTuning):
    """Its image tower begins with a BatchNorm, whose statistics differ between the ranks."""

    def __init__(self) -> None:
        torch.manual_seed(3)
        clip = build_clip("vit")
        clip.visual.conv1 = nn.Sequential(nn.BatchNorm2d(3), clip.visual.conv1)
        super().__init__(clip=clip)


class Sharded(FineTuning):
    """Each block of both towers, and the rest, split over the ranks."""

    def __init__(self) -> None:
        super().__init__()
        scale = self.model.logit_scale.detach()[None]  # FSDP takes no scalar
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
    """The MLPs of the image tower, each split over the ranks."""

    def configure_model(self) -> None:
        for block in self.model.visual.transformer.resblocks:
            plan = {"c_fc": ColwiseParallel(), "c_proj": RowwiseParallel()}
            parallelize_module(block.mlp, self.device_mesh["tensor_parallel"], plan)


class Wrapped(FineTuning):
    """Each block of the image tower, and the CLIP, in a ``FullyShardedDataParallel``."""

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
    """As on GPUs, but for the device, which neither Lightning's class nor torch takes unless told so."""

    def _setup_model(self, model: nn.Module) -> nn.Module:
        return on_cpu(model)


class Seen(pl.Callback):
    """The figures of each epoch."""

    def __init__(self) -> None:
        self.figures: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        figures = trainer.callback_metrics.items()
        self.figures.append({name: float(value) for name, value in figures if name.startswith("clipcam")})


class Counting:
    """Grad-CAM that counts images, and fails on one rank if told to."""

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
    """Fit on both ranks; what is left afterwards."""
    pl.seed_everything(5, verbose=False)
    seen = Seen()
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=2,
        callbacks=[*callbacks, seen],
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
        "figures": seen.figures,
        "step": trainer.global_step,
        "warnings": [str(each.message) for each in caught if issubclass(each.category, ClipCamWarning)],
    }


def whole_weights(module: nn.Module, root: nn.Module) -> dict[str, Tensor]:
    """By the names they have where nothing is split."""
    if isinstance(root, FullyShardedDataParallel):
        with FullyShardedDataParallel.summon_full_params(root, writeback=False):
            named = [*module.named_parameters(), *module.named_buffers()]
            return {name.replace("_fsdp_wrapped_module.", ""): value.detach().clone() for name, value in named}
    return {
        name: (value.full_tensor() if isinstance(value, DTensor) else value).detach().clone()
        for name, value in module.state_dict().items()
    }


def ddp(folder: Path) -> dict[str, Any]:
    """With and without, and how many images each rank explained."""
    count = Counting()
    watcher = ClipCamCallback(probes(), method=count, on_drift="log", on_error="raise")
    options = {"limit_val_batches": 0}  # DDP would make the statistics equal before a validation
    watched = train(Normalized(), folder / "watched", watcher, **options)
    return {
        "plain": train(Normalized(), folder / "plain", **options),
        "watched": watched,
        "images": count.images,
        "monitor": watcher.monitor is not None,
    }


def captured(folder: Path) -> dict[str, Any]:
    """Probes from a batch; a stop that both ranks obey; files that only rank 0 can see."""
    stop = EarlyStopping("clipcam/drift", divergence_threshold=-1.0, check_on_train_epoch_end=True)
    own = folder / "probes.safetensors"
    if distributed.get_rank() == 0:
        probes().save(own)
    nowhere = own if distributed.get_rank() == 0 else folder / "on another machine"
    return {
        "captured": train(FineTuning(), folder / "captured", ClipCamCallback(on_drift="log", on_error="raise")),
        "stopped by a monitor": train(FineTuning(), folder / "a", ClipCamCallback(probes(), on_drift="log"), stop),
        "stopped by an alarm": train(FineTuning(), folder / "b", ClipCamCallback(max_drift=0.0, on_drift="stop")),
        "files of one rank": train(
            FineTuning(), folder / "c", ClipCamCallback(nowhere, on_drift="log", on_error="raise")
        ),
        "failing on one rank": train(
            FineTuning(), folder / "d", ClipCamCallback(probes(), method=Counting(failing=1), on_drift="log")
        ),
    }


def sharded(folder: Path) -> dict[str, Any]:
    """``fully_shard`` with and without."""
    watcher = ClipCamCallback(probes(), on_drift="log", on_error="raise")
    module = Sharded()
    watched = train(module, folder / "watched", watcher, strategy=ModelParallelStrategy(2, 1))
    plain = train(Sharded(), folder / "plain", strategy=ModelParallelStrategy(2, 1))
    rows = module.model.visual.conv1.weight.to_local().shape[0]
    return {"watched": watched, "plain": plain, "rows": rows}


def tensor_parallel(folder: Path) -> dict[str, Any]:
    """Each layer on both ranks."""
    watcher = ClipCamCallback(probes(), on_drift="log", on_error="raise")
    watched = train(TensorParallel(), folder / "watched", watcher, strategy=ModelParallelStrategy(1, 2))
    return {
        "watched": watched,
        "plain": train(TensorParallel(), folder / "plain", strategy=ModelParallelStrategy(1, 2)),
    }


def wrapped(folder: Path) -> dict[str, Any]:
    """``FullyShardedDataParallel`` with and without."""
    watcher = ClipCamCallback(probes(), on_drift="log", on_error="raise")
    watched = train(Wrapped(), folder / "watched", watcher, strategy=OnCPU())
    return {"watched": watched, "plain": train(Wrapped(), folder / "plain", strategy=OnCPU())}


def resumed(folder: Path) -> dict[str, Any]:
    """``fully_shard``, one epoch, then another from its checkpoint."""
    keeper = ModelCheckpoint(folder / "kept", save_last=True)
    options: dict[str, Any] = {"enable_checkpointing": True}
    for epochs, start in ((1, None), (2, folder / "kept" / "last.ckpt")):
        watcher = ClipCamCallback(probes(), on_drift="log", on_error="raise", dirpath=folder / "evaluations")
        strategy = ModelParallelStrategy(2, 1, save_distributed_checkpoint=False)
        train(Sharded(), folder / "run", watcher, keeper, strategy=strategy, epochs=epochs, start=start, **options)
    steps = [] if watcher.monitor is None else [column.step for column in watcher.monitor.history]
    return {"steps": steps}


def raising(folder: Path) -> dict[str, Any]:
    """An error of rank 1 alone in a look, and one of rank 0 alone before training."""
    found = {}
    failing = ClipCamCallback(probes(), method=Counting(failing=1), on_error="raise")
    for name, callback in (("in a look", failing), ("before training", ClipCamCallback(folder / "no such probes"))):
        try:
            train(FineTuning(), folder, callback)
        except ClipCamError as error:
            found[name] = str(error)
    return found


SCENARIOS: dict[str, Callable[[Path], dict[str, Any]]] = {
    scenario.__name__: scenario for scenario in (ddp, captured, sharded, tensor_parallel, wrapped, resumed, raising)
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    target = Path(sys.argv[2])
    found = SCENARIOS[sys.argv[1]](target)
    torch.save(found, target / f"rank-{distributed.get_rank()}.pt")
    distributed.destroy_process_group()
