"""Occlusion: the causal reference."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from clipcam_lightning.cam.capture import ScoreCapture

WINDOW = 0.25  # sides of what is hidden, as a share of the image's
MIN_CELLS = 7  # a side, so that neighbouring squares overlap
CLUSTERS, ROUNDS = 8, 10


def occlusion(capture: ScoreCapture) -> Float[Tensor, "b p u v"]:
    r"""Hide one square of the image after the other behind the mean colour, and see how much of the score is lost.

    .. math:: M_i = s - s_i

    with :math:`s_i` the score with a square hidden that is a quarter of the image wide and whose centre is that of cell
    ``i``. The grid is the layer's; the cells of one with fewer than seven a side are divided, because what is hidden
    says little about where if the next square has nothing in common with it. Signed: a negative cell hid something
    that spoke against the prompt. No gradient and no assumption about the model, at the price of one forward a cell:
    what the other methods estimate, up to what the hidden square itself does to the model.

    Fits every tower.

    Source: Zeiler & Fergus 2014, sec. 3.1 and 4.2, https://arxiv.org/abs/1311.2901
    """
    rows, columns = (
        _strips(pixels, cells * math.ceil(MIN_CELLS / cells))
        for pixels, cells in zip(capture.images.shape[-2:], capture.activations.shape[-2:], strict=True)
    )
    # Row by row: every strip from left to right with the first from top to bottom, and so on.
    y, x = rows.repeat_interleave(len(columns), dim=0), columns.repeat(len(rows), 1)
    drops = _drops(capture, len(y), lambda _image, which: torch.einsum("ky,kx->kyx", y[which], x[which]))
    maps: Tensor = drops.transpose(1, 2).unflatten(2, (len(rows), len(columns)))
    return maps


def cluster_occlusion(capture: ScoreCapture) -> Float[Tensor, "b p h w"]:
    r"""Hide one group of like patches after the other, and see how much of the score is lost.

    .. math:: M_i = s - s_{k(i)}

    with :math:`k(i)` the cluster of patch ``i`` among eight, by k-means on the directions of the activations. Eight
    forwards an image.

    Fits every tower.

    Source: the idea of occluding clusters of patch tokens is that of CCI (Cluster-based Concept Importance).
    """
    clusters = torch.stack([_clusters(each.flatten(1).T) for each in capture.activations])
    members = F.one_hot(clusters, CLUSTERS).transpose(1, 2).to(capture.images)
    members = members.unflatten(2, capture.activations.shape[-2:])
    size = (capture.images.shape[-2], capture.images.shape[-1])

    def hidden(image: int, which: slice) -> Float[Tensor, "k y x"]:
        return F.interpolate(members[image, which][:, None], size=size, mode="nearest-exact")[:, 0]

    return torch.einsum("bkp,bkhw->bphw", _drops(capture, CLUSTERS, hidden), members)


def _drops(
    capture: ScoreCapture, count: int, hidden: Callable[[int, slice], Float[Tensor, "k y x"]]
) -> Float[Tensor, "b {count} p"]:
    """Score lost with each of the regions hidden; 0 is the mean colour of a normalised image."""

    def covered(image: int, which: slice) -> Float[Tensor, "k 3 y x"]:
        return capture.images[image] * (1 - hidden(image, which).to(capture.images)[:, None])

    return capture.scores[:, None] - capture.rescored(covered, count)


def _strips(pixels: int, cells: int) -> Float[Tensor, "{cells} {pixels}"]:
    """Along one side of the image, the part that is hidden (1) for each cell; at the border it is cut off."""
    # In whole numbers, halves of a pixel of a cell: rounding would make some squares wider than others.
    pixel, cell = (2 * torch.arange(pixels) + 1) * cells, (2 * torch.arange(cells) + 1) * pixels
    return ((pixel - cell[:, None]).abs() < WINDOW * pixels * cells).float()


def _clusters(patches: Float[Tensor, "s c"]) -> Int[Tensor, "s"]:
    """K-means with the cosine; the start is the farthest point each time, so that nothing is drawn."""
    patches = F.normalize(patches, dim=1)
    centers = F.normalize(patches.mean(dim=0, keepdim=True), dim=1)
    for _ in range(CLUSTERS - 1):
        farthest = (patches @ centers.T).amax(dim=1).argmin()
        centers = torch.cat([centers, patches[farthest][None]])
    for _ in range(ROUNDS):
        nearest = (patches @ centers.T).argmax(dim=1)
        sums = torch.zeros_like(centers).index_add_(0, nearest, patches)
        centers = torch.where(sums.any(dim=1, keepdim=True), F.normalize(sums, dim=1), centers)
    return (patches @ centers.T).argmax(dim=1)
