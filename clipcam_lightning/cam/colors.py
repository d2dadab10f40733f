"""Maps in colour, with colour maps that are perceptually uniform and readable with colour blindness."""

from functools import cache

import cmap
import numpy as np
import torch
from jaxtyping import Float, Int, Int32, UInt8
from torch import Tensor
from torch.nn import functional as F

HEAT = "inferno"
CHANGE = "crameri:vik"  # blue: less than before, red: more
LUMA = (0.299, 0.587, 0.114)
DARKEST, CONTRAST = 0.08, 0.6  # grey range of an image under heat, so that heat stands out on black and on white
FAINTEST, DENSEST = 0.05, 0.65  # opacity of the least and of the most heat: the image stays visible where all is hot


@cache
def _table(name: str) -> Float[np.ndarray, "256 3"]:
    return cmap.Colormap(name).lut(256)[:, :3].astype(np.float32)


def load_color_maps() -> None:
    """Load the colour maps now, each of which is a module that is imported when it is first used."""
    for name in (HEAT, CHANGE):
        _table(name)


def colored(values: Float[Tensor, "y x"], name: str = HEAT) -> Float[Tensor, "3 y x"]:
    """Convert values to colours.

    Args:
        values: from 0 to 1. NaN counts as 0; values outside the range take the nearest colour.
        name: colour map, as ``cmap`` names it.

    Returns:
        RGB from 0 to 1.
    """
    return torch.from_numpy(_table(name))[_levels(values)].permute(2, 0, 1)


def overlaid(
    pixels: UInt8[Tensor, "3 y x"], heat: Float[Tensor, "*n y x"], name: str = HEAT
) -> UInt8[Tensor, "*n 3 y x"]:
    """Draw heat over an image that is reduced to dim grey. The hotter a pixel, the more of it the colour covers.

    Args:
        pixels: the image.
        heat: from 0 to 1, one or several maps over the same image.
        name: colour map, as ``cmap`` names it.

    Returns:
        One RGB image per map.
    """
    # float32 by name: images are drawn while training in bfloat16 has changed torch's default type in all threads.
    luma = torch.tensor(LUMA, dtype=torch.float32, device="cpu")
    grey = (luma @ pixels.flatten(1).float()).round().long().view(pixels.shape[1:])
    rgbx = _overlays(name).take(256 * _levels(heat) + grey)
    return rgbx[..., None].view(torch.uint8)[..., :3].movedim(-1, -3)


def _levels(values: Float[Tensor, "*n"]) -> Int[Tensor, "*n"]:
    return (values.detach().float().cpu().nan_to_num(0.0, 1.0, 0.0).clamp(0, 1) * 255).round().long()


@cache
def _overlays(name: str) -> Int32[Tensor, "65536"]:
    """Tabulate each heat over each grey, as RGB and one unused byte; a lookup is about five times as fast as mixing."""
    level = torch.linspace(0, 1, 256, dtype=torch.float32, device="cpu")
    cover = FAINTEST + (DENSEST - FAINTEST) * level.view(256, 1, 1)
    grey = DARKEST + CONTRAST * level.view(1, 256, 1)
    mixed = cover * torch.from_numpy(_table(name)).view(256, 1, 3) + (1 - cover) * grey
    return F.pad((mixed * 255).round().to(torch.uint8), (0, 1)).view(torch.int32).flatten()
