"""Handwritten digits and letters on photographs.

An object has neither an outline nor a colour of its own: it differs from the ground by its form alone. Digits come from
scikit-learn, letters from Pillow's font, photographs from scikit-image and scikit-learn.
"""

from functools import cache
from importlib.resources import files

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_digits, load_sample_images

from clipcam_lightning.shapes_world.scenes import Scenes

SIZE = 64  # pixels per side
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LETTERS = "AEFHKMPRTXYZ"
CAPTIONS = (*(f"the digit {number}" for number in NUMBERS), *(f"the letter {letter.lower()}" for letter in LETTERS))
TEMPLATES = ("{}", "a photo of {}", "a picture of {}", "there is {}", "{} on a photograph")
PHOTOGRAPHS = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "chelsea.png",
    "coffee.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "moon.png",
    "motorcycle_left.png",
    "rocket.jpg",
)
SHORT_SIDES = (80, 120, 200)  # pixels of the shorter side of a photograph
GLYPH_SIZE = 48  # pixels per side, before a glyph is turned and resized
SIDES = {1: (19.0, 30.0), 2: (18.0, 28.0), 3: (16.0, 23.0)}  # smallest and largest side in pixels, by objects per scene
MAX_TURN = 20.0  # degrees

Opacity = Float[np.ndarray, "y x"]


def draw_scenes(count: int, *, objects: int = 1, seed: int = 0) -> Scenes:
    """Draw scenes of different glyphs, each of random size, turn, place and colour.

    Args:
        count: number of images.
        objects: 1 to 3 glyphs per image, which do not overlap.
        seed: the same seed gives the same images.

    Returns:
        The scenes, whose captions are :data:`CAPTIONS`.
    """
    rng = np.random.default_rng([seed, objects])
    images = np.zeros((count, SIZE, SIZE, 3), dtype=np.uint8)
    masks = np.zeros((count, objects, SIZE, SIZE), dtype=bool)
    kinds = np.argsort(rng.random((count, len(CAPTIONS))), axis=1)[:, :objects]
    for image, own_masks, own_kinds in zip(images, masks, kinds, strict=True):
        scene = _crop_photograph(rng)
        sides = rng.uniform(*SIDES[objects], objects)
        for kind, mask, side, center in zip(own_kinds, own_masks, sides, _draw_centers(sides, rng), strict=True):
            _paint_glyph(scene, mask, int(kind), round(side), center, rng)
        image[:] = np.clip(scene + rng.normal(0, 3, scene.shape), 0, 255)
    return Scenes(images, masks, kinds, CAPTIONS)


def _paint_glyph(
    scene: Float[np.ndarray, "y x 3"],
    mask: Bool[np.ndarray, "y x"],
    kind: int,
    side: int,
    center: Float[np.ndarray, "2"],
    rng: np.random.Generator,
) -> None:
    """Paint a glyph lighter or darker than what is under it, and mark where it is in ``mask``."""
    turned = Image.fromarray((_draw_glyph(kind, rng) * 255).astype(np.uint8)).rotate(
        rng.uniform(-MAX_TURN, MAX_TURN), Image.Resampling.BICUBIC
    )
    opacity = np.asarray(turned.resize((side, side), Image.Resampling.BILINEAR, reducing_gap=2), np.float32) / 255
    top, left = (center - side / 2).round().astype(int)
    place = slice(top, top + side), slice(left, left + side)
    under = scene[place].mean()
    tone = under + (1 if under < 127 else -1) * rng.uniform(80, 120) + rng.normal(0, 25, 3)
    texture = _crop_photograph(rng)[:side, :side]
    ink = np.clip(tone + 0.25 * (texture - texture.mean()), 0, 255)
    scene[place] += opacity[..., None] * (ink - scene[place])
    mask[place] = opacity > 0.5


