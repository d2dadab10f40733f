"""Images of which a part is removed, to test what a model relies on."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

CELLS = 8  # per side of the grid on which objects are searched for and windows hidden
REGION_LEVEL = 0.3  # of the highest score, that a cell of an object's region reaches
FILL_CELLS = 16  # per side of the grid on which a region is filled

EmbedImages = Callable[[Float[Tensor, "n 3 y x"]], Float[Tensor, "n d"]]


def fill_regions(images: Float[Tensor, "n 3 y x"], regions: Bool[Tensor, "n y x"]) -> Float[Tensor, "n 3 y x"]:
    """Replace a region of each image by the colours around it.

    Args:
        images: preprocessed.
        regions: what to replace, in pixels.

    Returns:
        New images. A filled pixel is a mean of the pixels outside the region, whose weight falls exponentially with
        their distance, by a factor of e in a sixteenth of the image. An image that is all region becomes 0.
    """
    outside, side = (~regions)[:, None].to(images), (FILL_CELLS, FILL_CELLS)
    weights = F.adaptive_avg_pool2d(outside, side).flatten(2)
    colors = F.adaptive_avg_pool2d(images * outside, side).flatten(2)
    nearness = torch.exp(-_cell_distances(images))
    means = (colors @ nearness) / (weights @ nearness).clamp_min(torch.finfo(images.dtype).tiny)
    filled = F.interpolate(means.unflatten(2, side), size=images.shape[-2:], mode="bilinear", align_corners=False)
    return torch.where(regions[:, None], filled, images)


def transplant(
    grounds: Float[Tensor, "n 3 y x"],
    images: Float[Tensor, "m 3 y x"],
    objects: Bool[Tensor, "m y x"],
    donors: Int[Tensor, "n"],
) -> Float[Tensor, "n 3 y x"]:
    """Put the object of one donor on each ground, at its own place.

    Args:
        grounds: preprocessed, without their own objects.
        images: of the donors.
        objects: pixels of the donors' objects.
        donors: one per ground.
    """
    return torch.where(objects[donors][:, None], images[donors], grounds)


def window_drops(
    images: Float[Tensor, "n 3 y x"], texts: Float[Tensor, "n d"], embed: EmbedImages
) -> Float[Tensor, "n 8 8"]:
    """Map what the similarity loses where a window of 2 x 2 cells is filled with the colours around it.

    This is occlusion whose cost does not depend on the model: 49 forwards per image.

    Args:
        images: preprocessed.
        texts: unit embedding of each image's prompt.
        embed: embeds images as unit vectors.

    Returns:
        For each cell the mean loss of the windows over it; negative where a window hid what speaks against the prompt.

    Source: Zeiler & Fergus 2014, sec. 3.1, https://arxiv.org/abs/1311.2901
    """
    whole = (embed(images) * texts).sum(1)
    total, count = whole.new_zeros(len(images), CELLS, CELLS), whole.new_zeros(CELLS, CELLS)
    for y in range(CELLS - 1):
        for x in range(CELLS - 1):
            window = images.new_zeros(1, CELLS, CELLS, dtype=torch.bool)
            window[:, y : y + 2, x : x + 2] = True
            hidden = fill_regions(images, in_pixels(window, images).expand(len(images), -1, -1))
            total[:, y : y + 2, x : x + 2] += (whole - (embed(hidden) * texts).sum(1))[:, None, None]
            count[y : y + 2, x : x + 2] += 1
    return total / count


def object_regions(maps: Float[Tensor, "n h w"], drops: Float[Tensor, "n 8 8"]) -> Bool[Tensor, "n 8 8"]:
    """Guess where the object of each image is, from a model that still looks at it.

    Args:
        maps: raw saliency of the model.
        drops: of :func:`window_drops`.

    Returns:
        The cells around the hottest one that are connected with it and at least 30 % as hot, where heat is the
        geometric mean of both maps, smoothed over neighbouring cells. All ``False`` if the maps have nothing in common.
    """
    saliency = F.adaptive_avg_pool2d(maps.nan_to_num(0.0, 0.0, 0.0).clamp_min(0)[:, None], (CELLS, CELLS))
    heat = (_smooth(saliency) * _smooth(drops.nan_to_num(0.0, 0.0, 0.0).clamp_min(0)[:, None])).sqrt()
    peaks = heat.amax((2, 3), keepdim=True)
    hot = (heat >= REGION_LEVEL * peaks) & (peaks > 0)
    region = (heat == peaks) & hot
    while True:
        grown = (F.max_pool2d(region.float(), 3, stride=1, padding=1) > 0) & hot
        if torch.equal(grown, region):
            return region[:, 0]
        region = grown


def in_pixels(cells: Bool[Tensor, "n h w"], images: Float[Tensor, "m 3 y x"]) -> Bool[Tensor, "n y x"]:
    """Enlarge regions in cells to the size of images."""
    return F.interpolate(cells[:, None].float(), size=images.shape[-2:], mode="nearest-exact")[:, 0] > 0.5


def _smooth(maps: Float[Tensor, "n 1 h w"]) -> Float[Tensor, "n 1 h w"]:
    return F.avg_pool2d(maps, 3, stride=1, padding=1)


def _cell_distances(like: Tensor) -> Float[Tensor, "k k"]:
    """Distances between all cells of the grid that is filled, in cells."""
    axis = torch.arange(FILL_CELLS, device=like.device, dtype=like.dtype)
    cells = torch.cartesian_prod(axis, axis)
    return torch.cdist(cells, cells)
