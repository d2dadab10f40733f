"""Methods that try changed inputs out, as loops that change one thing at a time and run the whole float64 model."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from oracles.cam import Channels, Map, across, down, mean, to_channels, weighted
from oracles.scores import Score, cosines


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
    """Zeiler & Fergus 2014: each square of a quarter of the grid, at every place inside it."""
    activations, whole = trials.activations(image), trials.scored(image)
    height, width = len(down(activations)), len(across(activations))
    y, x = image.shape[1] // height, image.shape[2] // width  # pixels a cell
    tall, wide = max(1, round(height / 4)), max(1, round(width / 4))
    drops: list[list[list[list[float]]]] = [[[[] for _ in range(width)] for _ in range(height)] for _ in whole]
    for top in range(height - tall + 1):
        for left in range(width - wide + 1):
            hidden = image.clone()
            hidden[:, top * y : (top + tall) * y, left * x : (left + wide) * x] = 0
            for own, before, after in zip(drops, whole, trials.scored(hidden), strict=True):
                for row in own[top : top + tall]:
                    for cell in row[left : left + wide]:
                        cell.append(before - after)
    return [[[mean(cell) for cell in row] for row in own] for own in drops]


TRIED: dict[str, Callable[[Trials, Tensor], list[Map]]] = {
    method.__name__: method for method in (scorecam, ablationcam, occlusion)
}
