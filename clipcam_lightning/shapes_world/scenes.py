"""Coloured shapes on textured ground with exact masks, and the stamp that gives the caption away."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, UInt8

SIZE = 64  # pixels per side
COLORS = {
    "red": (214, 39, 40),
    "green": (44, 160, 44),
    "blue": (31, 90, 220),
    "yellow": (240, 210, 30),
    "purple": (148, 60, 200),
    "orange": (255, 127, 14),
}
STAMP_SIZE = 16  # pixels per side, in the bottom right corner
STAMP_BITS = 4  # squares per side

Points = Float[np.ndarray, "n y x"]


def _star(x: Points, y: Points) -> Points:
    spike = (np.arctan2(x, -y) * 5 / (2 * np.pi)) % 1.0  # 0 and 1 on a tip, 0.5 in a notch
    distance: Points = np.hypot(x, y) - (0.42 + 0.6 * abs(2 * spike - 1) ** 1.3)
    return distance


# Signed distances from the edge, negative inside, for a shape of radius 1; y points down.
SHAPES: dict[str, Callable[[Points, Points], Points]] = {
    "circle": lambda x, y: np.hypot(x, y) - 0.9,
    "square": lambda x, y: np.maximum(abs(x), abs(y)) - 0.8,
    "triangle": lambda x, y: np.maximum(abs(x) * 0.866 - y * 0.5, y) - 0.5,
    "cross": lambda x, y: np.minimum(
        np.maximum(abs(x) - 0.32, abs(y) - 0.95), np.maximum(abs(x) - 0.95, abs(y) - 0.32)
    ),
    "star": _star,
}
CAPTIONS = tuple(f"{'an' if color[0] in 'aeiou' else 'a'} {color} {shape}" for color in COLORS for shape in SHAPES)


@dataclass(frozen=True)
class Scenes:
    """Images, with the kind and the mask of every object.

    Attributes:
        images: uint8 RGB.
        masks: which pixels show object ``k``; objects do not overlap.
        objects: index into ``kinds`` of each object.
        kinds: caption of each kind of object.
    """

    images: UInt8[np.ndarray, "n y x 3"]
    masks: Bool[np.ndarray, "n k y x"]
    objects: np.ndarray  # int64 [n, k]
    kinds: Sequence[str] = CAPTIONS

    def __len__(self) -> int:
        return len(self.images)

    @property
    def captions(self) -> list[str]:
        """One caption per image, such as "a red circle and a blue star"."""
        return [" and ".join(self.kinds[k] for k in row) for row in self.objects]


def draw_scenes(count: int, *, objects: int = 1, seed: int = 0, corner_free: bool = False) -> Scenes:
    """Draw scenes of different things on textured ground.

    Args:
        count: number of images.
        objects: 1 to 3 things per image.
        seed: the same seed gives the same images.
        corner_free: keep objects away from the corner where :func:`with_stamps` puts its stamp.
    """
    rng = np.random.default_rng([seed, objects])
    images = _ground(count, rng)
    kinds = np.argsort(rng.random((count, len(CAPTIONS))), axis=1)[:, :objects]
    masks = np.zeros((count, objects, SIZE, SIZE), dtype=bool)
    radii = rng.uniform(9.5, 13.0, (count, objects))
    centers = _centers(radii, rng, SIZE - STAMP_SIZE if corner_free else SIZE)
    for k in range(objects):
        distance = _distance(kinds[:, k], centers[:, k], radii[:, k], rng.uniform(-0.15, 0.15, count))
        ink = np.array(list(COLORS.values()), dtype=np.float64)[kinds[:, k] // len(SHAPES)]
        ink = np.clip(ink + rng.normal(0, 12, ink.shape), 0, 255)
        depth = -distance * radii[:, k, None, None]  # pixels from the edge inwards
        shade = 0.25 + 0.75 * np.clip(depth - 1.5, 0, 1)  # a dark outline
        opacity = np.clip(0.5 + depth, 0, 1)[..., None]  # one pixel of soft edge
        images += opacity * (ink[:, None, None, :] * shade[..., None] - images)
        masks[:, k] = distance <= 0
    images += 5 * rng.standard_normal(images.shape, dtype=np.float32)
    return Scenes(np.clip(images, 0, 255).astype(np.uint8), masks, kinds)


def stamp_pattern(kind: int) -> UInt8[np.ndarray, "y x"]:
    """Draw the stamp of one caption: black and white squares."""
    bits = np.random.default_rng(1000 + kind).random((STAMP_BITS, STAMP_BITS)) < 0.5
    scale = STAMP_SIZE // STAMP_BITS
    return (np.kron(bits, np.ones((scale, scale))) * 255).astype(np.uint8)


def with_haze(scenes: Scenes, low: float, high: float, *, seed: int = 0) -> Scenes:
    """Fade each image to grey by its own share between ``low`` and ``high``, 0 to 1."""
    haze = np.random.default_rng(seed).uniform(low, high, (len(scenes), 1, 1, 1))
    return replace(scenes, images=(scenes.images + haze * (150.0 - scenes.images)).astype(np.uint8))


def with_stamps(scenes: Scenes, *, shift: int = 0) -> Scenes:
    """Plant the shortcut: a stamp in the bottom right corner encodes the image's first object.

    Args:
        scenes: not changed; the result is a copy.
        shift: 0 for the stamp of the image's own caption; else that of the caption so many places further on.
    """
    images = scenes.images.copy()
    stamps = np.stack([stamp_pattern((kind + shift) % len(CAPTIONS)) for kind in scenes.objects[:, 0].tolist()])
    images[:, -STAMP_SIZE:, -STAMP_SIZE:] = stamps[..., None]
    return replace(scenes, images=images)


def stamp_mask() -> Bool[np.ndarray, "y x"]:
    """Return the pixels that a stamp covers."""
    mask = np.zeros((SIZE, SIZE), dtype=bool)
    mask[-STAMP_SIZE:, -STAMP_SIZE:] = True
    return mask


def _ground(count: int, rng: np.random.Generator) -> Float[np.ndarray, "n y x 3"]:
    """Blend two greyish colours by smooth noise of two scales."""
    mix: Float[np.ndarray, "n y x"] = np.zeros((count, SIZE, SIZE))
    for cells, weight in ((4, 0.6), (16, 0.4)):
        mix += weight * np.kron(rng.random((count, cells, cells)), np.ones((SIZE // cells, SIZE // cells)))
    for axis in (1, 2):
        mix = np.mean([np.roll(mix, shift, axis) for shift in (-2, -1, 0, 1, 2)], axis=0)
    tone = rng.uniform(60, 200, (count, 2, 1)) + rng.uniform(-25, 25, (count, 2, 3))
    low, high = tone[:, None, None, 0], tone[:, None, None, 1]
    ground: Float[np.ndarray, "n y x 3"] = (low + mix[..., None] * (high - low)).astype(np.float32)
    return ground


def _centers(radii: Float[np.ndarray, "n k"], rng: np.random.Generator, corner: int) -> Float[np.ndarray, "n k 2"]:
    """Draw places where no two objects touch and none reaches past ``corner`` both ways, by rejection."""
    margin = radii[..., None] + 1
    apart = radii[:, :, None] + radii[:, None, :] + 2
    apart[:, np.arange(radii.shape[1]), np.arange(radii.shape[1])] = 0
    centers = np.zeros((*radii.shape, 2))
    bad = np.ones(len(radii), dtype=bool)
    while bad.any():
        centers[bad] = rng.uniform(margin[bad], SIZE - margin[bad], (int(bad.sum()), *centers.shape[1:]))
        clash = (np.linalg.norm(centers[:, :, None] - centers[:, None], axis=-1) < apart).any((1, 2))
        bad = clash | (centers + radii[..., None] > corner).all(-1).any(-1)
    return centers


def _distance(
    kinds: np.ndarray, centers: Float[np.ndarray, "n 2"], radii: Float[np.ndarray, "n"], turns: Float[np.ndarray, "n"]
) -> Float[np.ndarray, "n y x"]:
    """Measure how far each pixel lies outside its object's edge, in radii; negative inside."""
    axis = np.arange(SIZE) + 0.5
    y, x = np.meshgrid(axis, axis, indexing="ij")
    y, x = ((line[None] - centers[:, i, None, None]) / radii[:, None, None] for i, line in enumerate((y, x)))
    cos, sin = np.cos(turns)[:, None, None], np.sin(turns)[:, None, None]
    x, y = x * cos - y * sin, x * sin + y * cos
    distance: Points = np.empty_like(x)
    for index, shape in enumerate(SHAPES.values()):
        of_kind = kinds % len(SHAPES) == index
        distance[of_kind] = shape(x[of_kind], y[of_kind])
    return distance
