"""Draw the maps of every CAM method on the same images, for the gallery in ``docs/``.

The small CLIPs of the package explain a generated scene with two objects, and an object on a photograph. Each method
gets one row of tiles, ``docs/gallery/<method>.jpg``; ``images.jpg`` has what they explain.

Run it:  python -m benchmarks.gallery  (about a minute on two cores)
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from PIL import Image, ImageDraw
from skimage.data import chelsea

from clipcam_lightning import METHODS, ConfigError, explain, find_clip, map_state
from clipcam_lightning.cam.display.drawing import to_pixels
from clipcam_lightning.cam.lettering import font, letter
from clipcam_lightning.cam.model import ClipModel
from clipcam_lightning.monitoring.history import relative_saliency
from clipcam_lightning.shapes_world import WordTokenizer, draw_scenes, trained_clip
from clipcam_lightning.storage.jpeg import encode_jpeg
from clipcam_lightning.visualization.drawing import draw_outline, draw_overlay, enlarge

FOLDER = Path(__file__).parents[1] / "docs" / "gallery"
NAMES = {"vit": "ViT", "resnet": "ResNet"}
TILE, GAP, LABEL = 176, 6, 48  # pixels
JPEG_QUALITY = 80
NO_MAP, GROUND, INK, FAINT = "#5c5f68", "#26282f", "#ffffff", "#b8bac0"  # neither glares nor hides in dark mode


class Example(NamedTuple):
    """One image with prompts, the first of which is mapped: methods such as FinerCAM compare it with the others."""

    tower: str
    pixels: UInt8[np.ndarray, "y x 3"]
    mask: Bool[np.ndarray, "y x"]
    prompts: tuple[str, ...]


def list_examples() -> list[Example]:
    """List the columns of the gallery."""
    scenes = draw_scenes(8, objects=2, seed=3)
    prompts = tuple(scenes.kinds[kind] for kind in scenes.objects[0])
    first, second = (
        (scenes.images[0], mask, order) for mask, order in zip(scenes.masks[0], (prompts, prompts[::-1]), strict=True)
    )
    photograph = draw_on_photograph()
    return [
        Example("vit", *first),
        Example("vit", *second),
        Example("vit", *photograph),
        Example("resnet", *first),
        Example("resnet", *photograph),
    ]


def draw_on_photograph() -> tuple[UInt8[np.ndarray, "y x 3"], Bool[np.ndarray, "y x"], tuple[str, ...]]:
    """Put an object of a generated scene on a photograph of a cat."""
    scenes = draw_scenes(8, seed=5)
    pixels, mask = scenes.images[1], scenes.masks[1, 0]
    ground = Image.fromarray(chelsea()[:, 75:375]).resize(mask.shape, Image.Resampling.LANCZOS)
    pixels = np.where(mask[..., None], pixels, np.asarray(ground)).astype(np.uint8)
    return pixels, mask, (scenes.captions[1], scenes.captions[0])


def draw_images(examples: list[Example]) -> Image.Image:
    """Draw what is explained: each image with the outline of the object, its prompt and its model."""
    tiles = [draw_outline(enlarge_pixels(example), torch.from_numpy(example.mask)) for example in examples]
    row = join(tiles, LABEL)
    draw = ImageDraw.Draw(row)
    for i, example in enumerate(examples):
        left = i * (TILE + GAP)
        draw.text((left + GAP, TILE + 2), example.prompts[0], INK, font(18))
        draw.text((left + GAP, TILE + 25), NAMES[example.tower], FAINT, font(16))
    return row


def draw_maps(name: str, examples: list[Example], clips: dict[str, ClipModel]) -> Image.Image:
    """Draw the map of each example with one method."""
    return join([draw_map(name, example, clips[example.tower]) for example in examples])


def draw_map(name: str, example: Example, clip: ClipModel) -> Image.Image:
    """Draw the map of the first prompt, or that the method does not fit the model."""
    try:
        maps = explain(clip, [example.pixels], list(example.prompts), method=name).maps[0, :1]
    except ConfigError:
        return letter(Image.new("RGB", (TILE, TILE), NO_MAP), f"does not fit a {NAMES[example.tower]}")
    return draw_overlay(enlarge_pixels(example), relative_saliency(maps)[0], map_state(maps[0]))


def enlarge_pixels(example: Example) -> UInt8[torch.Tensor, "3 v u"]:
    return enlarge(to_pixels(Image.fromarray(example.pixels)), TILE)


def join(tiles: list[Image.Image], below: int = 0) -> Image.Image:
    """Put tiles side by side, with room for a label under them."""
    row = Image.new("RGB", (len(tiles) * (TILE + GAP) - GAP, TILE + below), GROUND)
    for i, tile in enumerate(tiles):
        row.paste(tile, (i * (TILE + GAP), 0))
    return row


def main() -> None:
    examples = list_examples()
    clips = {tower: find_clip(trained_clip(tower), tokenizer=WordTokenizer()) for tower in NAMES}
    FOLDER.mkdir(exist_ok=True)
    rows = {"images": draw_images(examples), **{name: draw_maps(name, examples, clips) for name in ("auto", *METHODS)}}
    for name, row in rows.items():
        (FOLDER / f"{name}.jpg").write_bytes(encode_jpeg(row, JPEG_QUALITY))


if __name__ == "__main__":
    main()
