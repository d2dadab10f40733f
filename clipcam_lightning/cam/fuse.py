"""Several layers, several scales -> one map."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

FUSIONS: dict[str, Callable[[Float[Tensor, "k b p h w"]], Float[Tensor, "b p h w"]]] = {
    "mean": lambda maps: maps.mean(dim=0),
    "max": lambda maps: maps.amax(dim=0),
    "product": lambda maps: maps.prod(dim=0),
}


def fused(maps: Sequence[Float[Tensor, "b p _h _w"]], fuse: str) -> Float[Tensor, "b p h w"]:
    """Raw maps brought to the finest grid among them and combined, before any display scaling."""
    if len(maps) == 1:
        return maps[0]
    size = max((map_.shape[-2:] for map_ in maps), key=lambda shape: shape[0] * shape[1])
    return FUSIONS[fuse](torch.stack([resized(map_, (size[0], size[1])) for map_ in maps]))


def resized(maps: Float[Tensor, "*n h w"], size: tuple[int, int]) -> Float[Tensor, "*n y x"]:
    """Bilinear, cell centres aligned to pixel centres."""
    if maps.shape[-2:] == size:
        return maps
    flat = maps.reshape(-1, 1, *maps.shape[-2:])
    return F.interpolate(flat, size=size, mode="bilinear", align_corners=False).reshape(*maps.shape[:-2], *size)