def _draw_centers(sides: Float[np.ndarray, "k"], rng: np.random.Generator) -> Float[np.ndarray, "k 2"]:
    """Draw places where no two glyphs touch, by rejection."""
    first, second = np.triu_indices(len(sides), 1)
    while True:
        centers = rng.uniform(sides[:, None] / 2 + 1, SIZE - sides[:, None] / 2 - 1, (len(sides), 2))
        apart = abs(centers[first] - centers[second]).max(axis=1)
        if (apart > (sides[first] + sides[second]) / 2 + 1).all():
            return centers


def _draw_glyph(kind: int, rng: np.random.Generator) -> Opacity:
    """Choose one of a digit's handwritten forms, or draw a letter."""
    if kind >= len(NUMBERS):
        return _draw_letter(LETTERS[kind - len(NUMBERS)])
    forms = _digits()[kind]
    return _enlarge(forms[rng.integers(len(forms))])


@cache
def _digits() -> list[Float[np.ndarray, "n 8 8"]]:
    """The handwritten digits of scikit-learn by number, 0 to 1."""
    data = load_digits()
    return [data.images[data.target == number] / 16 for number in range(10)]


def _enlarge(digit: Float[np.ndarray, "8 8"]) -> Opacity:
    """Crop a digit to its ink and enlarge it; the ramp between ink and paper is made steep again."""
    rows, columns = (np.flatnonzero((digit > 0.25).any(axis=axis)) for axis in (1, 0))
    ink = digit[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    square = _center_in_square(ink)
    size = (GLYPH_SIZE, GLYPH_SIZE)
    smooth = np.asarray(Image.fromarray((square * 255).astype(np.uint8)).resize(size, Image.Resampling.BICUBIC))
    return np.clip((smooth / np.float32(255) - 0.25) * 4, 0, 1)


@cache
def _draw_letter(letter: str) -> Opacity:
    canvas = Image.new("L", (2 * GLYPH_SIZE, 2 * GLYPH_SIZE))
    font = ImageFont.load_default(GLYPH_SIZE)
    middle = (GLYPH_SIZE, GLYPH_SIZE)
    ImageDraw.Draw(canvas).text(middle, letter, fill=255, font=font, anchor="mm", stroke_width=2)
    square = _center_in_square(np.asarray(canvas.crop(canvas.getbbox())))
    resized = Image.fromarray(square.astype(np.uint8)).resize((GLYPH_SIZE, GLYPH_SIZE), Image.Resampling.BILINEAR)
    return np.asarray(resized, dtype=np.float32) / 255


def _center_in_square(ink: Float[np.ndarray, "h w"] | UInt8[np.ndarray, "h w"]) -> Float[np.ndarray, "s s"]:
    side = max(ink.shape)
    square = np.zeros((side, side))
    top, left = ((side - length) // 2 for length in ink.shape)
    square[top : top + ink.shape[0], left : left + ink.shape[1]] = ink
    return square


@cache
def _photographs() -> list[Float[np.ndarray, "_y _x 3"]]:
    """Each photograph in several sizes, so that a crop need not be resized."""
    folder = files("skimage") / "data"
    originals = [Image.open(str(folder / name)).convert("RGB") for name in PHOTOGRAPHS]
    originals += [Image.fromarray(image) for image in load_sample_images().images]
    sizes = [
        (
            original,
            (round(original.width * side / min(original.size)), round(original.height * side / min(original.size))),
        )
        for original in originals
        for side in SHORT_SIDES
    ]
    return [np.asarray(original.resize(size, Image.Resampling.LANCZOS), dtype=np.float32) for original, size in sizes]


def _crop_photograph(rng: np.random.Generator) -> Float[np.ndarray, "y x 3"]:
    """Crop a random square of a random photograph, with less contrast than the original."""
    photographs = _photographs()
    photograph = photographs[rng.integers(len(photographs))]
    top, left = (int(rng.integers(length - SIZE + 1)) for length in photograph.shape[:2])
    pixels = photograph[top : top + SIZE, left : left + SIZE, :][:, :: rng.choice((-1, 1))]
    mean = pixels.mean()
    faded: Float[np.ndarray, "y x 3"] = np.clip(mean + (pixels - mean) * rng.uniform(0.5, 0.9), 0, 255)
    return faded
