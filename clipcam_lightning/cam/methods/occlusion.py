"""Occlusion: the causal reference."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from clipcam_lightning.cam.capture import ScoreCapture

WINDOW = 0.25  # side of the hidden square, as a share of the grid's
CLUSTERS, ROUNDS = 8, 10


def occlusion(capture: ScoreCapture) -> Float[Tensor, "b p h w"]:
    r"""Hide one square of the image after the other behind the mean colour, and see how much of the score is lost.

    .. math:: M_i = \mathrm{mean}_{k \ni i} (s - s_k)

    over the squares ``k``, a quarter of the image wide, that cover cell ``i``. Signed: a negative cell hid something
    that spoke against the prompt. No gradient and no assumption about the model, at the price of one forward a cell:
    what the other methods estimate, up to what the hidden square itself does to the model.

    Fits every tower.

    Source: Zeiler & Fergus 2014, sec. 3.1, https://arxiv.org/abs/1311.2901
    """
    height, width = capture.activations.shape[-2:]
    squares = _squares(height, width).to(capture.images)
    drops = _drops(capture, squares.expand(len(capture.images), -1, -1, -1))
    return torch.einsum("bkp,khw->bphw", drops, squares) / squares.sum(dim=0)


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
    return torch.einsum("bkp,bkhw->bphw", _drops(capture, members), members)


def _drops(capture: ScoreCapture, hidden: Float[Tensor, "b k h w"]) -> Float[Tensor, "b k p"]:
    """Score lost with each of the regions hidden; 0 is the mean colour of a normalised image."""
    size = (capture.images.shape[-2], capture.images.shape[-1])

    def covered(image: int, which: slice) -> Float[Tensor, "k 3 y x"]:
        cover = F.interpolate(hidden[image, which][:, None], size=size, mode="nearest-exact")
        return capture.images[image] * (1 - cover)

    return capture.scores[:, None] - capture.rescored(covered, hidden.shape[1])


def _squares(height: int, width: int) -> Float[Tensor, "k h w"]:
    """Every place of the square that lies inside the grid; 1 is hidden."""
    y, x = (max(1, round(WINDOW * side)) for side in (height, width))
    corners = [(top, left) for top in range(height - y + 1) for left in range(width - x + 1)]
    squares = torch.zeros(len(corners), height, width)
    for square, (top, left) in zip(squares, corners, strict=True):
        square[top : top + y, left : left + x] = 1
    return squares


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
