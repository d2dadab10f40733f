"""Maps in colour: scales that are perceptually uniform and readable by colour-blind people."""

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
DARKEST, CONTRAST = 0.08, 0.6  # of a picture under heat, so that heat stands out on black and on white


@cache
def _table(name: str) -> Float[np.ndarray, "256 3"]:
    return cmap.Colormap(name).lut(256)[:, :3].astype(np.float32)


def colored(values: Float[Tensor, "y x"], name: str = HEAT) -> Float[Tensor, "3 y x"]:
    """Values 0-1 as RGB 0-1; NaN counts as 0, what lies outside takes the nearest colour."""
    return torch.from_numpy(_table(name))[_levels(values)].permute(2, 0, 1)


def overlaid(
    pixels: UInt8[Tensor, "3 y x"], heat: Float[Tensor, "*n y x"], name: str = HEAT
) -> UInt8[Tensor, "*n 3 y x"]:
    """Heat 0-1 over the greyed, subdued picture: the hotter, the more colour covers it."""
    # Types are named: pictures are drawn while a training in bfloat16 has changed torch's default for all threads.
    grey = (torch.tensor(LUMA, dtype=torch.float32) @ pixels.flatten(1).float()).round().long().view(pixels.shape[1:])
    rgbx = _overlays(name).take(256 * _levels(heat) + grey)
    return rgbx[..., None].view(torch.uint8)[..., :3].movedim(-1, -3)


def _levels(values: Float[Tensor, "*n"]) -> Int[Tensor, "*n"]:
    return (values.detach().float().cpu().nan_to_num(0.0, 1.0, 0.0).clamp(0, 1) * 255).round().long()


@cache
def _overlays(name: str) -> Int32[Tensor, "65536"]:
    """Each heat over each grey, four bytes a colour: to look it up takes a fifth of the time of mixing it."""
    level = torch.linspace(0, 1, 256, dtype=torch.float32)
    cover = 0.1 + 0.75 * level.view(256, 1, 1)
    grey = DARKEST + CONTRAST * level.view(1, 256, 1)
    mixed = cover * torch.from_numpy(_table(name)).view(256, 1, 3) + (1 - cover) * grey
    return F.pad((mixed * 255).round().to(torch.uint8), (0, 1)).view(torch.int32).flatten()
