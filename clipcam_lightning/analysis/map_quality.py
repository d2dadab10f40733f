"""Metrics of single maps: how well they find objects, and whether they are faithful to the model."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from clipcam_lightning.analysis.interventions import discs_around
from clipcam_lightning.cam.fuse import resize_maps
from clipcam_lightning.drift import metrics

STEPS = 10  # in which all pixels are deleted or inserted
LIKE_BEFORE = 0.5  # correlation from which a map counts as unchanged by the randomization of parameters

Score: TypeAlias = Callable[[Float[Tensor, "n 3 y x"]], Float[Tensor, "n"]]


class Grades(NamedTuple):
    """How well maps find their objects, for every scene and object in it; each value is 0 to 1.

    Attributes:
        pointing: 1 if the hottest pixel is on the object, 0 if not or if the map is degenerate.
        energy: share of the map's mass on the object; 0 if the map is degenerate.
        iou: overlap of the object with as many of the hottest pixels.
        degenerate: 1 for a degenerate map, else 0.
    """

    pointing: Float[Tensor, "n k"]
    energy: Float[Tensor, "n k"]
    iou: Float[Tensor, "n k"]
    degenerate: Float[Tensor, "n k"]


def grade(maps: Float[Tensor, "n k h w"], masks: Bool[Tensor, "n k y x"]) -> Grades:
    """Grade the map of each object in each scene."""
    each, inside = maps.flatten(0, 1), masks.flatten(0, 1)
    hits, energy = metrics.pointing_hit(each, inside), metrics.energy_inside(each, inside)
    columns = (hits, energy, mask_iou(each, inside), ~metrics.is_valid(each))
    return Grades(*(column.float().unflatten(0, maps.shape[:2]) for column in columns))


def mask_iou(maps: Float[Tensor, "n h w"], masks: Bool[Tensor, "n y x"]) -> Float[Tensor, "n"]:
    """Measure the overlap of each mask with as many of the hottest pixels of the enlarged map.

    No threshold has to be chosen. At this one, precision and recall are equal to the relevance rank accuracy ``r``, and
    the intersection over union is ``r / (2 - r)``. The coldest pixels of a map are never among its hottest.

    Returns:
        Intersection over union, 0 to 1.

    Source: Arras et al. 2022, CLEVR-XAI (relevance rank accuracy), https://arxiv.org/abs/2003.07258
    """
    pixels, inside = resize_maps(maps, (masks.shape[-2], masks.shape[-1])).flatten(1), masks.flatten(1)
    last = pixels.sort(dim=1, descending=True).values.gather(1, inside.sum(1, keepdim=True) - 1)
    hottest = (pixels >= last) & (pixels > pixels.amin(1, keepdim=True))
    return torch.div((hottest & inside).sum(1), (hottest | inside).sum(1))


def perturbation_curves(
    score: Score, images: Float[Tensor, "n 3 y x"], maps: Float[Tensor, "n h w"], steps: int = STEPS
) -> tuple[Float[Tensor, "n {steps}+1"], Float[Tensor, "n {steps}+1"]]:
    """Score images while pixels are deleted from them, or inserted into the mean colour, the hottest first.

    The mean colour is 0 in a normalised image. RISE inserts into a blurred image, in which objects as large as here
    would still be visible.

    Args:
        score: of a batch of images.
        images: preprocessed.
        maps: one per image.
        steps: in which all pixels are deleted or inserted.

    Returns:
        Scores of deletion, from the whole image to the mean colour, and of insertion, from the mean colour to the
        whole image.

    Source: Petsiuk et al. 2018, RISE, sec. 4.1 (causal metrics), https://arxiv.org/abs/1806.07421
    """
    size = (images.shape[-2], images.shape[-1])
    order = resize_maps(maps, size).flatten(1).argsort(dim=1, descending=True, stable=True)
    rank = order.argsort(dim=1).view(-1, 1, *size)
    reached = [rank < step / steps * size[0] * size[1] for step in range(steps + 1)]
    deletion = [score(images.masked_fill(hottest, 0)) for hottest in reached]
    insertion = [score(images.masked_fill(~hottest, 0)) for hottest in reached[1:-1]]
    return torch.stack(deletion, dim=1), torch.stack([deletion[-1], *insertion, deletion[0]], dim=1)


def hottest_discs(maps: Float[Tensor, "n h w"], size: tuple[int, int]) -> Bool[Tensor, "n y x"]:
    """Mark a disc around the hottest pixel of each map.

    Args:
        maps: one per image.
        size: height and width of the images, in pixels.

    Returns:
        The pixels at most a fifth of the image's shorter side away; fewer at the border.
    """
    hottest = resize_maps(maps, size).flatten(1).argmax(dim=1)
    return discs_around(hottest // size[1], hottest % size[1], size)


def likeness(before: Float[Tensor, "n h w"], after: Float[Tensor, "n h w"]) -> float:
    """Average the correlation of maps before and after randomization; that of a degenerate map counts as 0."""
    return float(metrics.correlation(before, after).nan_to_num(0).mean())
