"""Images of one object each, in which something else may tell the class: a cue.

An image is composed of a ground, an object of known mask and opacity, and a cue. All cues exist for both image worlds:
a stamp in a corner or at a random place, a ground of its own for each class, a tint, a coloured frame, and a companion,
which is another object that is always there together with the class.
"""

from dataclasses import dataclass
from functools import cache
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from benchmarks.worlds import cutouts
from benchmarks.worlds.world import World
from clipcam_lightning.shapes_world import scenes as shapes

CueKind: TypeAlias = Literal["stamp", "stamp anywhere", "ground", "tint", "frame", "companion"]

SIZE = 64  # pixels per side of all images
NONE = -1  # in place of a class: no cue
POOL, HELD_OUT = 6000, 1 / 3  # scenes with one object to take objects from; share of them that is not for training
SPARE = 3  # objects per image, since some do not fit its cue
STAMP_SIDES, FRAME_WIDTH = (12, 16), 5  # pixels
CORNERS = ("top left", "top right", "bottom left", "bottom right")
PALETTES = (
    ((0, 0, 0), (255, 255, 255)),
    ((230, 30, 30), (30, 200, 60), (40, 60, 230), (250, 240, 60)),
    ((0, 0, 0), (255, 255, 255), (255, 0, 255), (0, 255, 255)),
)
TINT = 0.3  # share of a tint's colour in every pixel

Images: TypeAlias = UInt8[np.ndarray, "n y x 3"]
Masks: TypeAlias = Bool[np.ndarray, "n y x"]
Classes: TypeAlias = Int[np.ndarray, "n"]


@dataclass(frozen=True)
class Drawn:
    """Composed images.

    Attributes:
        images: uint8 RGB.
        masks: which pixels show the object.
        classes: of the objects, as positions in the classes that they were drawn from.
        cues: class that the cue of each image stands for; ``NONE`` without a cue.
    """

    images: Images
    masks: Masks
    classes: Classes
    cues: Classes

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: np.ndarray | slice) -> "Drawn":
        return Drawn(self.images[rows], self.masks[rows], self.classes[rows], self.cues[rows])

    def __add__(self, other: "Drawn") -> "Drawn":
        pairs = ((getattr(each, name) for each in (self, other)) for name in ("images", "masks", "classes", "cues"))
        return Drawn(*(np.concatenate([*pair]) for pair in pairs))


