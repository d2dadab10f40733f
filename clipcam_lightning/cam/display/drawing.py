"""Draw maps over the images that they explain, and the colour bar that explains the colours."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageChops, ImageFilter
from torch import Tensor

from clipcam_lightning.cam.colors import overlaid
from clipcam_lightning.cam.fuse import resize_maps
from clipcam_lightning.cam.lettering import letter
from clipcam_lightning.cam.map_state import MapState, map_state

MID_GREY = 128
OUTLINE = {3: "#000000", 2: "#ffffff"}  # by width in pixels


def scale_heat(
    maps: Float[Tensor, "p h w"], states: Sequence[MapState], size: tuple[int, int], *, is_shared: bool = False
) -> Float[Tensor, "p y x"]:
    """Scale maps to heat from 0 to 1, on the CPU.

    Values at or below 0 have no heat, since they do not raise the score. Neither has a degenerate map.

    Args:
        maps: raw.
        states: of the maps.
        size: height and width in pixels.
        is_shared: whether all maps have one scale, that of their largest value, instead of one each.
    """
    heat = resize_maps(maps.float(), size).clamp_min(0).cpu()
    is_valid = torch.tensor([not state.is_degenerate for state in states], device="cpu")
    heat = heat.where(is_valid[:, None, None], 0.0)
    highest = heat.amax() if is_shared else heat.amax((1, 2), keepdim=True)
    return heat / highest.clamp_min(torch.finfo(torch.float32).tiny)


def draw_maps(
    maps: Float[Tensor, "p h w"], pixels: UInt8[Tensor, "3 y x"] | None, side: int, *, is_shared: bool = False
) -> list[Image.Image]:
    """Draw each map over the image that it explains; of a degenerate map what its state says.

    Args:
        maps: raw.
        pixels: what the model sees of the image; ``None`` draws the maps over grey.
        side: of such a grey image, in pixels along its longer side.
        is_shared: whether all maps have one scale, instead of one each.
    """
    maps = maps.detach().cpu()
    states = [map_state(map_) for map_ in maps]
    if pixels is None:
        pixels = _fill_grey(*_fit(maps.shape[-2:], side))
    heat = scale_heat(maps, states, (pixels.shape[1], pixels.shape[2]), is_shared=is_shared)
    drawn = overlaid(pixels, heat)
    return [letter(to_image(each), state.words) for each, state in zip(drawn, states, strict=True)]


def draw_color_bar(width: int, height: int) -> Image.Image:
    """Draw heat from 0 to 1 over an image of mid-grey, as it is drawn over other images."""
    ramp = torch.linspace(0, 1, width, dtype=torch.float32, device="cpu").expand(height, width)
    return to_image(overlaid(_fill_grey(height, width), ramp))


def outline_mask(image: Image.Image, mask: Bool[np.ndarray, "y x"]) -> None:
    """Draw the outline of a mask on an image of the same proportions, white on black, which shows on any ground."""
    grey = Image.fromarray(mask.astype(np.uint8) * 255).resize(image.size, Image.Resampling.BILINEAR)
    solid = grey.point(lambda value: 255 if value > 127 else 0)
    for width, color in OUTLINE.items():
        # A box blur grows the mask; a maximum filter takes five times as long.
        grown = solid.filter(ImageFilter.BoxBlur(width)).point(lambda value: 255 if value else 0)
        image.paste(color, mask=ImageChops.subtract(grown, solid))


def to_image(pixels: UInt8[Tensor, "3 y x"]) -> Image.Image:
    """Convert pixels to a Pillow image."""
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def to_pixels(image: Image.Image) -> UInt8[Tensor, "3 y x"]:
    """Convert a Pillow image to pixels."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def fit_image(image: Image.Image, side: int) -> Image.Image:
    """Resize an image to ``side`` pixels along its longer side; the proportions stay."""
    height, width = _fit((image.height, image.width), side)
    return image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)  # large photographs in less time


def _fill_grey(height: int, width: int) -> UInt8[Tensor, "3 y x"]:
    return torch.full((3, height, width), MID_GREY, dtype=torch.uint8, device="cpu")


def _fit(size: Sequence[int], side: int) -> tuple[int, int]:
    height, width = (max(1, round(length * side / max(size))) for length in size)
    return height, width
