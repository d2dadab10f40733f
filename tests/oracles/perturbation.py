"""Methods that try changed inputs out, as loops that change one thing at a time and run the whole float64 model."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.oracles.cam import Channels, Map, across, down, to_channels, weighted
from tests.oracles.scores import Score, cosines


@dataclass
class Trials:
    """A model to try things on, in float64.

    Attributes:
        model: open_clip's.
        layer: whose channels and grid are meant.
        grid: of a layer of tokens.
        texts: embeddings of all prompts.
        score: of the cosines with them.
    """

    model: Any
    layer: nn.Module
    grid: tuple[int, int] | None
    texts: Tensor
    score: Score

    def scored(self, image: Tensor, change: Callable[[Tensor], None] | None = None) -> list[float]:
        """The score of each prompt for an image, after ``change`` wrote to the layer's output."""

        def changed(_layer: nn.Module, _inputs: object, output: Tensor) -> Tensor:
            output = output.clone()
            if change:
                change(output)
            return output

        handle = self.layer.register_forward_hook(changed)
        with torch.no_grad():
            features = self.model.encode_image(image[None].double())[0]
        handle.remove()
        return [float(self.score(cosines(features, self.texts), p)) for p in range(len(self.texts))]

    def activations(self, image: Tensor) -> Channels:
        kept: list[Tensor] = []
        self.scored(image, lambda output: kept.append(output.clone()))
        channels: Channels = to_channels(kept[0], self.grid)
        return channels


def scorecam(trials: Trials, image: Tensor) -> list[Map]:
    """Wang et al. 2020, eqs. 5-7."""
    activations, scores = trials.activations(image), []
    for channel in activations:
        mask = torch.tensor([[channel]], dtype=torch.float64)
        mask = F.interpolate(mask, size=image.shape[1:], mode="bilinear", align_corners=False)[0, 0]
        spread = mask.max() - mask.min()
        scores.append(trials.scored(image * ((mask - mask.min()) / (spread + 1e-8))))
    maps = []
    for own in zip(*scores, strict=True):
        total = sum(math.exp(score) for score in own)
        maps.append(weighted([math.exp(score) / total for score in own], activations))
    return maps


def ablationcam(trials: Trials, image: Tensor) -> list[Map]:
    """Desai & Ramaswamy 2020, eqs. 3-4."""
    activations, scores = trials.activations(image), []
    for k in range(len(activations)):

        def without(output: Tensor, k: int = k) -> None:
            if trials.grid:
                output[..., k] = 0  # of every token, the class token among them
            else:
                output[:, k] = 0

        scores.append(trials.scored(image, without))
    return [
        weighted([(whole - score) / whole for score in own], activations)
        for whole, own in zip(trials.scored(image), zip(*scores, strict=True), strict=True)
    ]


def occlusion(trials: Trials, image: Tensor) -> list[Map]:
    """Zeiler & Fergus 2014: a square of a quarter of the image, cut off at the border, around the centre of each cell.

    Cells of a grid with fewer than seven a side are divided.
    """
    activations, whole = trials.activations(image), trials.scored(image)
    sides = zip(image.shape[1:], (down(activations), across(activations)), strict=True)
    rows, columns = (_hidden_pixels(pixels, len(cells) * math.ceil(7 / len(cells))) for pixels, cells in sides)
    maps: list[Map] = [[[0.0] * len(columns) for _ in rows] for _ in whole]
    for (r, y), (c, x) in product(enumerate(rows), enumerate(columns)):
        hidden = image.clone()
        for row, column in product(y, x):
            hidden[:, row, column] = 0
        for own, before, after in zip(maps, whole, trials.scored(hidden), strict=True):
            own[r][c] = before - after
    return maps


def _hidden_pixels(pixels: int, cells: int) -> list[list[int]]:
    """Of one side: the pixels whose centres are less than an eighth of it from the centre of each cell."""
    centres = [Fraction(2 * cell + 1, 2 * cells) for cell in range(cells)]
    places = [Fraction(2 * pixel + 1, 2 * pixels) for pixel in range(pixels)]
    return [[pixel for pixel in range(pixels) if abs(places[pixel] - centre) < Fraction(1, 8)] for centre in centres]


TRIED: dict[str, Callable[[Trials, Tensor], list[Map]]] = {
    method.__name__: method for method in (scorecam, ablationcam, occlusion)
}