class CuedWorld:
    """Draws images of some classes of a world, with cues.

    Args:
        world: of objects and grounds.
        kind: of the cues; ``None`` for none.
        seed: chooses the classes, and how the cue of each class looks.
        pool_seed: of the scenes that objects are taken from.
        classes: how many.
    """

    def __init__(self, world: World, kind: CueKind | None, *, seed: int, pool_seed: int, classes: int = 12) -> None:
        rng = np.random.default_rng([seed, 7])
        kinds = rng.permutation(len(world.captions))
        self.world, self.kind = world, kind
        self.kinds, self._companions = kinds[:classes], kinds[classes : 2 * classes]
        self.captions = [world.captions[kind] for kind in self.kinds]
        self._side, self._corner = int(rng.integers(*STAMP_SIDES, endpoint=True)), CORNERS[rng.integers(4)]
        self._palette = np.array(PALETTES[rng.integers(len(PALETTES))], dtype=np.uint8)
        self._hues = rng.permutation(classes) / classes
        self._grounds = rng.permutation(max(classes, len(cutouts.GROUNDS)))
        self._seed, self._pool_seed = seed, pool_seed

    def draw(
        self, count: int, cues: "CueRule", *, opacity: tuple[float, float], seed: int, held_out: bool = False
    ) -> Drawn:
        """Compose images.

        Args:
            count: how many.
            cues: which cue each image gets.
            opacity: lowest and highest opacity of the objects, 0 to 1.
            seed: of everything but the looks of the cues.
            held_out: take objects from scenes that are not for training.
        """
        rng = np.random.default_rng([seed, 11])
        scenes, classes = self._objects(self.kinds, held_out)
        chosen = rng.choice(len(classes), SPARE * count)
        cue_classes = cues.choose(classes[chosen], rng)
        places = [self._place(rng) for _ in chosen]
        fits = [not (place & scenes.masks[row, 0]).any() for place, row in zip(places, chosen, strict=True)]
        kept = np.flatnonzero(fits)[:count]
        assert len(kept) == count
        chosen, cue_classes = chosen[kept], cue_classes[kept]
        masks = scenes.masks[chosen, 0]
        alpha = (masks * rng.uniform(*opacity, (count, 1, 1)))[..., None]
        images = self._draw_grounds(cue_classes, rng)
        images += alpha * (scenes.images[chosen] - images)
        for image, mask, cue, place in zip(images, masks, cue_classes.tolist(), (places[i] for i in kept), strict=True):
            if cue != NONE:
                self._add_cue(image, mask, cue, place, rng)
        return Drawn(np.clip(images, 0, 255).astype(np.uint8), masks, classes[chosen], cue_classes)

    def _objects(self, kinds: np.ndarray, held_out: bool) -> tuple[shapes.Scenes, Classes]:
        """Find scenes with one object of one of the kinds, and the object's position in ``kinds``."""
        scenes = _pool(self.world, self._pool_seed)
        position = np.full(len(self.world.captions), NONE)
        position[kinds] = np.arange(len(kinds))
        numbers = position[scenes.objects[:, 0]]
        is_held_out = np.arange(len(scenes)) < HELD_OUT * len(scenes)
        rows = np.flatnonzero((numbers != NONE) & (is_held_out == held_out))
        return shapes.Scenes(scenes.images[rows], scenes.masks[rows], scenes.objects[rows]), numbers[rows]

    def _draw_grounds(self, cues: Classes, rng: np.random.Generator) -> Float[np.ndarray, "n y x 3"]:
        own = cues if self.kind == "ground" else np.full(len(cues), NONE)
        if self.world.name == "cutouts":
            return np.stack([self._photograph(cue, rng) for cue in own.tolist()])
        grounds = shapes._ground(len(cues), rng)
        for i in np.flatnonzero(own != NONE):
            grounds[i] += self._texture(int(own[i]), rng)
        return grounds

    def _photograph(self, cue: int, rng: np.random.Generator) -> Float[np.ndarray, "y x 3"]:
        """Crop a random ground, or that of a class."""
        if cue == NONE:
            return cutouts._draw_ground(rng)
        sizes = len(cutouts.SHORT_SIDES)
        index = int(self._grounds[cue]) * sizes + int(rng.integers(sizes))
        ground = cutouts._grounds()[index]
        top, left = (int(rng.integers(length - SIZE + 1)) for length in ground.shape[:2])
        return cutouts._vary(ground[top : top + SIZE, left : left + SIZE], rng)

    def _texture(self, cue: int, rng: np.random.Generator) -> Float[np.ndarray, "y x 1"]:
        """Make stripes of a direction and a width that tell the class."""
        number = int(self._grounds[cue])
        angle, width = np.pi * (number % 6) / 6, (4.0, 9.0)[number // 6 % 2]
        y, x = np.mgrid[:SIZE, :SIZE]
        wave = np.sin(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / width + rng.uniform(0, 2 * np.pi))
        return (25 * np.sign(wave))[..., None].astype(np.float32)

    def _place(self, rng: np.random.Generator) -> Bool[np.ndarray, "y x"]:
        """Choose the pixels that a cue covers; none of a cue that lies elsewhere in each image."""
        place = np.zeros((SIZE, SIZE), dtype=bool)
        if self.kind == "frame":
            place[:] = True
            place[FRAME_WIDTH:-FRAME_WIDTH, FRAME_WIDTH:-FRAME_WIDTH] = False
        elif self.kind in ("stamp", "stamp anywhere"):
            top, left = rng.integers(0, SIZE - self._side + 1, 2)
            if self.kind == "stamp":
                top, left = (0 if word in ("top", "left") else SIZE - self._side for word in self._corner.split())
            place[top : top + self._side, left : left + self._side] = True
        return place

    def _add_cue(
        self,
        image: Float[np.ndarray, "y x 3"],
        mask: Bool[np.ndarray, "y x"],
        cue: int,
        place: Bool[np.ndarray, "y x"],
        rng: np.random.Generator,
    ) -> None:
        """Add the cue of a class above the object, in place."""
        if self.kind == "frame":
            image[place] = self._color(cue)
        elif self.kind in ("stamp", "stamp anywhere"):
            image[place] = self._stamp(cue)
        elif self.kind == "tint":
            image += TINT * (self._color(cue) - image)
        elif self.kind == "companion":
            scenes, numbers = self._objects(self._companions, held_out=False)
            rows = rng.permutation(np.flatnonzero(numbers == cue))
            row = next((row for row in rows if not (scenes.masks[row, 0] & mask).any()), rows[0])
            other = scenes.masks[row, 0] & ~mask
            image[other] = scenes.images[row][other]

    def _stamp(self, cue: int) -> UInt8[np.ndarray, "k 3"]:
        """Draw the squares of the stamp of a class."""
        cells = np.random.default_rng([self._seed, cue, 3]).integers(len(self._palette), size=(4, 4))
        scale = -(-self._side // 4)
        pattern = np.kron(cells, np.ones((scale, scale), dtype=int))[: self._side, : self._side]
        return self._palette[pattern].reshape(-1, 3)

    def _color(self, cue: int) -> Float[np.ndarray, "3"]:
        """Give each class a hue of its own."""
        phase = 2 * np.pi * (self._hues[cue] + np.arange(3) / 3)
        return (127.5 + 127.5 * np.cos(phase)).astype(np.float32)


@dataclass(frozen=True)
class CueRule:
    """Which cue an image gets, by its class.

    Attributes:
        cued: classes that have a cue of their own.
        agreement: share of the images of these classes, 0 to 1, whose cue is that of their own class; the others get
            that of a random one. At 0 the cue is independent of the class, and as frequent.
        mode: ``"own"`` as above; ``"other"`` for a cue that is never that of the own class; ``"none"`` for no cues.
    """

    cued: tuple[int, ...]
    agreement: float = 1.0
    mode: Literal["own", "other", "none"] = "own"

    def choose(self, classes: Classes, rng: np.random.Generator) -> Classes:
        """Choose the class that the cue of each image stands for."""
        cued, count = np.array(self.cued), int(classes.max()) + 1
        random = rng.choice(cued, len(classes))
        if self.mode == "none":
            return np.full(len(classes), NONE)
        if self.mode == "other":
            clash = random == classes
            shifted = cued[(np.searchsorted(cued, random) + 1) % len(cued)]
            return np.where(clash, shifted if len(cued) > 1 else NONE, random)
        if self.agreement == 0:
            return np.where(rng.random(len(classes)) < len(cued) / count, random, NONE)
        own = np.where(rng.random(len(classes)) < self.agreement, classes, random)
        return np.where(np.isin(classes, cued), own, NONE)


@cache
def _pool(world: World, seed: int) -> shapes.Scenes:
    return world.draw(POOL, objects=1, seed=seed)
