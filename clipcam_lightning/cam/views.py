"""Views shifted by half a cell: shift images, and put the maps of shifted images back on the grid."""

from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

Shift: TypeAlias = tuple[int, int]
"""Pixels down and to the right."""


def half_a_cell(image_size: tuple[int, int], grid: tuple[int, int]) -> Shift:
    """Compute half the height and width of a cell, rounded down to whole pixels.

    Args:
        image_size: height and width in pixels.
        grid: height and width in cells.
    """
    down, right = (pixels // (2 * cells) for pixels, cells in zip(image_size, grid, strict=True))
    return down, right


def shift_images(images: Float[Tensor, "b 3 y x"], shift: Shift) -> Float[Tensor, "b 3 y x"]:
    """Shift images down and to the right. What enters is their own border, mirrored, so that no edge is added."""
    height, width = images.shape[-2:]
    return F.pad(images, (shift[1], 0, shift[0], 0), mode="reflect")[..., :height, :width]


def unshift_maps(maps: Float[Tensor, "b p h w"], shift: Shift, image_size: tuple[int, int]) -> Float[Tensor, "b p h w"]:
    r"""Put the maps of shifted images back on the grid of the images.

    Each cell of the image is covered by parts of two cells of the shifted image per side, and gets their mean, weighted
    by area:

    .. math:: M_i = (1 - f)\, S_i + f\, S_{i+1}, \quad f = \text{shift} / \text{side of a cell}

    Of the last cells in each direction a part left the image; they get the value of the part that stayed.

    Args:
        maps: raw maps of images that :func:`shift_images` shifted.
        shift: the same shift.
        image_size: height and width of the images in pixels.

    Returns:
        Raw maps on the same grid.

    Example:
        >>> maps = torch.tensor([[[[0.0, 8.0, 0.0, 0.0]]]])  # one row of four cells, 8 pixels wide and high
        >>> unshift_maps(maps, (0, 4), (8, 32))  # the hot cell covers the second half of cell 0 and the first of cell 1
        tensor([[[[4., 4., 0., 0.]]]])
        >>> unshift_maps(maps, (0, 2), (8, 32))
        tensor([[[[2., 6., 0., 0.]]]])
    """
    for dim in (-2, -1):
        cells = maps.shape[dim]
        share = shift[dim] * cells / image_size[dim]
        following = torch.cat([maps.narrow(dim, 1, cells - 1), maps.narrow(dim, -1, 1)], dim)
        maps = (1 - share) * maps + share * following
    return maps
