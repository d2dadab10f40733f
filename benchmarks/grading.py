"""Metrics of the localisation benchmark, and how it chooses a recipe; without models and files."""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import fmean, stdev
from typing import NamedTuple, TypeAlias, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from clipcam_lightning.cam.fuse import resize_maps
from clipcam_lightning.drift import metrics

STEPS = 10  # in which all pixels are deleted or inserted
LIKE_BEFORE = 0.5  # correlation from which a map counts as unchanged by the randomization of parameters
LUMA = (0.299, 0.587, 0.114)
SOBEL = ((-1.0, 0.0, 1.0), (-2.0, 0.0, 2.0), (-1.0, 0.0, 1.0))

Name = TypeVar("Name")
Score: TypeAlias = Callable[[Float[Tensor, "n 3 y x"]], Float[Tensor, "n"]]


class Grades(NamedTuple):
    """How well maps find their objects, for every scene and object in it; each value is 0 to 1.

    Attributes:
        pointing: 1 if the hottest pixel is on the object, 0 if not or if the map is degenerate.
        energy: share of the map's mass on the object; NaN without mass.
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
    degenerate = ~metrics.is_valid(each)
    pointing = metrics.pointing_hit(each, inside) & ~degenerate
    columns = (pointing, metrics.energy_inside(each, inside), mask_iou(each, inside), degenerate)
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
) -> tuple[Float[Tensor, "n steps+1"], Float[Tensor, "n steps+1"]]:
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


def relative_area(curves: Float[Tensor, "n k"], whole: Float[Tensor, "n"], blank: Float[Tensor, "n"]) -> float:
    """Measure the mean area under the curves, where 0 is the score of the mean colour and 1 that of the whole image.

    Means over the images are divided, not the values of each image: one image whose score hardly differs from that of
    the mean colour would decide alone.

    Args:
        curves: one per image.
        whole: scores of the whole images.
        blank: scores of the mean colour.
    """
    areas = torch.trapezoid(curves, dx=1 / (curves.shape[1] - 1), dim=1)
    return float((areas - blank).mean() / (whole - blank).mean())


def edges(images: Float[Tensor, "n 3 y x"], size: tuple[int, int]) -> Float[Tensor, "n h w"]:
    """Measure the strength of the edges in each cell of a grid, as a control that is independent of any model.

    It looks like a map, so a test that it passes proves nothing.

    Args:
        images: preprocessed.
        size: height and width of the grid.

    Source: Adebayo et al. 2018, fig. 1 and sec. 5 (the edge detector as baseline), https://arxiv.org/abs/1810.03292
    """
    gray = torch.einsum("nchw,c->nhw", images, images.new_tensor(LUMA))[:, None]
    kernel = images.new_tensor(SOBEL)
    gradient = F.conv2d(F.pad(gray, (1, 1, 1, 1), mode="replicate"), torch.stack([kernel, kernel.T])[:, None])
    return F.adaptive_avg_pool2d(gradient.norm(dim=1), size)


def randomize_parameters(trained: nn.Module, untrained: nn.Module, stages: Sequence[str]) -> Iterator[str]:
    """Replace weights and buffers of a trained module by those of an untrained one, one stage after the other.

    Args:
        trained: changed in place, for good.
        untrained: of the same architecture.
        stages: from the top down, regular expressions for the beginning of the names; ``""`` for all that remain.

    Yields:
        The stage that was replaced last.

    Raises:
        ValueError: a stage has no weights.

    Source: Adebayo et al. 2018, sec. 4.1 (cascading randomisation), https://arxiv.org/abs/1810.03292
    """
    remaining, source = trained.state_dict(), untrained.state_dict()
    for stage in stages:
        names = [name for name in remaining if re.match(stage, name)]
        if not names:
            raise ValueError(f"no weights begin with {stage!r}; remaining: {', '.join(remaining) or 'none'}.")
        for name in names:
            remaining.pop(name).copy_(source[name])
        yield stage


def likeness(before: Float[Tensor, "n h w"], after: Float[Tensor, "n h w"]) -> float:
    """Average the correlation of maps before and after randomization; that of a degenerate map counts as 0."""
    return float(metrics.correlation(before, after).nan_to_num(0).mean())


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Average independent values that are not NaN.

    Returns:
        The mean and its standard error; NaN if there are too few values.
    """
    valid = [value for value in values if not math.isnan(value)]
    error = stdev(valid) / math.sqrt(len(valid)) if len(valid) > 1 else math.nan
    return fmean(valid) if valid else math.nan, error


def close_to_best(values: Mapping[Name, tuple[float, float]]) -> list[Name]:
    """List the names whose metric is within one standard error of the best, the best first.

    Args:
        values: of the metric, each with its standard error; that of the best counts.

    Source: Breiman et al. 1984, Classification and Regression Trees, sec. 3.4.3 (the one-standard-error rule)
    """
    ordered = sorted(values, key=lambda name: -values[name][0])
    best, error = values[ordered[0]]
    return [name for name in ordered if values[name][0] >= best - error]


def best_mean_rank(values: Mapping[Name, Sequence[float]]) -> Name:
    """Find the name with the best mean rank over several metrics; of equal names the first.

    Ranks are averaged and not values, because the metrics have different units.

    Args:
        values: of each name, one per metric, higher for better.
    """
    columns = list(zip(*values.values(), strict=True))

    def count_better(name: Name) -> int:
        own = values[name]
        return sum(sum(other > value for other in column) for value, column in zip(own, columns, strict=True))

    return min(values, key=count_better)
