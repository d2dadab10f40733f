"""LightningModules and data as users write them, and a function that fits them."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from clipcam_lightning.cam.towers.open_clip import OpenClipViT
from clipcam_lightning.monitoring.evaluation import Evaluation, Sink
from clipcam_lightning.shapes_world.models import WordTokenizer, build_clip, model_input
from clipcam_lightning.shapes_world.scenes import Scenes, draw_scenes


class Pairs(Dataset[Any]):
    """Scenes with captions, as items of one form.

    Args:
        form: "tokens", "strings", "dict", "nested" or "labels".
        count: how many scenes.
        seed: of the scenes.
    """

    def __init__(self, form: str = "tokens", count: int = 16, seed: int = 0) -> None:
        scenes: Scenes = draw_scenes(count, seed=seed)
        self.form = form
        self.images = model_input(torch.from_numpy(scenes.images), 64)
        self.captions = scenes.captions
        self.tokens = WordTokenizer()(self.captions)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Any:
        image, tokens, caption = self.images[i], self.tokens[i], self.captions[i]
        return {
            "tokens": (image, tokens),
            "strings": (image, caption),
            "dict": {"pixel_values": image, "input_ids": tokens, "attention_mask": torch.ones_like(tokens)},
            "nested": {"img": {"pixels": image}, "txt": {"caption": caption}, "index": i},
            "labels": (image, i),
        }[self.form]


class FineTuning(pl.LightningModule):
    """Contrastive fine-tuning of a CLIP.

    Args:
        name: of the attribute that holds the CLIP.
        extra: a module in front of the CLIP.
        clip: what to fine-tune; by default a ViT with the same random weights each time.
    """

    def __init__(self, name: str = "model", extra: nn.Module | None = None, clip: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.clip_name = name
        setattr(self, name, clip or build_clip("vit"))
        self.extra = extra or nn.Identity()
        self.tokenizer = WordTokenizer()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, texts = self.unpack(batch)
        clip = getattr(self, self.clip_name)
        images = clip.encode_image(self.extra(images), normalize=True)
        logits = 20 * images @ clip.encode_text(texts, normalize=True).T
        loss = F.cross_entropy(logits, torch.arange(len(logits)))
        self.log("loss", loss, batch_size=4)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.training_step(batch, batch_idx)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 1e-3)

    def unpack(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Take images and token ids from a batch of any form of :class:`Pairs`."""
        if isinstance(batch, dict) and "img" in batch:
            return batch["img"]["pixels"], self.tokenizer(batch["txt"]["caption"])
        if isinstance(batch, dict):
            return batch["pixel_values"], batch["input_ids"]
        images, texts = batch
        if isinstance(texts, Tensor) and texts.ndim == 1:
            return images, self.tokenizer(["a red circle"] * len(images))
        return images, texts if isinstance(texts, Tensor) else self.tokenizer(texts)


class PairsModule(pl.LightningDataModule):
    """:class:`Pairs` for training and validation, as LightningCLI takes them."""

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Pairs(), batch_size=4)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Pairs(seed=1), batch_size=4)


class ModuleWithoutTokenizer(FineTuning):
    """A module whose tokenizer the callback cannot find."""

    def __init__(self) -> None:
        super().__init__()
        del self.tokenizer


class SilentSink(Sink):
    """A sink of a user that writes nothing."""

    def write(self, evaluation: Evaluation) -> None:
        """Write nothing."""


class OwnTower(OpenClipViT):
    """An image tower of a user."""


def fit(
    module: pl.LightningModule,
    folder: Path,
    *callbacks: pl.Callback,
    form: str = "tokens",
    validate: bool = True,
    ckpt_path: Path | None = None,
    **options: Any,
) -> pl.Trainer:
    """Fit for two epochs of four steps, with a TensorBoard log in ``folder``."""
    options = {
        "max_epochs": 2,
        "logger": TensorBoardLogger(folder, name="", version="run"),
        "enable_checkpointing": False,
        **options,
    }
    trainer = pl.Trainer(
        accelerator="cpu",
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        **options,
    )
    train, val = (DataLoader(Pairs(form, seed=seed), batch_size=4, shuffle=seed == 0) for seed in (0, 1))
    trainer.fit(module, train, val if validate else None, ckpt_path=ckpt_path)
    return trainer


def events(folder: Path) -> EventAccumulator:
    """Read all events of the run in ``folder`` with TensorBoard's own reader."""
    accumulator = EventAccumulator(str(folder / "run"), {"images": 0, "scalars": 0, "tensors": 0})
    return accumulator.Reload()
