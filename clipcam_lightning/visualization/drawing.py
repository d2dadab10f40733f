"""Drawing shared by all images: tiles with heat on them, and panels of tiles."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageChops, ImageDraw, ImageFilter
from torch import Tensor

from clipcam_lightning.cam.colors import CHANGE, HEAT, colored, overlaid
from clipcam_lightning.cam.fuse import resize_maps
from clipcam_lightning.cam.lettering import font, letter, shorten, text_width
from clipcam_lightning.cam.map_state import MapState

TILE, GAP = 208, 8  # pixels
INK, FAINT, PAPER, FLAG = "#1a1a1a", "#6b6b6b", "#ffffff", "#c1121f"


def to_image(pixels: UInt8[Tensor, "3 y x"]) -> Image.Image:
    """Convert pixels to a Pillow image."""
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def to_pixels(image: Image.Image) -> UInt8[Tensor, "3 y x"]:
    """Convert a Pillow image to pixels."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def enlarge(pixels: UInt8[Tensor, "3 y x"], side: int) -> UInt8[Tensor, "3 v u"]:
    """Resize an image to ``side`` pixels along its longer side; the proportions stay."""
    height, width = pixels.shape[1:]
    width, height = (max(1, round(length * side / max(height, width))) for length in (width, height))
    return to_pixels(to_image(pixels).resize((width, height), Image.Resampling.BICUBIC))


def fit_to(pixels: UInt8[Tensor, "3 y x"], map_: Float[Tensor, "h w"]) -> Float[Tensor, "y x"]:
    """Enlarge a map to the size of an image."""
    return resize_maps(map_.float(), (pixels.shape[1], pixels.shape[2]))


def draw_heat(
    heat: Float[Tensor, "h w"], size: tuple[int, int], colors: str = HEAT, state: MapState = MapState.VALID
) -> Image.Image:
    """Draw heat 0 to 1 alone, at ``size`` (height, width) in pixels; of a degenerate map what its state says."""
    return letter(_to_image(colored(resize_maps(_shown(heat, state), size), colors)), state.words)


def draw_overlay(
    pixels: UInt8[Tensor, "3 y x"], heat: Float[Tensor, "h w"], state: MapState = MapState.VALID
) -> Image.Image:
    """Draw heat 0 to 1 over an image; of a degenerate map what its state says."""
    return letter(to_image(overlaid(pixels, fit_to(pixels, _shown(heat, state)))), state.words)


def draw_change(pixels: UInt8[Tensor, "3 y x"], change: Float[Tensor, "h w"]) -> Image.Image:
    """Draw a change of heat, -1 (blue) to 1 (red), over a faint image, which shows where nothing changed."""
    change = fit_to(pixels, change)
    faint = 0.55 + 0.45 * pixels.float().mean(0) / 255
    cover = change.abs().sqrt()
    return _to_image(cover * colored(change / 2 + 0.5, CHANGE) + (1 - cover) * faint)


def draw_outline(pixels: UInt8[Tensor, "3 v u"], mask: Bool[Tensor, "y x"] | None) -> Image.Image:
    """Draw an image with the outline of a mask, or as it is without mask."""
    image = to_image(pixels)
    if mask is None:
        return image
    grey = Image.fromarray(mask.numpy().astype(np.uint8) * 255).resize(image.size, Image.Resampling.BILINEAR)
    solid = grey.point(lambda value: 255 if value > 127 else 0)
    for width, color in ((2, "#000000"), (1, "#ffffff")):  # white on black shows on any ground
        # A box blur grows the mask; a maximum filter takes five times as long.
        grown = solid.filter(ImageFilter.BoxBlur(width)).point(lambda value: 255 if value else 0)
        image.paste(color, mask=ImageChops.subtract(grown, solid))
    return image


def draw_panel(title: str, details: str, tiles: Sequence[tuple[str, Image.Image]], flag: str = "") -> Image.Image:
    """Arrange tiles side by side, with texts around them.

    Args:
        title: first line, above the tiles.
        details: second line, smaller.
        tiles: each with the label below it.
        flag: red, at the right end of the first line.

    Returns:
        The panel; texts that are too long are shortened.
    """
    width, header = len(tiles) * TILE + (len(tiles) + 1) * GAP, 58
    image = Image.new("RGB", (width, header + TILE + 24), PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((GAP, 5), shorten(title, 20, width - 2 * GAP - text_width(flag, 20)), INK, font(20))
    if flag:
        draw.text((width - GAP - text_width(flag, 20), 5), flag, FLAG, font(20))
    draw.text((GAP, 33), shorten(details, 14, width - 2 * GAP), FAINT, font(14))
    for i, (label, tile) in enumerate(tiles):
        left = GAP + i * (TILE + GAP)
        image.paste(tile, (left, header))
        draw.text((left, header + TILE + 4), shorten(label, 13, TILE), FAINT, font(13))
    return image


def _shown(heat: Float[Tensor, "h w"], state: MapState) -> Float[Tensor, "h w"]:
    """Heat to draw: none for a degenerate map, whose brightness would mean nothing."""
    return torch.zeros_like(heat) if state.is_degenerate else heat.float()


def _to_image(colors: Float[Tensor, "3 y x"]) -> Image.Image:
    """Convert colours 0 to 1."""
    return to_image((colors * 255).round().to(torch.uint8))
