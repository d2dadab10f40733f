"""Statistics and controls of the localisation benchmark, without models and files."""

import math
import re
from collections.abc import Iterator, Sequence
from statistics import fmean, stdev

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

LUMA = (0.299, 0.587, 0.114)
SOBEL = ((-1.0, 0.0, 1.0), (-2.0, 0.0, 2.0), (-1.0, 0.0, 1.0))


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


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Average independent values that are not NaN.

    Returns:
        The mean and its standard error; NaN if there are too few values.
    """
    valid = [value for value in values if not math.isnan(value)]
    error = stdev(valid) / math.sqrt(len(valid)) if len(valid) > 1 else math.nan
    return fmean(valid) if valid else math.nan, error
