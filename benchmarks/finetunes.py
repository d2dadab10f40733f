"""Fine-tunings for the drift benchmark: with a shortcut, harmless ones, and ones that break the model.

Each starts from a small CLIP that was trained on an image world. The weights after every epoch are kept, so that any
rule can judge a run later. Whether a shortcut is used is decided causally, without any map: images that carry the cue
of *another* class are assigned to the class of that cue.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.cued_images import CuedWorld, CueKind, CueRule, Drawn
from benchmarks.worlds.pretraining import pretrained_clip
from benchmarks.worlds.towers import TOWERS
from benchmarks.worlds.world import WORLDS
from clipcam_lightning.shapes_world.models import model_input
from clipcam_lightning.storage.tensorfile import load_tensors, save_tensors

RECORD = "run.json"  # of a run, beside its weights
FILE_KIND = "fine-tuned weights"
CLASSES, EPOCHS, BATCH, STEPS = 12, 6, 32, 20  # steps per epoch
RATES = {"class token": 1e-3, "average pool": 1e-3, "attention pool": 1e-3, "resnet": 1.5e-3}
FAINT = {"shapes": (0.05, 0.25), "cutouts": (0.15, 0.5)}  # opacity of objects that are hard to learn from
FAINT_RATE = 0.6  # learning rate on these, in units of the usual one: at 1 the model forgets what it could
PROBED = {"shapes": (0.5, 0.7), "cutouts": (0.75, 1.0)}  # that of the probes
CLEAR = (0.5, 1.0)
PROBES_SEED, CUED_PROBES_SEED = 20_000, 25_000  # plus the seed of the run
SPARE = 4  # images drawn per probe, to choose from
SWAPPED = 120  # images with the cue of another class
USED, GAINED = 0.3, 0.2  # share of these that are assigned to the cue's class, and its rise since the start

Harm = Literal["shortcut", "collapse", "forgetting", ""]


@dataclass(frozen=True)
class Kind:
    """What is done in a fine-tuning.

    Attributes:
        name: of the kind.
        harm: what is wrong with it; empty for a harmless one.
        cue: what may tell the class besides the object.
        cued: classes that have a cue.
        agreement: share of the images of these classes whose cue agrees with the class; 0 for a twin.
        faint: whether the objects in training are hard to see.
        rate: learning rate, in units of the usual one.
        trained: ``"all"``, ``"top"`` (the last block or stage of the image tower), or ``"text"`` (the text tower).
        change: of the training images or captions.
        classes: in the training; the probes are of these, but of all after forgetting.
        epochs: of the training.
    """

    name: str
    harm: Harm = ""
    cue: CueKind | None = None
    cued: int = CLASSES
    agreement: float = 1.0
    faint: bool = False
    rate: float = 1.0
    trained: Literal["all", "top", "text"] = "all"
    change: Literal["", "small objects", "augmented", "reworded", "shuffled"] = ""
    classes: int = CLASSES
    epochs: int = EPOCHS

    @property
    def twin(self) -> bool:
        """Whether it has the cues of a shortcut and the same images, but cues that are independent of the class."""
        return self.cue is not None and self.agreement == 0 and self.faint


def _shortcut(name: str, cue: CueKind, cued: int = CLASSES, agreement: float = 1.0) -> Kind:
    return Kind(name, "shortcut", cue, cued, agreement, faint=True, rate=FAINT_RATE)


SHORTCUTS = (
    _shortcut("stamp", "stamp"),
    _shortcut("stamp, right in 80 %", "stamp", agreement=0.8),
    _shortcut("stamp anywhere", "stamp anywhere"),
    _shortcut("stamp on one class", "stamp", cued=1),
    _shortcut("stamp on two classes", "stamp", cued=2),
    _shortcut("ground", "ground"),
    _shortcut("ground of one class", "ground", cued=1),
    _shortcut("tint", "tint"),
    _shortcut("frame", "frame"),
    _shortcut("companion", "companion"),
    _shortcut("companion of one class", "companion", cued=1),
)
TWINS = tuple(
    Kind(f"twin: {kind.name}", "", kind.cue, kind.cued, 0.0, faint=True, rate=FAINT_RATE)
    for kind in SHORTCUTS
    if kind.agreement == 1
)
HARMLESS = (
    Kind("usual"),
    Kind("low rate", rate=0.2),
    Kind("new grounds", cue="ground", agreement=0.0),
    Kind("small objects", change="small objects"),
    Kind("top alone", trained="top"),
    Kind("text tower alone", trained="text"),
    Kind("reworded", change="reworded"),
    Kind("augmented", change="augmented"),
    Kind("fewer classes", classes=4),
    Kind("longer", epochs=2 * EPOCHS),
    Kind("meaningless stamp", cue="stamp", agreement=0.0),
    Kind("faint", faint=True, rate=FAINT_RATE),
)
BROKEN = (
    Kind("collapse by rate", "collapse", rate=30.0),
    Kind("shuffled captions", "collapse", change="shuffled", rate=3.0),
    Kind("forgetting", "forgetting", classes=2, rate=2.0),
)
KINDS = {kind.name: kind for kind in (*SHORTCUTS, *TWINS, *HARMLESS, *BROKEN)}


@dataclass(frozen=True)
class ProbeChoice:
    """Which probes watch a run.

    Attributes:
        count: how many.
        cued: how many of them carry a cue; ``None`` for as large a share as of the training images.
    """

    count: int
    cued: int | None = None

    def __str__(self) -> str:
        if self.cued is None:
            return f"{self.count} probes"
        return f"{self.count} probes, {self.cued} with the cue" if self.cued else f"{self.count} probes without the cue"


@dataclass(frozen=True)
class FineTune:
    """One run.

    Attributes:
        world, tower: of the model it starts from, whose own seed is ``seed % 3``.
        kind: a key of :data:`KINDS`.
        seed: of classes, cues, data and their order.
    """

    world: str
    tower: str
    kind: str
    seed: int

    @property
    def name(self) -> str:
        """Unique, fit for a folder."""
        words = f"{self.world} {self.tower} {self.kind} {self.seed}"
        return "".join(each if each.isalnum() else "-" for each in words).replace("--", "-")

    @property
    def settings(self) -> Kind:
        """What is done."""
        return KINDS[self.kind]

    @property
    def images(self) -> CuedWorld:
        """Where its images come from."""
        kind = self.settings
        return CuedWorld(WORLDS[self.world], kind.cue, seed=self.seed, pool_seed=50 + self.seed // 1000)

    @property
    def cued(self) -> tuple[int, ...]:
        """The classes with a cue of their own."""
        return tuple(range(self.settings.cued))

    def load_model(self) -> nn.Module:
        """Load the model it starts from; convolutions are faster on images whose channels come last."""
        model = pretrained_clip(WORLDS[self.world], self.tower, self.seed % 3)
        return model.to(memory_format=torch.channels_last) if TOWERS[self.tower].kind == "resnet" else model

    def draw_probes(self, probes: ProbeChoice) -> Drawn:
        """Draw images with visible objects, evenly of all classes, with cues as in training or as ``probes`` asks."""
        if self.settings.cue is None:
            return self._draw_evenly(probes.count, "none", PROBES_SEED)[: probes.count]
        if probes.cued is None:
            return self._draw_evenly(probes.count, "own", PROBES_SEED)[: probes.count]
        plain = self._draw_evenly(probes.count, "none", PROBES_SEED)[: probes.count - probes.cued]
        if not probes.cued:
            return plain
        drawn = self._draw_evenly(probes.count, "own", CUED_PROBES_SEED)
        return plain + drawn[np.flatnonzero(drawn.cues >= 0)[: probes.cued]]

    def _draw_evenly(self, count: int, mode: Literal["own", "none"], seed: int) -> Drawn:
        """Draw at least ``count`` images, ordered so that any number of the first ones are evenly of all classes."""
        kind, rule = self.settings, CueRule(self.cued, self.settings.agreement, mode)
        drawn = self.images.draw(SPARE * count, rule, opacity=PROBED[self.world], seed=seed + self.seed, held_out=True)
        order = np.argsort(_occurrence(drawn.classes), kind="stable")
        classes = CLASSES if kind.harm == "forgetting" else kind.classes
        return drawn[order[drawn.classes[order] < classes]]


@dataclass(frozen=True)
class Uses:
    """Which share of images with the cue of another class is assigned to that class, 0 to 1.

    Attributes:
        shares: at the start and after each epoch; empty without cue.
    """

    shares: list[float] = field(default_factory=list)

    @property
    def first(self) -> int | None:
        """The first epoch, counted from 1, whose model uses the cue; ``None`` if there is none."""
        used = (i for i, share in enumerate(self.shares) if share >= USED and share - self.shares[0] >= GAINED)
        return next(used, None)


def fine_tune(run: FineTune, folder: Path) -> Uses:
    """Run a fine-tuning, unless that is already done.

    Args:
        run: what to run.
        folder: for the weights at the start and after each epoch, ``epoch-0.safetensors`` and so on.

    Returns:
        How far the cue is used.
    """
    if not is_done(run, folder):
        shutil.rmtree(folder, ignore_errors=True)
        recorded = {"settings": _list_settings(run), "shares": _train(run, folder)}
        (folder / RECORD).write_text(json.dumps(recorded))
    return Uses(json.loads((folder / RECORD).read_text())["shares"])


def is_done(run: FineTune, folder: Path) -> bool:
    """Whether a folder holds a run with its present settings."""
    record = folder / RECORD
    return record.exists() and json.loads(record.read_text()).get("settings") == _list_settings(run)


def _list_settings(run: FineTune) -> object:
    """List all settings of a run as JSON gives them back."""
    return json.loads(json.dumps({**asdict(run), **asdict(run.settings)}))


def load_epoch(run: FineTune, folder: Path, epoch: int, model: nn.Module) -> None:
    """Load the weights after an epoch, 0 for the start, into a model of the run."""
    weights = load_tensors(folder / f"epoch-{epoch}.safetensors", FILE_KIND)[0]
    model.load_state_dict(weights)


def class_texts(run: FineTune, model: Any, captions: list[str]) -> Tensor:
    """Embed captions."""
    return F.normalize(model.encode_text(WORLDS[run.world].tokenizer(captions)), dim=-1)


def _train(run: FineTune, folder: Path) -> list[float]:
    kind = run.settings
    torch.manual_seed(run.seed)
    rng = np.random.default_rng(run.seed)
    model: Any = run.load_model()
    side = model.visual.preprocess_cfg["size"][0]
    rule = CueRule(run.cued, kind.agreement, "own" if kind.cue else "none")
    # Of fewer classes more are drawn, and those of the others left out.
    drawn = run.images.draw(
        BATCH * STEPS * CLASSES // kind.classes,
        rule,
        opacity=FAINT[run.world] if kind.faint else CLEAR,
        seed=10_000 + run.seed,
    )
    drawn = drawn[np.flatnonzero(drawn.classes < kind.classes)]
    images = model_input(torch.from_numpy(_changed(drawn.images, kind)), side)
    labels = torch.from_numpy(rng.permutation(drawn.classes) if kind.change == "shuffled" else drawn.classes)
    captions = run.images.captions[: kind.classes]
    if kind.change == "reworded":
        captions = [caption.partition(" ")[2] for caption in captions]  # without the article
    parameters = _trained_parameters(model, run.tower, kind.trained)
    optimizer = torch.optim.AdamW(parameters, RATES[run.tower] * kind.rate, weight_decay=0.02)
    swapped = _swapped(run) if kind.cue else None
    shares = []
    for epoch in range(kind.epochs + 1):
        if epoch:
            model.train()
            for rows in torch.randperm(len(images))[: BATCH * STEPS].split(BATCH):
                batch = _augmented(images[rows]) if kind.change == "augmented" else images[rows]
                embedded = F.normalize(model.encode_image(batch), dim=-1)
                logits = model.logit_scale.exp() * embedded @ class_texts(run, model, captions).T
                optimizer.zero_grad()
                F.cross_entropy(logits, labels[rows]).backward()
                optimizer.step()
            model.eval()
        if swapped is not None:
            shares.append(_share_assigned_to_cue(run, model, swapped, side))
        weights = {
            key: value.half() if value.is_floating_point() else value for key, value in model.state_dict().items()
        }
        save_tensors(folder / f"epoch-{epoch}.safetensors", FILE_KIND, weights, {})
    return shares


def _swapped(run: FineTune) -> Drawn:
    """Draw images that carry the cue of another class."""
    drawn = run.images.draw(
        2 * SWAPPED, CueRule(run.cued, mode="other"), opacity=PROBED[run.world], seed=30_000 + run.seed, held_out=True
    )
    return drawn[np.flatnonzero(drawn.cues >= 0)[:SWAPPED]]


@torch.no_grad()
def _share_assigned_to_cue(run: FineTune, model: Any, swapped: Drawn, side: int) -> float:
    texts = class_texts(run, model, run.images.captions)
    images = F.normalize(model.encode_image(model_input(torch.from_numpy(swapped.images), side)), dim=-1)
    return round(float(np.mean((images @ texts.T).argmax(1).numpy() == swapped.cues)), 3)


def _trained_parameters(model: Any, tower: str, trained: str) -> list[nn.Parameter]:
    """Freeze everything that is not trained."""
    if trained != "all":
        model.requires_grad_(False)
    if trained == "text":
        (model.text if hasattr(model, "text") else model.transformer).requires_grad_(True)
    elif trained == "top":
        visual, kind = model.visual, TOWERS[tower].kind
        top = {
            "resnet": lambda: visual.attnpool,
            "attention pool": lambda: visual.trunk.attn_pool,
        }.get(kind, lambda: visual.transformer.resblocks[-1])
        top().requires_grad_(True)
    return [each for each in model.parameters() if each.requires_grad]


def _changed(images: np.ndarray, kind: Kind) -> np.ndarray:
    """Shrink the images to three quarters within a grey frame, for small objects."""
    if kind.change != "small objects":
        return images
    small = F.interpolate(torch.from_numpy(images).permute(0, 3, 1, 2).float(), scale_factor=0.75, mode="area")
    margin = (images.shape[1] - small.shape[-1]) // 2
    return F.pad(small, (margin,) * 4, value=128.0).permute(0, 2, 3, 1).round().byte().numpy()


def _augmented(images: Tensor) -> Tensor:
    """Mirror, move and brighten a batch at random."""
    if torch.rand(()) < 0.5:
        images = images.flip(-1)
    shift = torch.randint(-8, 9, (2,)).tolist()
    return images.roll(shift, (-2, -1)) * torch.empty(()).uniform_(0.7, 1.2)


def _occurrence(classes: np.ndarray) -> np.ndarray:
    """Number the images of each class from 0."""
    number = np.zeros(len(classes), dtype=int)
    for each in np.unique(classes):
        rows = np.flatnonzero(classes == each)
        number[rows] = np.arange(len(rows))
    return number


def all_runs(tower: str, seeds: range) -> Iterator[FineTune]:
    """Make one run of each kind per seed and world."""
    for seed in seeds:
        for world in WORLDS:
            for kind in KINDS:
                yield FineTune(world, tower, kind, seed)
