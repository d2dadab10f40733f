"""Images of which a part is removed, to test what a model relies on."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

CELLS = 8  # per side of the grid on which objects are searched for and windows hidden
WINDOWS = CELLS - 1  # of 2 x 2 cells, per side
HOT, CONTROLS = 8, 4  # windows that are hidden: where a map is hottest, and elsewhere
REGION_LEVEL = 0.3  # of the highest score, that a cell of an object's region reaches
FILL_CELLS = 16  # per side of the grid on which a region is filled
DISC_RADIUS = 0.2  # of the shorter side of the image

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
    grounds: Float[Tensor, "n 3 y x"], donors: Float[Tensor, "n 3 y x"], objects: Bool[Tensor, "n y x"]
) -> Float[Tensor, "n 3 y x"]:
    """Put the object of one image on each ground, at its own place.

    Args:
        grounds: preprocessed, without their own objects.
        donors: the images with the objects, one per ground.
        objects: their pixels.
    """
    return torch.where(objects[:, None], donors, grounds)


def discs_around(row: Int[Tensor, "n"], column: Int[Tensor, "n"], size: tuple[int, int]) -> Bool[Tensor, "n y x"]:
    """Mark the pixels at most a fifth of the image's shorter side away from one pixel of each image.

    Args:
        row, column: of this pixel.
        size: height and width of the images.
    """
    rows, columns = (torch.arange(length, device=row.device) for length in size)
    distance = torch.hypot((rows[:, None] - row[:, None, None]).float(), (columns - column[:, None, None]).float())
    return distance <= DISC_RADIUS * min(size)


def choose_windows(maps: Float[Tensor, "n h w"]) -> Int[Tensor, "n k"]:
    """Choose 12 of the 49 windows of 2 x 2 cells: the 8 where a map is hottest, and 4 evenly ranked among the others.

    A region that :func:`object_regions` finds lies where the map is hot, so that other windows hardly change it; the 4
    tell whether the similarity drops there as well.

    Args:
        maps: raw saliency.

    Returns:
        Numbers of windows, counted row by row.
    """
    heat = F.avg_pool2d(_smooth(_in_cells(maps)), 2, stride=1).flatten(1)  # a window beside the hottest counts, too
    ranked = heat.argsort(dim=1, descending=True, stable=True)
    spread = torch.linspace(HOT, WINDOWS**2 - 1, CONTROLS + 2, device=maps.device, dtype=torch.float32)
    ranks = spread.round().long()[1:-1]
    return torch.cat([ranked[:, :HOT], ranked[:, ranks]], dim=1)


def window_drops(
    images: Float[Tensor, "n 3 y x"],
    texts: Float[Tensor, "n d"],
    embed: EmbedImages,
    windows: Int[Tensor, "n k"],
) -> Float[Tensor, "n k"]:
    """Measure what the similarity loses where a window of 2 x 2 cells is filled with the colours around it.

    This is occlusion whose cost does not depend on the model: one forward per window.

    Args:
        images: preprocessed.
        texts: unit embedding of each image's prompt.
        embed: embeds images as unit vectors.
        windows: to hide in each image, one after the other, counted row by row.

    Returns:
        The loss for each window; negative where it hid what speaks against the prompt.

    Source: Zeiler & Fergus 2014, sec. 3.1, https://arxiv.org/abs/1311.2901
    """
    whole = (embed(images) * texts).sum(1)
    hidden = (embed(fill_regions(images, in_pixels(_window(numbers), images))) for numbers in windows.unbind(1))
    return torch.stack([whole - (each * texts).sum(1) for each in hidden], dim=1)


def spread_drops(drops: Float[Tensor, "n k"], windows: Int[Tensor, "n k"]) -> Float[Tensor, "n 8 8"]:
    """Average over each cell the drops of the windows that hid it; 0 where none did.

    Args:
        drops: of :func:`window_drops`.
        windows: that were hidden.
    """
    total, count = (drops.new_zeros(len(drops), CELLS, CELLS) for _ in range(2))
    for drop, numbers in zip(drops.unbind(1), windows.unbind(1), strict=True):
        window = _window(numbers)
        total += drop[:, None, None] * window
        count += window
    return total / count.clamp_min(1)


def window_saliency(maps: Float[Tensor, "n h w"], windows: Int[Tensor, "n k"]) -> Float[Tensor, "n k"]:
    """Average a map over each window."""
    return F.avg_pool2d(_in_cells(maps), 2, stride=1).flatten(1).gather(1, windows)


def object_regions(maps: Float[Tensor, "n h w"], drops: Float[Tensor, "n 8 8"]) -> Bool[Tensor, "n 8 8"]:
    """Guess where the object of each image is, from a model that still looks at it.

    Args:
        maps: raw saliency of the model.
        drops: of :func:`spread_drops`.

    Returns:
        The cells around the hottest one that are connected with it and at least 30 % as hot, where heat is the
        geometric mean of both maps, smoothed over neighbouring cells. All ``False`` if the maps have nothing in common.
    """
    heat = (_smooth(_in_cells(maps)) * _smooth(drops.nan_to_num(0.0, 0.0, 0.0).clamp_min(0)[:, None])).sqrt()
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


def _window(numbers: Int[Tensor, "n"]) -> Bool[Tensor, "n 8 8"]:
    """The cells of one window per image."""
    axis = torch.arange(CELLS, device=numbers.device)
    top, left = numbers[:, None] // WINDOWS, numbers[:, None] % WINDOWS
    rows, columns = ((axis >= start) & (axis < start + 2) for start in (top, left))
    return rows[:, :, None] & columns[:, None, :]


def _in_cells(maps: Float[Tensor, "n h w"]) -> Float[Tensor, "n 1 8 8"]:
    """Average what speaks for the prompt over the cells in which objects are searched for."""
    return F.adaptive_avg_pool2d(maps.nan_to_num(0.0, 0.0, 0.0).clamp_min(0)[:, None], (CELLS, CELLS))


def _smooth(maps: Float[Tensor, "n 1 h w"]) -> Float[Tensor, "n 1 h w"]:
    return F.avg_pool2d(maps, 3, stride=1, padding=1)


def _cell_distances(like: Tensor) -> Float[Tensor, "k k"]:
    """Distances between all cells of the grid that is filled, in cells."""
    axis = torch.arange(FILL_CELLS, device=like.device, dtype=like.dtype)
    cells = torch.cartesian_prod(axis, axis)
    return torch.cdist(cells, cells)
