"""Trainings of a very small CLIP in all the ways that users train, and digests of everything that one leaves behind."""

import csv
import hashlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import lightning.pytorch
import numpy as np
import open_clip
import pytorch_lightning
import torch
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset

from clipcam_lightning.shapes_world.models import WordTokenizer, model_input
from clipcam_lightning.shapes_world.scenes import draw_scenes

TOKENIZER = WordTokenizer(context_length=8)
VISION = {
    "vit": CLIPVisionCfg(layers=2, width=32, head_width=16, patch_size=8, image_size=32),
    "resnet": CLIPVisionCfg(layers=(1, 1, 1, 1), width=8, head_width=32, image_size=96),
}


def small_clip(tower: str) -> open_clip.CLIP:
    """Make a CLIP that is as small as is useful: ``"vit"`` has a 4x4 grid, ``"resnet"`` a 3x3 grid."""
    text = CLIPTextCfg(context_length=8, vocab_size=len(TOKENIZER.words), width=32, heads=2, layers=1)
    model = open_clip.CLIP(16, vision_cfg=VISION[tower], text_cfg=text)
    if tower == "resnet":
        for stage in (model.visual.layer1, model.visual.layer2, model.visual.layer3, model.visual.layer4):
            nn.init.ones_(stage[0].bn3.weight)  # it starts at 0, so that the block would add nothing
    return model


class SceneDataset(Dataset[tuple[Tensor, Tensor]]):
    """Ten scenes with token ids.

    Args:
        size: pixels per side.
        seed: of the scenes.
        augmented: whether to augment each image with draws from the global generators of Python and numpy.
    """

    def __init__(self, size: int, seed: int, augmented: bool = False) -> None:
        scenes = draw_scenes(10, seed=seed)
        self.images = model_input(torch.from_numpy(scenes.images), size)
        self.tokens = TOKENIZER(scenes.captions)
        self.augmented = augmented

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        image = self.images[i]
        if self.augmented:
            image = image.flip(-1) if random.random() < 0.5 else image
            image = image + torch.from_numpy(np.random.normal(0, 0.1, image.shape)).float()
        return image, self.tokens[i]


class Stream(IterableDataset[tuple[Tensor, Tensor]]):
    """Scenes without a length, in an order that is drawn anew for each epoch."""

    def __init__(self, scenes: SceneDataset) -> None:
        self.scenes = scenes

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return (self.scenes[int(i)] for i in torch.randperm(len(self.scenes)))


class Contrastive:
    """Contrastive fine-tuning, to be mixed into the LightningModule of either package.

    Attributes:
        clip: what is fine-tuned.
        extra: a module in front of the CLIP.
    """

    log: Callable[..., None]

    def __init__(self, tower: str = "vit") -> None:
        super().__init__()
        self.clip: Any = small_clip(tower)
        self.extra: nn.Module = nn.Identity()
        self.tokenizer = TOKENIZER

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch))

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, texts, _ = self.clip(self.extra(batch[0]), batch[1])
        logits = 20 * images @ texts.T
        return F.cross_entropy(logits, torch.arange(len(logits)))

    def configure_optimizers(self) -> Any:
        weights = [weight for weight in self.parameters() if weight.requires_grad]  # type: ignore[attr-defined]
        optimizer = torch.optim.AdamW(weights)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=10)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


class Tuning(Contrastive, lightning.pytorch.LightningModule):
    """A LightningModule of the package ``lightning``."""


class OtherTuning(Contrastive, pytorch_lightning.LightningModule):
    """A LightningModule of the package ``pytorch_lightning``, which has classes of its own."""


MODULES: dict[str, type] = {"lightning.pytorch": Tuning, "pytorch_lightning": OtherTuning}


