"""Fine-tunings of the shapes world for the drift benchmark: harmless ones, and ones with a planted shortcut.

Each starts from a CLIP that was trained on the world, and is monitored with one fixed set of probes from the same data
as the training, like the validation batch of a user. Whether the shortcut is used is measured without maps, by covering
the stamp.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import open_clip
import torch
from jaxtyping import Bool, UInt8
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from clipcam_lightning import ClipCamCallback, Probe, ProbeSet
from clipcam_lightning.shapes_world.models import VISION, WordTokenizer, model_input
from clipcam_lightning.shapes_world.pretraining import pretrained_clip
from clipcam_lightning.shapes_world.scenes import CAPTIONS, SIZE, Scenes, draw_scenes, with_haze

EPOCHS, BATCH, STEPS = 6, 32, {"vit": 20, "resnet": 16}  # steps per epoch
PROBES, COVERED = 16, 96  # scenes; those of the probes, and those in which things are covered
PROBE_HAZE = (0.3, 0.5)
RATES = {"vit": (1e-3, 7e-4), "resnet": (2e-3, 1.4e-3)}  # in runs with a shortcut
CLASSES = 8  # captions in the data of one fine-tuning
PALETTES = {
    "squares": ((0, 0, 0), (255, 255, 255)),
    "colours": ((230, 30, 30), (30, 200, 60), (40, 60, 230), (250, 240, 60)),
    "bold": ((0, 0, 0), (255, 255, 255), (255, 0, 255), (0, 255, 255)),
}
CORNERS = ("top left", "top right", "bottom left", "bottom right")


@dataclass(frozen=True)
class Stamp:
    """A mark in the images that gives the caption away.

    Attributes:
        kind: of pattern, in ``PALETTES``.
        place: one of ``CORNERS``, ``"any corner"``, or ``"edge"`` for a strip along the bottom.
        size: pixels per side, or height of the strip.
        opacity: 0 to 1.
        correlation: share of the training images with the stamp of their caption, 0 to 1; the others have that of a
            random caption.
    """

    kind: str
    place: str
    size: int
    opacity: float
    correlation: float


@dataclass(frozen=True)
class FineTune:
    """The settings of one run.

    Attributes:
        tower: ``"vit"`` or ``"resnet"``.
        seed: of the data and their order; also chooses one of the three pretrained models.
        rate: peak learning rate.
        haze: lowest and highest share of grey in the training images, 0 to 1.
        texture: of the ground: ``"plain"``, ``"stripes"`` or ``"checks"``.
        trained: ``"all"``, ``"top"`` (the last block or stage alone), or ``"lora"``.
        stamp: the shortcut; ``None`` in a harmless run.
    """

    tower: str
    seed: int
    rate: float
    haze: tuple[float, float]
    texture: str = "plain"
    trained: str = "all"
    stamp: Stamp | None = None

    @property
    def planted(self) -> bool:
        """Whether there is a shortcut to learn."""
        return self.stamp is not None and self.stamp.correlation > 0

    @property
    def name(self) -> str:
        """Unique name of the run."""
        return f"{self.tower}-{self.seed}-{'shortcut' if self.planted else 'harmless'}"


@dataclass(frozen=True)
class Use:
    """How much the margin of the true caption over the mean caption depends on stamp and object, after one epoch.

    Attributes:
        of_stamp: how much is lost if the stamp is covered.
        of_object: how much is lost if the object is covered.
    """

    of_stamp: float
    of_object: float

    @property
    def shortcut(self) -> bool:
        """Whether the stamp counts at least half as much as the object."""
        return self.of_stamp > 0.02 and self.of_stamp >= 0.5 * self.of_object


def harmless(seed: int) -> Iterator[FineTune]:
    """Make 12 runs per tower: all rates, clean and hazy data, new textures, frozen parts, and meaningless marks."""
    for tower in ("vit", "resnet"):
        for i, (rate, haze) in enumerate(product((1e-4, 3e-4, 1e-3), ((0.0, 0.3), (0.3, 0.7)))):
            yield FineTune(tower, seed + i, rate, haze)
        yield FineTune(tower, seed + 6, 5e-4, (0.0, 0.3), texture="stripes")
        yield FineTune(tower, seed + 7, 5e-4, (0.0, 0.3), texture="checks")
        yield FineTune(tower, seed + 8, 1e-3, (0.0, 0.3), trained="top")
        yield FineTune(tower, seed + 9, 1e-3, (0.2, 0.5), trained="lora" if tower == "vit" else "top")
        for i, place in enumerate(("bottom right", "any corner")):
            stamp = Stamp("squares", place, 12, 1.0, correlation=0.0)
            yield FineTune(tower, seed + 10 + i, 5e-4, (0.1, 0.4), stamp=stamp)


def shortcuts(seed: int) -> Iterator[FineTune]:
    """Make 12 runs per tower: stamps of each kind in each place, of all sizes, opacities and correlations."""
    stamps = (
        Stamp("squares", "bottom right", 16, 1.0, 1.0),
        Stamp("squares", "top left", 12, 1.0, 0.9),
        Stamp("squares", "bottom left", 12, 0.7, 1.0),
        Stamp("squares", "any corner", 16, 1.0, 1.0),
        Stamp("colours", "top right", 12, 1.0, 0.8),
        Stamp("colours", "bottom right", 8, 1.0, 1.0),
        Stamp("colours", "edge", 6, 1.0, 0.9),
        Stamp("colours", "bottom left", 16, 0.8, 0.5),
        Stamp("bold", "top left", 16, 1.0, 0.7),
        Stamp("bold", "edge", 8, 1.0, 1.0),
        Stamp("bold", "bottom right", 16, 0.8, 0.9),
        Stamp("squares", "top right", 16, 1.0, 0.5),
    )
    for tower in ("vit", "resnet"):
        for i, stamp in enumerate(stamps):
            yield FineTune(tower, seed + i, RATES[tower][i % 2], (0.85, 1.0), stamp=stamp)


class FineTuned(pl.LightningModule):
    """A CLIP that learns to distinguish the captions.

    Args:
        model: what to fine-tune.
        rate: learning rate.
        kinds: captions in the data, as indices.
    """

    def __init__(self, model: open_clip.CLIP, rate: float, kinds: np.ndarray) -> None:
        super().__init__()
        self.model, self.rate, self.tokenizer = model, rate, WordTokenizer()
        self.tokens, self.kinds = self.tokenizer([CAPTIONS[kind] for kind in kinds]), torch.from_numpy(kinds)

    def similarity(self, images: Tensor) -> Tensor:
        texts = self.model.encode_text(self.tokens, normalize=True)
        return self.model.encode_image(images, normalize=True) @ texts.T

    def columns(self, objects: Tensor) -> Tensor:
        """Find the column of the similarities for each object."""
        return (objects[:, None] == self.kinds).float().argmax(1)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self.model.logit_scale.exp() * self.similarity(batch[0]), self.columns(batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], self.rate, weight_decay=0.02)


class UseMeter(pl.Callback):
    """Covers the stamp, and then the object, after every epoch, and measures what the margin loses.

    Args:
        finetune: the run.

    Attributes:
        uses: one per epoch; empty without a stamp.
    """

    def __init__(self, finetune: FineTune) -> None:
        self.uses: list[Use] = []
        self._inputs: tuple[Tensor, ...] = ()
        if finetune.stamp is not None:
            honest = replace(finetune, stamp=replace(finetune.stamp, correlation=1.0), haze=PROBE_HAZE)
            plain, marked = draw(honest, COVERED, 30_000 + finetune.seed)
            covered = marked.images.copy()
            covered[marked.masks[:, 0]] = 150  # the colour of haze
            size = pretrained_size(finetune.tower)
            self._inputs = tuple(
                model_input(torch.from_numpy(images), size) for images in (marked.images, plain.images, covered)
            )
            self._objects = torch.from_numpy(marked.objects[:, 0])

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._inputs:
            whole, without_stamp, without_object = (self._margin(pl_module, images) for images in self._inputs)
            self.uses.append(Use(whole - without_stamp, whole - without_object))

    @torch.no_grad()
    def _margin(self, module: "FineTuned", images: Tensor) -> float:
        module.eval()
        similarity = module.similarity(images)
        module.train()
        of_caption = similarity.gather(1, module.columns(self._objects)[:, None])[:, 0]
        return float((of_caption - similarity.mean(1)).mean())


def pretrained_size(tower: str) -> int:
    return int(VISION[tower].image_size)


def classes(finetune: FineTune) -> np.ndarray:
    """Draw the captions in the data of a run, as indices."""
    return np.random.default_rng(finetune.seed).permutation(len(CAPTIONS))[:CLASSES]


def draw(finetune: FineTune, count: int, seed: int) -> tuple[Scenes, Scenes]:
    """Draw scenes with one object from the world of a run.

    Args:
        finetune: the run.
        count: how many scenes.
        seed: of the scenes.

    Returns:
        The scenes without and with stamps, which cover no object.
    """
    rng = np.random.default_rng(seed)
    kinds = classes(finetune)
    scenes = draw_scenes(2 * count * len(CAPTIONS) // CLASSES, seed=seed)
    scenes = select(scenes, np.flatnonzero(np.isin(scenes.objects[:, 0], kinds)))
    scenes = with_haze(add_texture(scenes, finetune.texture, rng), *finetune.haze, seed=seed)
    if finetune.stamp is None:
        return (select(scenes, np.arange(count)),) * 2
    where = stamp_places(finetune.stamp, len(scenes), rng)
    free = np.flatnonzero(~(where & scenes.masks[:, 0]).any((1, 2)))[:count]
    scenes, where = select(scenes, free), where[free]
    honest = rng.random(count) < finetune.stamp.correlation
    return scenes, add_stamps(
        scenes, finetune.stamp, where, np.where(honest, scenes.objects[:, 0], rng.choice(kinds, count))
    )


def select(scenes: Scenes, rows: np.ndarray) -> Scenes:
    return Scenes(scenes.images[rows], scenes.masks[rows], scenes.objects[rows])


def add_texture(scenes: Scenes, texture: str, rng: np.random.Generator) -> Scenes:
    """Replace the ground behind the objects."""
    if texture == "plain":
        return scenes
    y, x = np.mgrid[:SIZE, :SIZE]
    width, phase = rng.integers(3, 8, (2, len(scenes), 1, 1))
    stripes = ((x + y + phase) // width) % 2
    pattern = stripes if texture == "stripes" else stripes ^ (((x - y + phase) // width) % 2)
    tone = rng.uniform(70, 190, (len(scenes), 1, 1, 1)) + rng.uniform(20, 40, (len(scenes), 1, 1, 3)) * (
        pattern[..., None] - 0.5
    )
    ground = np.clip(tone + rng.normal(0, 5, scenes.images.shape), 0, 255).astype(np.uint8)
    return replace(scenes, images=np.where(scenes.masks.any(1)[..., None], scenes.images, ground))


def stamp_places(stamp: Stamp, count: int, rng: np.random.Generator) -> Bool[np.ndarray, "n y x"]:
    """Choose the pixels that the stamp of each image covers."""
    where = np.zeros((count, SIZE, SIZE), dtype=bool)
    if stamp.place == "edge":
        where[:, -stamp.size :] = True
        return where
    corners = rng.choice(CORNERS, count) if stamp.place == "any corner" else [stamp.place] * count
    near = {"top": slice(stamp.size), "left": slice(stamp.size)}
    for mask, corner in zip(where, corners, strict=True):
        vertical, horizontal = str(corner).split()
        mask[near.get(vertical, slice(-stamp.size, None)), near.get(horizontal, slice(-stamp.size, None))] = True
    return where


def add_stamps(scenes: Scenes, stamp: Stamp, where: Bool[np.ndarray, "n y x"], captions: np.ndarray) -> Scenes:
    """Stamp the scenes.

    Args:
        scenes: what to stamp.
        stamp: its pattern and opacity.
        where: the pixels of each stamp.
        captions: that the stamps give away, as indices.
    """
    images = scenes.images.astype(np.float64)
    for image, mask, kind in zip(images, where, captions.tolist(), strict=True):
        pattern = stamp_pattern(stamp, kind)
        ink = pattern[: mask.any(1).sum(), : mask.any(0).sum()].reshape(-1, 3)
        image[mask] += stamp.opacity * (ink - image[mask])
    return replace(scenes, images=images.astype(np.uint8))


def stamp_pattern(stamp: Stamp, kind: int) -> UInt8[np.ndarray, "y x 3"]:
    """Make the stamp of one caption: squares in its own arrangement of the palette; a strip repeats it."""
    palette = np.array(PALETTES[stamp.kind], dtype=np.uint8)
    rows, columns = (1, 4) if stamp.place == "edge" else (4, 4) if stamp.kind == "squares" else (2, 2)
    cells = np.random.default_rng([kind, len(palette)]).integers(len(palette), size=(rows, columns))
    scale = -(-stamp.size // rows)
    pattern = np.kron(cells, np.ones((scale, scale), dtype=int))
    return palette[np.tile(pattern, (1, -(-SIZE // pattern.shape[1])))]


def fine_tune(finetune: FineTune, folder: Path) -> list[Use]:
    """Run a fine-tuning with the callback.

    Args:
        finetune: what to run.
        folder: for the snapshots of all evaluations.

    Returns:
        What the model uses after each epoch; empty without a stamp.
    """
    pl.seed_everything(finetune.seed, verbose=False)
    model = pretrained_clip(finetune.tower, seed=finetune.seed % 3).train()
    size, count = pretrained_size(finetune.tower), BATCH * STEPS[finetune.tower]
    _, training = draw(finetune, count, 10_000 + finetune.seed)
    _, scenes = draw(replace(finetune, haze=probe_haze(finetune)), PROBES, 20_000 + finetune.seed)
    probes = ProbeSet(
        Probe(image, caption, mask=mask[0])
        for image, caption, mask in zip(scenes.images, scenes.captions, scenes.masks, strict=True)
    )
    freeze_untrained(model, finetune)
    data = TensorDataset(model_input(torch.from_numpy(training.images), size), torch.from_numpy(training.objects[:, 0]))
    meter = UseMeter(finetune)
    trainer = pl.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        callbacks=[ClipCamCallback(probes, dirpath=folder, on_drift="log", on_error="raise"), meter],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(FineTuned(model, finetune.rate, classes(finetune)), DataLoader(data, BATCH, shuffle=True))
    return meter.uses


def probe_haze(finetune: FineTune) -> tuple[float, float]:
    """Get the haze of the probes: as in training, but light enough for the object to be visible."""
    low, high = finetune.haze
    return (min(low, PROBE_HAZE[0]), min(high, PROBE_HAZE[1]))


def freeze_untrained(model: open_clip.CLIP, finetune: FineTune) -> None:
    """Freeze everything that the run does not train."""
    if finetune.trained == "top":
        model.visual.requires_grad_(False)
        visual = model.visual
        tops = [visual.transformer.resblocks[-1], visual.ln_post] if finetune.tower == "vit" else [visual.attnpool]
        for module in tops:
            module.requires_grad_(True)
    elif finetune.trained == "lora":
        adapted = get_peft_model(model.visual, LoraConfig(target_modules=["c_fc", "c_proj"], r=4))
        model.visual = adapted
