"""Perturbation-based methods, as loops that change one input at a time and run the complete float64 model."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.oracles.cam import Channels, Map, column_range, combine_channels, row_range, to_channels
from tests.oracles.scores import Score, compute_cosines


@dataclass(frozen=True, eq=False, repr=False)
class Scorer:
    """Computes the target scores of changed inputs.

    Attributes:
        model: a model of open_clip, in float64.
        layer: the mapped layer.
        grid: height and width of the layer's grid, if its output is tokens.
        texts: embeddings of all prompts.
        score: converts the cosines with all prompts to the target score of one.
    """

    model: Any
    layer: nn.Module
    grid: tuple[int, int] | None
    texts: Tensor
    score: Score

    def compute_scores(self, image: Tensor, change: Callable[[Tensor], None] | None = None) -> list[float]:
        """Compute the score of each prompt for one image, optionally with the layer's output changed in place."""

        def replace(_layer: nn.Module, _inputs: object, output: Tensor) -> Tensor:
            output = output.clone()
            if change:
                change(output)
            return output

        handle = self.layer.register_forward_hook(replace)
        with torch.no_grad():
            features = self.model.encode_image(image[None].double())[0]
        handle.remove()
        return [float(self.score(compute_cosines(features, self.texts), p)) for p in range(len(self.texts))]

    def compute_activations(self, image: Tensor) -> Channels:
        outputs: list[Tensor] = []
        self.compute_scores(image, lambda output: outputs.append(output.clone()))
        channels: Channels = to_channels(outputs[0], self.grid)
        return channels


def scorecam(scorer: Scorer, image: Tensor) -> list[Map]:
    """Wang et al. 2020, eqs. 5-7."""
    activations, scores = scorer.compute_activations(image), []
    for channel in activations:
        mask = torch.tensor([[channel]], dtype=torch.float64)
        mask = F.interpolate(mask, size=image.shape[1:], mode="bilinear", align_corners=False)[0, 0]
        spread = mask.max() - mask.min()
        scores.append(scorer.compute_scores(image * ((mask - mask.min()) / (spread + 1e-8))))
    maps = []
    for own in zip(*scores, strict=True):
        total = sum(math.exp(score) for score in own)
        maps.append(combine_channels([math.exp(score) / total for score in own], activations))
    return maps


def ablationcam(scorer: Scorer, image: Tensor) -> list[Map]:
    """Desai & Ramaswamy 2020, eqs. 3-4."""
    activations, scores = scorer.compute_activations(image), []
    for k in range(len(activations)):

        def without(output: Tensor, k: int = k) -> None:
            if scorer.grid:
                output[..., k] = 0  # in every token, the class token included
            else:
                output[:, k] = 0

        scores.append(scorer.compute_scores(image, without))
    return [
        combine_channels([(whole - score) / whole for score in own], activations)
        for whole, own in zip(scorer.compute_scores(image), zip(*scores, strict=True), strict=True)
    ]


def occlusion(scorer: Scorer, image: Tensor) -> list[Map]:
    """Zeiler & Fergus 2014: hide a square of 25 % of each side, cut off at the border, around the centre of each cell.

    Cells of a grid with fewer than seven per side are divided.
    """
    activations, whole = scorer.compute_activations(image), scorer.compute_scores(image)
    sides = zip(image.shape[1:], (row_range(activations), column_range(activations)), strict=True)
    rows, columns = (_hidden_pixels(pixels, len(cells) * math.ceil(7 / len(cells))) for pixels, cells in sides)
    maps: list[Map] = [[[0.0] * len(columns) for _ in rows] for _ in whole]
    for (r, y), (c, x) in product(enumerate(rows), enumerate(columns)):
        hidden = image.clone()
        for row, column in product(y, x):
            hidden[:, row, column] = 0
        for own, before, after in zip(maps, whole, scorer.compute_scores(hidden), strict=True):
            own[r][c] = before - after
    return maps


def _hidden_pixels(pixels: int, cells: int) -> list[list[int]]:
    """List, for each cell along one side, the pixels whose centres are within 12.5 % of the side from its centre."""
    centres = [Fraction(2 * cell + 1, 2 * cells) for cell in range(cells)]
    positions = [Fraction(2 * pixel + 1, 2 * pixels) for pixel in range(pixels)]
    return [[pixel for pixel in range(pixels) if abs(positions[pixel] - centre) < Fraction(1, 8)] for centre in centres]


ORACLES: dict[str, Callable[[Scorer, Tensor], list[Map]]] = {
    method.__name__: method for method in (scorecam, ablationcam, occlusion)
}
