"""Integrated gradients without a gradient: differences of scores on the way from the mean patch to the image."""

import torch
from torch import Tensor

from tests.oracles.scores import compute_cosines
from tests.oracles.transformer import ReferenceViT

HALF_STEP = 1e-4


@torch.no_grad()
def integrated_gradients(model: ReferenceViT, image: Tensor, texts: Tensor, block: int, points: int) -> Tensor:
    """Sundararajan et al. 2017, eq. 3, by the midpoint rule.

    A patch's summand is the derivative of the score if this patch alone moves on, from each point of the way.

    Args:
        model: the reference model.
        image: one image.
        texts: ``[p, e]``.
        block: whose input is mapped; of the first block, the patch embeddings before positions.
        points: number of points.

    Returns:
        Maps ``[p, rows, columns]``.
    """
    patches, tokens = model.cut_patches(image.double()), model(image).blocks[block].tokens
    own = tokens[1:] if block else patches
    mean = sum(own) / len(own)

    def score(moved: Tensor) -> Tensor:
        start = torch.cat([tokens[:1], moved]) if block else model.place(moved)
        return compute_cosines(model.run(start, block).features, texts)

    summands = []
    for i in range(len(own)):
        derivative = 0
        for m in range(points):
            share = (m + 0.5) / points
            ahead, behind = (torch.stack([mean + share * (patch - mean) for patch in own]) for _ in range(2))
            ahead[i] += HALF_STEP * (own[i] - mean)
            behind[i] -= HALF_STEP * (own[i] - mean)
            derivative = derivative + (score(ahead) - score(behind)) / (2 * HALF_STEP) / points
        summands.append(derivative)
    return torch.stack(summands, dim=1).unflatten(1, model.grid)
