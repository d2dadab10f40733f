"""What the localisation benchmark measures of maps, and how it chooses among recipes; free of models and files."""

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

STEPS = 10  # in which all pixels vanish or appear
LIKE_BEFORE = 0.5  # correlation from which a map of a random model counts as the map of the trained one
LUMA = (0.299, 0.587, 0.114)
SOBEL = ((-1.0, 0.0, 1.0), (-2.0, 0.0, 2.0), (-1.0, 0.0, 1.0))

Name = TypeVar("Name")
Score: TypeAlias = Callable[[Float[Tensor, "n 3 y x"]], Float[Tensor, "n"]]


class Grades(NamedTuple):
    """How well maps find their objects, for every scene and object in it.

    Attributes:
        pointing: whether the hottest pixel is on the object; never in a degenerate map.
        energy: share of the mass that is on the object; NaN without mass.
        iou: overlap of the object with as many of the hottest pixels.
        degenerate: whether the map says nothing.
    """

    pointing: Float[Tensor, "n k"]
    energy: Float[Tensor, "n k"]
    iou: Float[Tensor, "n k"]
    degenerate: Float[Tensor, "n k"]


def graded(maps: Float[Tensor, "n k h w"], masks: Bool[Tensor, "n k y x"]) -> Grades:
    """Grades of the map of each object."""
    each, inside = maps.flatten(0, 1), masks.flatten(0, 1)
    degenerate = torch.tensor([bool(metrics.degeneracy(map_)) for map_ in each])
    pointing = metrics.pointing_hit(each, inside) & ~degenerate
    columns = (pointing, metrics.energy_inside(each, inside), mask_iou(each, inside), degenerate)
    return Grades(*(column.float().unflatten(0, maps.shape[:2]) for column in columns))


def mask_iou(maps: Float[Tensor, "n h w"], masks: Bool[Tensor, "n y x"]) -> Float[Tensor, "n"]:
    """Overlap of the mask and the hottest pixels of the enlarged map, as many as the mask has: 0 to 1.

    No threshold is to be chosen: at this one precision is recall, the relevance rank accuracy ``r``, and the
    intersection over union is ``r / (2 - r)``. The coldest pixels of a map are never among its hottest.

    Source: Arras et al. 2022, CLEVR-XAI (relevance rank accuracy), https://arxiv.org/abs/2003.07258
    """
    pixels, inside = resize_maps(maps, (masks.shape[-2], masks.shape[-1])).flatten(1), masks.flatten(1)
    last = pixels.sort(dim=1, descending=True).values.gather(1, inside.sum(1, keepdim=True) - 1)
    hottest = (pixels >= last) & (pixels > pixels.amin(1, keepdim=True))
    return torch.div((hottest & inside).sum(1), (hottest | inside).sum(1))


def perturbation_curves(
    score: Score, images: Float[Tensor, "n 3 y x"], maps: Float[Tensor, "n h w"], steps: int = STEPS
) -> tuple[Float[Tensor, "n steps+1"], Float[Tensor, "n steps+1"]]:
    """Deletion and insertion: scores while pixels vanish into, or appear out of, the mean colour, the hottest first.

    Both begin with nothing changed: deletion with the whole image, insertion with the mean colour alone, which is 0
    in a normalised image. RISE inserts into a blurred image, where objects as large as here could still be made out.

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
    """Mean area under the curves, where 0 is the score of the mean colour and 1 that of the whole image.

    The means over the images are taken before they are divided: a single image whose score hardly differs from that
    of the mean colour decides nothing.
    """
    areas = torch.trapezoid(curves, dx=1 / (curves.shape[1] - 1), dim=1)
    return float((areas - blank).mean() / (whole - blank).mean())


def edges(images: Float[Tensor, "n 3 y x"], size: tuple[int, int]) -> Float[Tensor, "n h w"]:
    """The control: strength of the edges in each cell of a grid, for which no model is asked.

    It looks like a map and knows nothing, so a check that it passes is none.

    Source: Adebayo et al. 2018, fig. 1 and sec. 5 (the edge detector as baseline), https://arxiv.org/abs/1810.03292
    """
    gray = torch.einsum("nchw,c->nhw", images, images.new_tensor(LUMA))[:, None]
    kernel = images.new_tensor(SOBEL)
    gradient = F.conv2d(F.pad(gray, (1, 1, 1, 1), mode="replicate"), torch.stack([kernel, kernel.T])[:, None])
    return F.adaptive_avg_pool2d(gradient.norm(dim=1), size)


def randomized(trained: nn.Module, fresh: nn.Module, stages: Sequence[str]) -> Iterator[str]:
    """Give ``trained`` the weights and buffers of ``fresh``, from the top down, one stage more each time.

    Args:
        trained: changed in place; not given back.
        fresh: the same architecture, not trained.
        stages: from the top down, regular expressions that the names begin with. ``""`` is whatever is left.

    Yields:
        The stage that was replaced last.

    Source: Adebayo et al. 2018, sec. 4.1 (cascading randomisation), https://arxiv.org/abs/1810.03292
    """
    left, source = trained.state_dict(), fresh.state_dict()
    for stage in stages:
        names = [name for name in left if re.match(stage, name)]
        if not names:
            raise ValueError(f"no weights begin with {stage!r}; left: {', '.join(left) or 'none'}.")
        for name in names:
            left.pop(name).copy_(source[name])
        yield stage


def likeness(before: Float[Tensor, "n h w"], after: Float[Tensor, "n h w"]) -> float:
    """Mean correlation of maps of a trained model and of a random one; a map that says nothing is like none."""
    return float(metrics.correlation(before, after).nan_to_num(0).mean())


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean of independent values, and its standard error; NaNs are left out, and what remains unknown is NaN."""
    known = [value for value in values if not math.isnan(value)]
    error = stdev(known) / math.sqrt(len(known)) if len(known) > 1 else math.nan
    return fmean(known) if known else math.nan, error


def close_to_best(figures: Mapping[Name, tuple[float, float]]) -> list[Name]:
    """Whose figure, with its standard error given, is within the best one's standard error of the best; best first.

    Source: Breiman et al. 1984, Classification and Regression Trees, sec. 3.4.3 (the one-standard-error rule)
    """
    ordered = sorted(figures, key=lambda name: -figures[name][0])
    best, error = figures[ordered[0]]
    return [name for name in ordered if figures[name][0] >= best - error]


def best_mean_rank(figures: Mapping[Name, Sequence[float]]) -> Name:
    """Who ranks best on average over figures that are the better the higher; of equals the first.

    Ranks and not values, because the figures have different units.
    """
    columns = list(zip(*figures.values(), strict=True))

    def places_lost(name: Name) -> int:
        own = figures[name]
        return sum(sum(other > mine for other in column) for mine, column in zip(own, columns, strict=True))

    return min(figures, key=places_lost)
