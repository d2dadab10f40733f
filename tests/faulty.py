"""A training so small that it can be broken many times, and ways to break it."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import open_clip
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from modules import FineTuning, Pairs
from open_clip.model import CLIPTextCfg, CLIPVisionCfg, set_model_preprocess_cfg
from torch.utils.data import DataLoader

from clipcam_lightning import ProbeSet
from clipcam_lightning.shapes_world.models import WordTokenizer
from clipcam_lightning.shapes_world.scenes import draw_scenes

STEPS = [0, 2, 4, 6]  # of the looks in a whole run: before training and after each of three epochs


def tiny_module(kind: type[FineTuning] = FineTuning) -> FineTuning:
    """Two layers, a 4x4 grid, the same weights each time."""
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
    **options: Any,
) -> pl.Trainer:
    """Fit three epochs of two steps in one order, with a checkpoint ``kept/last.ckpt`` after each epoch."""
    keeper = ModelCheckpoint(folder / "kept", filename="last", enable_version_counter=False)
    trainer = pl.Trainer(
        **{"logger": TensorBoardLogger(folder, name="", version="run"), "max_epochs": 3, **options},
        accelerator="cpu",
        callbacks=[*callbacks, keeper],
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    data, held_out = (DataLoader(Pairs(count=8, seed=seed), batch_size=4) for seed in (0, 1))
    trainer.fit(module or tiny_module(), data, held_out if validate else None, ckpt_path=ckpt_path)
    return trainer
