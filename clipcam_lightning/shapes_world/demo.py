"""Fine-tune a CLIP on images with a stamp, and see its attention leave the objects.

The images are hazy and show one coloured shape each; a stamp in the corner gives the caption away. Accuracy on such
images rises to 1, and nothing in the loss curve shows that the model now reads the stamp. The maps show it.
"""

from pathlib import Path

import lightning.pytorch as pl
import open_clip
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from typing_extensions import override

from clipcam_lightning import ClipCamCallback, Probe, ProbeSet
from clipcam_lightning.shapes_world.models import WordTokenizer, model_input, trained_clip
from clipcam_lightning.shapes_world.scenes import CAPTIONS, Scenes, draw_scenes, with_haze, with_stamps
from clipcam_lightning.shapes_world.summary import EpochLines, print_summary


class FineTunedClip(pl.LightningModule):
    """A LightningModule that holds a CLIP; ``ClipCamCallback`` finds it under any name."""

    def __init__(self, model: open_clip.CLIP, learning_rate: float = 1e-3) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = WordTokenizer()
        self.learning_rate = learning_rate

    @override
    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        logits, captions = self.logits(batch[0]), batch[1]
        loss = F.cross_entropy(logits, captions)
        self.log("train/loss", loss)
        return loss

    @override
    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        right = self.logits(batch[0]).argmax(1) == batch[1]
        self.log("val/accuracy", right.float().mean(), prog_bar=True)

    def logits(self, images: Tensor) -> Tensor:
        """Compute the scaled similarity of each image to each caption of the world."""
        texts = self.model.encode_text(self.tokenizer(CAPTIONS).to(self.device), normalize=True)
        logits: Tensor = self.model.logit_scale.exp() * self.model.encode_image(images, normalize=True) @ texts.T
        return logits

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.model.parameters(), self.learning_rate, weight_decay=0.02)


def stamped_scenes(count: int, seed: int, haze: tuple[float, float] = (0.6, 1.0)) -> Scenes:
    """Draw hazy images of one object each, with a stamp in the corner that gives the caption away."""
    return with_stamps(with_haze(draw_scenes(count, seed=seed, corner_free=True), *haze, seed=seed))


def loader(scenes: Scenes, shuffle: bool = False) -> DataLoader[tuple[Tensor, ...]]:
    """Load batches of images and indices of their captions."""
    images = model_input(torch.from_numpy(scenes.images), 64)
    return DataLoader(TensorDataset(images, torch.from_numpy(scenes.objects[:, 0])), batch_size=32, shuffle=shuffle)


def demo_probes() -> ProbeSet:
    """Make a probe set: a few images, each with a prompt and, optionally, a mask of the object."""
    scenes = stamped_scenes(8, seed=7, haze=(0.4, 0.5))
    return ProbeSet(
        Probe(image, caption, mask=mask[0])
        for image, caption, mask in zip(scenes.images, scenes.captions, scenes.masks, strict=True)
    )


def main(folder: Path) -> None:
    """Fine-tune with the callback, log to ``folder``, and print a summary."""
    pl.seed_everything(0)
    model = trained_clip("vit").train()

    callback = ClipCamCallback(demo_probes())

    trainer = pl.Trainer(
        max_epochs=4,
        accelerator="cpu",
        callbacks=[callback, EpochLines(callback)],
        logger=TensorBoardLogger(folder, name="stamped"),
        log_every_n_steps=10,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,  # a line per epoch can be read in a log, too
    )
    trainer.fit(
        FineTunedClip(model),
        loader(stamped_scenes(1280, seed=1), shuffle=True),
        loader(stamped_scenes(320, seed=2)),
    )
    print_summary(callback, model, log_dir=str(trainer.log_dir))