@dataclass(frozen=True, kw_only=True)
class Training:
    """One way to train.

    Attributes:
        package: of the Trainer and the LightningModule.
        module: class of what is trained; by default the package's ``Contrastive``.
        tower: of the CLIP.
        change: changes the module before the fit, or returns another that is fitted instead.
        trainer: options of the Trainer.
        loader: options of the DataLoader of the training.
        scenes: options of the :class:`SceneDataset` of the training.
        stream: whether the training reads an IterableDataset.
        validate: whether there is validation.
        callbacks: makes the callbacks before the one under test.
        later_callbacks: makes the callbacks after it.
        keep: whether each epoch leaves a checkpoint.
    """

    package: str = "lightning.pytorch"
    module: type | None = None
    tower: str = "vit"
    change: Callable[[Any], Any] = lambda module: None
    trainer: Mapping[str, Any] = field(default_factory=dict)
    loader: Mapping[str, Any] = field(default_factory=dict)
    scenes: Mapping[str, Any] = field(default_factory=dict)
    stream: bool = False
    validate: bool = True
    callbacks: Callable[[], Sequence[Any]] = list
    later_callbacks: Callable[[], Sequence[Any]] = list
    keep: bool = False

    def run(self, folder: Path, *callbacks: Any, ckpt_path: Path | None = None) -> dict[str, str]:
        """Fit for two epochs of five steps.

        Args:
            folder: for the log and the checkpoints.
            callbacks: under test.
            ckpt_path: where to resume from.

        Returns:
            Everything that the training leaves behind, see :func:`training_state`.
        """
        torch.compiler.reset()  # what an earlier training compiled must not be used here
        counters.clear()
        pl: ModuleType = import_module(self.package)
        pl.seed_everything(11, verbose=False)
        module = (self.module or MODULES[self.package])(self.tower)
        changed = self.change(module)
        module = module if changed is None else changed
        keeper = import_module(f"{self.package}.callbacks").ModelCheckpoint
        keepers = [keeper(filename="{epoch}", save_top_k=-1)] if self.keep else []
        options = {
            "accelerator": "cpu",
            "max_epochs": 2,
            "logger": import_module(f"{self.package}.loggers").CSVLogger(folder, name="", version=""),
            "log_every_n_steps": 1,
            "enable_checkpointing": self.keep,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": folder,
            **self.trainer,
        }
        trainer = pl.Trainer(callbacks=[*self.callbacks(), *callbacks, *self.later_callbacks(), *keepers], **options)
        size = VISION[self.tower].image_size
        data: Any = SceneDataset(size, seed=0, **self.scenes)
        loader = {"shuffle": True, **self.loader}
        if self.stream:
            data, loader = Stream(data), self.loader
        train, val = DataLoader(data, 2, **loader), DataLoader(SceneDataset(size, seed=1), 2)
        trainer.fit(module, train, val if self.validate else None, ckpt_path=ckpt_path)
        return training_state(trainer, getattr(module, "_orig_mod", module))


def read_log(file: Path) -> list[dict[str, str]]:
    """Read what a training logged to a CSV file, without what the callback adds."""
    with file.open(newline="") as lines:
        rows = [
            {name: value for name, value in row.items() if value and "clipcam" not in name}
            for row in csv.DictReader(lines)
        ]
    return [row for row in rows if row.keys() - {"step"}]


def training_state(trainer: Any, module: nn.Module) -> dict[str, str]:
    """Digest everything that a training leaves behind.

    Args:
        trainer: after the fit.
        module: what was trained.

    Returns:
        Digests by dotted name; one that differs means a difference of at least one bit.
    """
    log = Path(trainer.default_root_dir) / "metrics.csv"
    state = {
        "weights": dict(module.named_parameters()),
        "buffers": dict(module.named_buffers()),
        "gradient": {name: weight.grad for name, weight in module.named_parameters()},
        "trainable": {name: weight.requires_grad for name, weight in module.named_parameters()},
        "training": {name: part.training for name, part in module.named_modules()},
        "optimizer": [optimizer.state_dict() for optimizer in trainer.optimizers],
        "scheduler": [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs],
        "random": {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "numpy": np.random.get_state(),
            "python": repr(random.getstate()),
        },
        "log": read_log(log) if log.exists() else [],  # one line per step, with all digits of the loss
        "steps": trainer.global_step,
        "compiled": counters["stats"]["unique_graphs"] > 0,
    }
    return digests(state)


def digests(value: Any, name: str = "") -> dict[str, str]:
    """Digest every leaf of nested mappings and sequences.

    Args:
        value: the nest, or a leaf of it.
        name: dotted name of the value.

    Returns:
        By dotted name: of tensors and arrays a digest of their bytes, of everything else its ``repr``.
    """
    if isinstance(value, Mapping):
        parts = [digests(each, f"{name}.{key}") for key, each in value.items()]
    elif isinstance(value, list | tuple):
        parts = [digests(each, f"{name}.{i}") for i, each in enumerate(value)]
    elif isinstance(value, Tensor | np.ndarray):
        flat = torch.as_tensor(value).detach().cpu().contiguous().reshape(-1)
        digest = hashlib.sha256(flat.view(torch.uint8).numpy().tobytes()).hexdigest()
        return {name: f"{value.dtype} {tuple(value.shape)} {digest}"}
    else:
        return {name: repr(value)}
    return {key: digest for part in parts for key, digest in part.items()}
