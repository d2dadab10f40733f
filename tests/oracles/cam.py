"""CAM methods from the sums in their papers, as loops over Python floats.

One image and one prompt at a time; arrays are nested lists ``[channel][row][column]``.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from tests.oracles.scores import Score, compute_cosines

Channels: TypeAlias = list[list[list[float]]]
Map: TypeAlias = list[list[float]]


def combine_channels(weights: Sequence[float], activations: Channels) -> Map:
    """relu(sum_k w_k A_k)"""
    return [
        [
            max(0.0, sum(w * a[y][x] for w, a in zip(weights, activations, strict=True)))
            for x in column_range(activations)
        ]
        for y in row_range(activations)
    ]


def row_range(activations: Channels) -> range:
    return range(len(activations[0]))


def column_range(activations: Channels) -> range:
    return range(len(activations[0][0]))


def flatten(channel: Map) -> list[float]:
    return [value for row in channel for value in row]


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def gradcam(activations: Channels, gradients: Channels) -> Map:
    """Selvaraju et al. 2017, eqs. 1-2. Also Finer-CAM, which differs in its target only."""
    return combine_channels([mean(flatten(g)) for g in gradients], activations)


def gradcam_pp(activations: Channels, gradients: Channels) -> Map:
    """Chattopadhyay et al. 2018, eqs. 10 and 19; the 1e-6 is that of pytorch-grad-cam."""
    weights = []
    for a, g in zip(activations, gradients, strict=True):
        total = sum(flatten(a))
        shares = [x**2 / (2 * x**2 + total * x**3 + 1e-6) if x else 0.0 for x in flatten(g)]
        weights.append(sum(share * max(0.0, x) for share, x in zip(shares, flatten(g), strict=True)))
    return combine_channels(weights, activations)


def xgradcam(activations: Channels, gradients: Channels) -> Map:
    """Fu et al. 2020, eq. 8; a channel that is 0 everywhere has weight 0."""
    pairs = [(flatten(a), flatten(g)) for a, g in zip(activations, gradients, strict=True)]
    return combine_channels(
        [sum(x / (sum(a) or 1) * y for x, y in zip(a, g, strict=True)) for a, g in pairs], activations
    )


def hirescam(activations: Channels, gradients: Channels) -> Map:
    """Draelos & Carin 2020, eq. 3."""
    return [
        [
            max(0.0, sum(a[y][x] * g[y][x] for a, g in zip(activations, gradients, strict=True)))
            for x in column_range(activations)
        ]
        for y in row_range(activations)
    ]


def elementwise(activations: Channels, gradients: Channels) -> Map:
    return [
        [
            sum(max(0.0, a[y][x] * g[y][x]) for a, g in zip(activations, gradients, strict=True))
            for x in column_range(activations)
        ]
        for y in row_range(activations)
    ]


def layercam(activations: Channels, gradients: Channels) -> Map:
    """Jiang et al. 2021, eqs. 5-7."""
    return hirescam(activations, [[[max(0.0, value) for value in row] for row in g] for g in gradients])


def shapleycam(activations: Channels, gradients: Channels, curvature: Channels) -> Map:
    """Cai 2025, eq. 15; ``curvature`` is the Hessian times the activations."""
    return combine_channels(
        [mean(flatten(g)) - mean(flatten(c)) / 2 for g, c in zip(gradients, curvature, strict=True)], activations
    )


def fem(activations: Channels, _gradients: Channels) -> Map:
    """Fuad et al. 2020: the share of cells more than two standard deviations above the mean."""
    weights = []
    for a in map(flatten, activations):
        spread = math.sqrt(mean([(x - mean(a)) ** 2 for x in a]))
        weights.append(mean([float(x > mean(a) + 2 * spread) for x in a]))
    return combine_channels(weights, activations)


def eigencam(activations: Channels, _gradients: Channels) -> Map:
    """Muhammad & Yeasin 2020, eq. 3; the positive cells have the larger sum of squares (Bro et al. 2008)."""
    component = project_on_first_component(activations)
    flat = flatten(component.tolist())
    above, below = sum(x**2 for x in flat if x > 0), sum(x**2 for x in flat if x < 0)
    return _positive_part(component if above >= below else -component)


def eigengradcam(activations: Channels, gradients: Channels) -> Map:
    """Eigen-CAM of gradient times activation, with the sign that correlates positively with the sum of products."""
    products = np.array(activations) * np.array(gradients)
    component = project_on_first_component(products.tolist())
    return _positive_part(component * np.sign(np.corrcoef(component.ravel(), products.sum(axis=0).ravel())[0, 1]))


def project_on_first_component(activations: Channels) -> np.ndarray:
    """Project the cells on the first principal component, by power iteration on the covariance of the channels."""
    rows = np.array([[a[y][x] for a in activations] for y in row_range(activations) for x in column_range(activations)])
    rows = rows - rows.mean(axis=0)
    axis = np.ones(len(activations))
    for _ in range(5000):
        axis = rows.T @ (rows @ axis)
        axis = axis / np.linalg.norm(axis)
    return (rows @ axis).reshape(len(row_range(activations)), len(column_range(activations)))


def _positive_part(component: np.ndarray) -> Map:
    positive: Map = np.maximum(component, 0).tolist()
    return positive


LOOPS: dict[str, Callable[..., Map]] = {
    "finercam": gradcam,
    **{
        method.__name__: method
        for method in (
            gradcam, gradcam_pp, xgradcam, hirescam, elementwise, layercam, shapleycam, fem, eigencam, eigengradcam,
        )
    },
}  # fmt: skip


def finer_score(similarity: Tensor, p: int) -> Tensor:
    """Zhang et al. 2025, eqs. 4-6: weighted differences from the three prompts of closest similarity."""
    others = sorted((q for q in range(len(similarity)) if q != p), key=lambda q: abs(similarity[q] - similarity[p]))[:3]
    weights = [similarity[q].exp() for q in others]
    return sum(w * (similarity[p] - similarity[q]) for w, q in zip(weights, others, strict=True)) / sum(weights)


class WholeGraph:
    """Output and gradient of one layer in the complete graph of a float64 model, for one image.

    Args:
        model: the model, in float64.
        layer: the layer.
        texts: embeddings of all prompts.
        score: converts the cosines with all prompts to the target score of one.
    """

    def __init__(self, model: nn.Module, layer: nn.Module, texts: Tensor, score: Score) -> None:
        self.model, self.layer, self.texts, self.score = model, layer, texts, score

    def run(self, image: Tensor, prompt: int, output: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the layer's output, its gradient and the score, optionally with another ``output`` of the layer."""
        outputs: list[Tensor] = []

        def record(_layer: nn.Module, _inputs: object, own: Tensor) -> Tensor:
            outputs.append(own if output is None else output.detach().requires_grad_())
            return outputs[0]

        handle = self.layer.register_forward_hook(record)
        features = self.model.encode_image(image[None].double())[0]
        handle.remove()
        score = self.score(compute_cosines(features, self.texts), prompt)
        (gradient,) = torch.autograd.grad(score, outputs[0])
        return outputs[0].detach(), gradient, score.detach()

    def curvature(self, image: Tensor, prompt: int, step: float = 1e-4) -> Tensor:
        """Multiply the Hessian with the output, by central differences of the gradient along the output."""
        output, _, _ = self.run(image, prompt)
        after, before = (self.run(image, prompt, output * (1 + sign * step))[1] for sign in (1, -1))
        return (after - before) / (2 * step)


def to_channels(output: Tensor, grid: tuple[int, int] | None) -> Any:
    """Convert one image's output to nested lists; tokens after the first lie row by row on ``grid``."""
    if grid is None:
        return output[0].tolist()
    height, width = grid
    tokens = output[0, 1:].tolist()
    return [[[tokens[y * width + x][k] for x in range(width)] for y in range(height)] for k in range(output.shape[-1])]
