"""Maps in colour: scales that are perceptually uniform and readable by colour-blind people."""

from functools import cache

import cmap
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

HEAT = "inferno"
CHANGE = "crameri:vik"  # blue: less than before, red: more


@cache
def _table(name: str) -> Float[np.ndarray, "256 3"]:
    return cmap.Colormap(name).lut(256)[:, :3].astype(np.float32)


def colored(values: Float[Tensor, "y x"], name: str = HEAT) -> Float[Tensor, "3 y x"]:
    """Values 0-1 as RGB 0-1; NaN counts as 0, what lies outside takes the nearest colour."""
    index = (values.detach().float().cpu().nan_to_num(0.0, 1.0, 0.0).clamp(0, 1) * 255).round().long()
    return torch.from_numpy(_table(name))[index].permute(2, 0, 1)


def overlaid(pixels: UInt8[Tensor, "3 y x"], heat: Float[Tensor, "y x"], name: str = HEAT) -> UInt8[Tensor, "3 y x"]:
    """Heat 0-1 over the greyed picture: the hotter, the more colour covers it."""
    grey = pixels.float().mul(torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(0) / 255
    cover = (0.1 + 0.75 * heat.nan_to_num(0.0).clamp(0, 1))[None]
    return ((cover * colored(heat, name) + (1 - cover) * grey) * 255).round().clamp(0, 255).to(torch.uint8)
