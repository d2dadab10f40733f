"""Targets from their formulas: a float64 score of prompt ``p`` among the cosines with all prompts."""

from collections.abc import Callable

import torch
from torch import Tensor

Score = Callable[[Tensor, int], Tensor]


def contrast(cosines: Tensor, p: int) -> Tensor:
    others = [cosine for q, cosine in enumerate(cosines) if q != p]
    return cosines[p] - sum(others) / len(others)


def logsoftmax(cosines: Tensor, p: int) -> Tensor:
    return 100 * cosines[p] - (100 * cosines).exp().sum().log()


SCORES: dict[str, Score] = {
    "similarity": lambda cosines, p: cosines[p],
    "contrast": contrast,
    "logsoftmax": logsoftmax,
}


def compute_cosines(features: Tensor, texts: Tensor) -> Tensor:
    """Compute the cosines of one image's features with texts of any length."""
    return torch.stack([features @ text / (features.norm() * text.norm()) for text in texts.double()])


def compute_direction(features: Tensor, texts: Tensor, score: Score, p: int) -> Tensor:
    """Compute the gradient of the score with respect to the unit embedding."""
    unit = (features / features.norm()).detach().requires_grad_()
    units = torch.stack([text / text.norm() for text in texts.double()])
    (gradient,) = torch.autograd.grad(score(units @ unit, p), unit)
    return gradient
