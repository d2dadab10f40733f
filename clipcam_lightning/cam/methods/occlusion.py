"""Occlusion, the causal reference."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from clipcam_lightning.cam.capture import ScoreCapture
from clipcam_lightning.cam.methods.clusters import cluster_patches

WINDOW = 0.25  # sides of the hidden square, as a share of the image's
MIN_CELLS = 7  # per side, so that neighbouring squares overlap
CLUSTERS = 8


def occlusion(capture: ScoreCapture) -> Float[Tensor, "b p u v"]:
    r"""Hide one square of the image at a time behind the mean colour, and map the loss of score.

    .. math:: M_i = s - s_i

    with :math:`s_i` the score while a square is hidden that is 25 % of the image wide and high and centred on cell
    ``i``. The map is signed: a negative cell hid something that speaks against the prompt.

    The grid is the layer's. If it has fewer than seven cells per side, its cells are divided, since squares that do not
    overlap localise poorly.

    Perturbation-based: no gradient and no assumption about the model, at the cost of one forward per cell. It measures
    what other methods estimate, up to the effect of the hidden square itself on the model.

    Fits every tower.

    Source: Zeiler & Fergus 2014, sec. 3.1 and 4.2, https://arxiv.org/abs/1311.2901
    """
    rows, columns = (
        _make_strips(pixels, _divide_cells(cells), capture.images.device)
        for pixels, cells in zip(capture.images.shape[-2:], capture.activations.shape[-2:], strict=True)
    )
    # Row by row: the first strip of rows with every strip of columns from left to right, and so on.
    y, x = rows.repeat_interleave(len(columns), dim=0), columns.repeat(len(rows), 1)
    drops = _compute_drops(capture, len(y), lambda _image, which: torch.einsum("ky,kx->kyx", y[which], x[which]))
    maps: Tensor = drops.transpose(1, 2).unflatten(2, (len(rows), len(columns)))
    return maps


def cluster_occlusion(capture: ScoreCapture) -> Float[Tensor, "b p h w"]:
    r"""Hide one cluster of similar patches at a time behind the mean colour, and map the loss of score.

    .. math:: M_i = s - s_{k(i)}

    with :math:`k(i)` the cluster of patch ``i`` among eight, by k-means on the directions of the activations.
    Perturbation-based: eight forwards per image. A method of this package, for towers that ``cci`` does not fit.

    Fits every tower.

    Source: no paper; occlusion with the regions of CCI, Agarwal et al. 2025, https://arxiv.org/abs/2511.12978
    """
    members = cluster_patches(capture.activations, CLUSTERS)
    size = (capture.images.shape[-2], capture.images.shape[-1])

    def hidden(image: int, which: slice) -> Float[Tensor, "k y x"]:
        return F.interpolate(members[image, which][:, None], size=size, mode="nearest-exact")[:, 0]

    return torch.einsum("bkp,bkhw->bphw", _compute_drops(capture, CLUSTERS, hidden), members)


def count_squares(_channels: int, height: int, width: int) -> int:
    """Count the squares that :func:`occlusion` hides on a layer's grid."""
    return _divide_cells(height) * _divide_cells(width)


def _divide_cells(cells: int) -> int:
    """Divide the cells of one side until they are at least seven."""
    return cells * math.ceil(MIN_CELLS / cells)


def _compute_drops(
    capture: ScoreCapture, count: int, hidden: Callable[[int, slice], Float[Tensor, "k y x"]]
) -> Float[Tensor, "b {count} p"]:
    """Compute the loss of score for each of ``count`` hidden regions per image.

    Args:
        capture: images and scores.
        count: number of regions.
        hidden: masks (1 where hidden) of one image's regions in a slice.

    Returns:
        Score of the unchanged image minus score of the changed one.
    """

    def cover(image: int, which: slice) -> Float[Tensor, "k 3 y x"]:
        # 0 is the mean colour of a normalised image
        return capture.images[image] * (1 - hidden(image, which).to(capture.images)[:, None])

    return capture.scores[:, None] - capture.score_variants(cover, count)


def _make_strips(pixels: int, cells: int, device: torch.device) -> Float[Tensor, "{cells} {pixels}"]:
    """Mark, along one side of the image, the pixels (1) that are hidden for each cell, cut off at the border."""
    # In whole numbers, the unit being half a pixel times cells: rounding would make some squares wider than others.
    pixel = (2 * torch.arange(pixels, device=device) + 1) * cells
    cell = (2 * torch.arange(cells, device=device) + 1) * pixels
    return ((pixel - cell[:, None]).abs() < WINDOW * pixels * cells).float()
