"""A training small enough to be broken many times, and objects that break it."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import open_clip
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from open_clip.model import CLIPTextCfg, CLIPVisionCfg, set_model_preprocess_cfg
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.tensorboard import SummaryWriter

from clipcam_lightning import ProbeSet
from clipcam_lightning.cam.methods.gradcam import gradcam
from clipcam_lightning.shapes_world.models import WordTokenizer
from clipcam_lightning.shapes_world.scenes import draw_scenes
from tests.support.modules import FineTuning, Pairs

STEPS = [0, 2, 4, 6]  # of the evaluations in a whole run: before training and after each of three epochs


def tiny_module(kind: type[FineTuning] = FineTuning) -> FineTuning:
    """Make a module with a CLIP of two layers and a 4x4 grid, with the same weights each time."""
    torch.manual_seed(0)
    vision = CLIPVisionCfg(layers=2, width=32, head_width=16, patch_size=16, image_size=64)
    text = CLIPTextCfg(context_length=12, vocab_size=len(WordTokenizer().words), width=32, heads=2, layers=1)
    clip = open_clip.CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text)
    set_model_preprocess_cfg(clip, {"size": (64, 64), "mean": (0.5,) * 3, "std": (0.5,) * 3})
    return kind(clip=clip)


def two_probes() -> ProbeSet:
    scenes = draw_scenes(2, seed=9)
    return ProbeSet(zip(scenes.images, scenes.captions, strict=True))


def train(
    folder: Path,
    *callbacks: pl.Callback,
    module: pl.LightningModule | None = None,
    ckpt_path: Path | None = None,
    validate: bool = True,
    data: Dataset[Any] | None = None,
    **options: Any,
) -> pl.Trainer:
    """Fit for three epochs of two steps, always in the same order, with a checkpoint ``kept/last.ckpt`` per epoch."""
    keeper = ModelCheckpoint(folder / "kept", filename="last", enable_version_counter=False)
    trainer = pl.Trainer(
        **{
            "logger": TensorBoardLogger(folder, name="", version="run"),
            "default_root_dir": folder,
            "max_epochs": 3,
            **options,
        },
        accelerator="cpu",
        callbacks=[*callbacks, keeper],
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    loader, held_out = (DataLoader(each, batch_size=4) for each in (data or Pairs(count=8), Pairs(count=8, seed=1)))
    trainer.fit(module or tiny_module(), loader, held_out if validate else None, ckpt_path=ckpt_path)
    return trainer


class Fault:
    """Raises an error while it is on. Each message has a new number, as real messages have sizes and addresses."""

    def __init__(self, kind: type[BaseException] = ZeroDivisionError) -> None:
        self.kind = kind
        self.on = True
        self._count = itertools.count(1)

    def __call__(self) -> None:
        if self.on:
            raise self.kind(f"on purpose, number {next(self._count)}")

    def start(self) -> None:
        self.on = True

    def stop(self) -> None:
        self.on = False


class FaultyMethod:
    """Grad-CAM that calls a fault first."""

    def __init__(self, fault: Callable[[], None]) -> None:
        self.fault = fault

    def __call__(self, capture: Any) -> Tensor:
        self.fault()
        return gradcam(capture)


class FaultyTokenizer(WordTokenizer):
    """A tokenizer that calls a fault first."""

    def __init__(self, fault: Callable[[], None]) -> None:
        super().__init__()
        self.fault = fault

    def __call__(self, texts: Any) -> Tensor:
        self.fault()
        return super().__call__(texts)


class FaultyWriter(SummaryWriter):
    """A writer whose ``add_text`` calls a fault: the callback calls it, the module does not."""

    def __init__(self, folder: Path, fault: Callable[[], None]) -> None:
        super().__init__(str(folder))
        self.fault = fault

    def add_text(self, *arguments: Any, **options: Any) -> None:
        self.fault()
        super().add_text(*arguments, **options)


class FaultyLogger(Logger):
    """A logger whose server fails from the third request on: Lightning itself sends two before ``setup``."""

    name, version = "faulty", "0"

    def __init__(self, fault: Callable[[], None]) -> None:
        super().__init__()
        self.fault = fault
        self._requests = 0

    @property
    def experiment(self) -> None:
        self._requests += 1
        if self._requests > 2:
            self.fault()

    def log_metrics(self, *_: Any, **__: Any) -> None: ...

    def log_hyperparams(self, *_: Any, **__: Any) -> None: ...
