"""Combine the maps of several layers, scales or mirrored images into one."""

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
    "product": lambda maps: maps.clamp(min=0).prod(dim=0),  # two negative values are no evidence
}


def fuse_maps(maps: Sequence[Float[Tensor, "b p _h _w"]], fuse: Fusion) -> Float[Tensor, "b p h w"]:
    """Resize raw maps to the finest grid among them and combine them cell by cell, before any display scaling.

    Args:
        maps: maps of the same images and prompts on any grids.
        fuse: a key of :data:`FUSIONS`.

    Returns:
        The combined maps; a single map is returned unchanged.
    """
    if len(maps) == 1:
        return maps[0]
    size = max((map_.shape[-2:] for map_ in maps), key=lambda shape: shape[0] * shape[1])
    return FUSIONS[fuse](torch.stack([resize_maps(map_, (size[0], size[1])) for map_ in maps]))


def resize_maps(maps: Float[Tensor, "*n h w"], size: tuple[int, int]) -> Float[Tensor, "*n y x"]:
    """Resize maps bilinearly to ``size`` (height, width), with the centres of cells on the centres of pixels."""
    if maps.shape[-2:] == size:
        return maps
    flat = maps.reshape(-1, 1, *maps.shape[-2:])
    return F.interpolate(flat, size=size, mode="bilinear", align_corners=False).reshape(*maps.shape[:-2], *size)
