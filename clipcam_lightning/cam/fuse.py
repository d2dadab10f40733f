"""Combine the maps of several layers, or of several scales, into one."""

from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

Fusion: TypeAlias = Literal["mean", "max", "product"]

FUSIONS: dict[Fusion, Callable[[Float[Tensor, "k b p h w"]], Float[Tensor, "b p h w"]]] = {
    "mean": lambda maps: maps.mean(dim=0),
    "max": lambda maps: maps.amax(dim=0),
    "product": lambda maps: maps.prod(dim=0),
}


def fused(maps: Sequence[Float[Tensor, "b p _h _w"]], fuse: Fusion) -> Float[Tensor, "b p h w"]:
    """Resize raw maps to the finest grid among them and combine them, before any scaling for display."""
    if len(maps) == 1:
        return maps[0]
    size = max((map_.shape[-2:] for map_ in maps), key=lambda shape: shape[0] * shape[1])
    return FUSIONS[fuse](torch.stack([resized(map_, (size[0], size[1])) for map_ in maps]))


def resized(maps: Float[Tensor, "*n h w"], size: tuple[int, int]) -> Float[Tensor, "*n y x"]:
    """Resize maps bilinearly, with cell centres aligned to pixel centres."""
    if maps.shape[-2:] == size:
        return maps
    flat = maps.reshape(-1, 1, *maps.shape[-2:])
    return F.interpolate(flat, size=size, mode="bilinear", align_corners=False).reshape(*maps.shape[:-2], *size)
