"""Round cut-outs of photographs on other photographs.

An object has no outline, and a third of all scenes are without colour, so that neither betrays it. All photographs come
from scikit-image and scikit-learn; no ground comes from a part of a photograph that an object is cut from.
"""

from functools import cache
from importlib.resources import files
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image
from sklearn.datasets import load_sample_images

from clipcam_lightning.shapes_world.scenes import Scenes

SIZE = 64  # pixels per side


class Region(NamedTuple):
    """A part of a photograph: its file, and left, top, right and bottom in pixels."""

    photograph: str
    box: tuple[int, int, int, int]


OBJECTS = {
    "a face": Region("astronaut.png", (150, 0, 300, 190)),
    "a helmet": Region("astronaut.png", (280, 335, 510, 512)),
    "a flag": Region("astronaut.png", (0, 40, 80, 330)),
    "a badge": Region("astronaut.png", (125, 340, 215, 430)),
    "a shuttle": Region("astronaut.png", (370, 0, 460, 290)),
    "a photographer": Region("camera.png", (130, 50, 300, 260)),
    "a cat": Region("chelsea.png", (100, 20, 390, 300)),
    "a cup": Region("coffee.png", (170, 20, 440, 230)),
    "a spoon": Region("coffee.png", (310, 210, 420, 340)),
    "a coin": Region("coins.png", (300, 10, 384, 80)),
    "a rainbow": Region("color.png", (0, 0, 371, 370)),
    "a horse": Region("horse.png", (0, 0, 400, 328)),
    "a snake": Region("logo.png", (0, 0, 500, 500)),
    "a wheel": Region("motorcycle_left.png", (500, 270, 680, 460)),
    "an engine": Region("motorcycle_left.png", (300, 260, 480, 440)),
    "a rocket": Region("rocket.jpg", (280, 120, 380, 400)),
    "an eye": Region("retina.jpg", (0, 0, 1411, 1411)),
    "a brain": Region("phantom.png", (50, 0, 350, 400)),
    "a page": Region("page.png", (0, 20, 200, 150)),
    "a crater": Region("moon.png", (270, 60, 420, 200)),
    "a cell": Region("cell.png", (340, 280, 510, 450)),
    "a pagoda": Region("china.jpg", (60, 20, 350, 330)),
    "a flower": Region("flower.jpg", (160, 70, 450, 370)),
    "a sketch": Region("text.png", (0, 0, 220, 172)),
}
CAPTIONS = tuple(OBJECTS)
TEMPLATES = ("{}", "a photo of {}", "a picture of {}", "there is {}", "{} in a photograph")
GROUNDS = (
    Region("brick.png", (0, 0, 512, 512)),
    Region("grass.png", (0, 0, 512, 512)),
    Region("gravel.png", (0, 0, 512, 512)),
    Region("ihc.png", (0, 0, 512, 512)),
    Region("hubble_deep_field.jpg", (0, 0, 1000, 872)),
    Region("astronaut.png", (90, 210, 280, 335)),
    Region("camera.png", (330, 80, 512, 300)),
    Region("china.jpg", (380, 100, 640, 427)),
    Region("coffee.png", (0, 200, 120, 400)),
    Region("flower.jpg", (460, 0, 640, 360)),
    Region("motorcycle_left.png", (0, 0, 240, 180)),
    Region("rocket.jpg", (0, 0, 270, 300)),
)
SHORT_SIDES = (70, 100, 150)  # pixels of the shorter side of a ground
CUT_SIZE = 64  # pixels per side of an object before it is turned and resized
# Smallest and largest diameter in pixels, by the number of objects per scene.
SIDES = {1: (18.0, 30.0), 2: (16.0, 26.0), 3: (14.0, 21.0)}
MAX_TURN = 25.0  # degrees
GREY_SHARE = 1 / 3

Pixels = Float[np.ndarray, "y x 3"]


def draw_scenes(count: int, *, objects: int = 1, seed: int = 0) -> Scenes:
    """Draw scenes of different objects, each of random diameter, turn, place and brightness.

    Args:
        count: number of images.
        objects: 1 to 3 objects per image, which do not overlap.
        seed: the same seed gives the same images.

    Returns:
        The scenes, whose captions are :data:`CAPTIONS`.
    """
    rng = np.random.default_rng([seed, objects])
    images = np.zeros((count, SIZE, SIZE, 3), dtype=np.uint8)
    masks = np.zeros((count, objects, SIZE, SIZE), dtype=bool)
    kinds = np.argsort(rng.random((count, len(CAPTIONS))), axis=1)[:, :objects]
    for image, own_masks, own_kinds in zip(images, masks, kinds, strict=True):
        scene = _draw_ground(rng)
        sides = rng.uniform(*SIDES[objects], objects).round()
        for kind, mask, side, center in zip(own_kinds, own_masks, sides, _draw_centers(sides, rng), strict=True):
            _paste_object(scene, mask, int(kind), int(side), center, rng)
        if rng.random() < GREY_SHARE:
            scene[:] = scene.mean(axis=2, keepdims=True)
        image[:] = np.clip(scene + rng.normal(0, 3, scene.shape), 0, 255)
    return Scenes(images, masks, kinds, CAPTIONS)


def _paste_object(
    scene: Pixels,
    mask: Bool[np.ndarray, "y x"],
    kind: int,
    side: int,
    center: Float[np.ndarray, "2"],
    rng: np.random.Generator,
) -> None:
    """Paste a disc cut from a turned object, and mark where it is in ``mask``."""
    turned = _object(kind).rotate(rng.uniform(-MAX_TURN, MAX_TURN), Image.Resampling.BICUBIC)
    pixels = np.asarray(turned.resize((side, side), Image.Resampling.BILINEAR, reducing_gap=2), np.float32)
    top, left = (center - side / 2).round().astype(int)
    place = slice(top, top + side), slice(left, left + side)
    disc = _disc(side)
    scene[place][disc] = _vary(pixels, rng)[disc]
    mask[place] = disc


def _disc(side: int) -> Bool[np.ndarray, "side side"]:
    rows, columns = np.ogrid[:side, :side]
    middle = (side - 1) / 2
    inside: Bool[np.ndarray, "side side"] = (rows - middle) ** 2 + (columns - middle) ** 2 <= (side / 2) ** 2
    return inside


def _draw_centers(sides: Float[np.ndarray, "k"], rng: np.random.Generator) -> Float[np.ndarray, "k 2"]:
    """Draw places where no two objects touch, by rejection."""
    first, second = np.triu_indices(len(sides), 1)
    while True:
        centers = rng.uniform(sides[:, None] / 2 + 1, SIZE - sides[:, None] / 2 - 1, (len(sides), 2))
        apart = np.linalg.norm(centers[first] - centers[second], axis=1)
        if (apart > (sides[first] + sides[second]) / 2 + 2).all():
            return centers


def _draw_ground(rng: np.random.Generator) -> Pixels:
    """Crop a random square of a random ground, half of the time mirrored."""
    grounds = _grounds()
    ground = grounds[rng.integers(len(grounds))]
    top, left = (int(rng.integers(length - SIZE + 1)) for length in ground.shape[:2])
    return _vary(ground[top : top + SIZE, left : left + SIZE][:, :: rng.choice((-1, 1))], rng)


def _vary(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Change contrast, brightness and tint at random."""
    mean = pixels.mean()
    varied: Pixels = (pixels - mean) * rng.uniform(0.7, 1.1) + mean * rng.uniform(0.8, 1.2, 3)
    return np.clip(varied, 0, 255).astype(np.float32)


@cache
def _object(kind: int) -> Image.Image:
    """Crop an object and squeeze it into a square."""
    return _crop(OBJECTS[CAPTIONS[kind]]).resize((CUT_SIZE, CUT_SIZE), Image.Resampling.LANCZOS)


@cache
def _grounds() -> list[Pixels]:
    """Each ground in several sizes, so that a crop need not be resized."""
    resized = []
    for region in GROUNDS:
        ground = _crop(region)
        for side in SHORT_SIDES:
            factor = side / min(ground.size)
            size = round(ground.width * factor), round(ground.height * factor)
            resized.append(np.asarray(ground.resize(size, Image.Resampling.LANCZOS), dtype=np.float32))
    return resized


def _crop(region: Region) -> Image.Image:
    """Read a region of a photograph; what is transparent is white."""
    image = _photograph(region.photograph).convert("RGBA")
    opaque = Image.new("RGBA", image.size, "white")
    opaque.alpha_composite(image)
    return opaque.convert("RGB").crop(region.box)


def _photograph(name: str) -> Image.Image:
    if name in ("china.jpg", "flower.jpg"):
        photographs = load_sample_images()
        index = [filename.rpartition("/")[2] for filename in photographs.filenames].index(name)
        return Image.fromarray(photographs.images[index])
    return Image.open(str(files("skimage") / "data" / name))
