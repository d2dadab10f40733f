"""Propagation of relevance from the embedding back to the patches, block by block."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from clipcam_lightning.cam.capture import AttentionCapture


def propagate_relevance(
    capture: AttentionCapture,
    steps: Sequence[Float[Tensor, "b _t _s"]],
    pool: Float[Tensor, "b s"] | None,
    identity: float,
    residual: bool = True,
) -> Float[Tensor, "b t"]:
    r"""Compute the row of :math:`R = \prod_l (\mathrm{identity} \cdot I + S_l)` from which the embedding is read.

    Since only one row is needed, it is multiplied through the blocks, last first, and no product of matrices is formed.

    Args:
        capture: how the tower pools, and its grid.
        steps: :math:`S_l` of each block, first to last; the last has one row if only a class token is pooled.
        pool: weights of the attention that pools, if there is one.
        identity: share of its relevance that each token keeps per block.
        residual: whether to count what a token keeps in all blocks, which passes through no attention but a pool's.

    Returns:
        Relevance of each token.
    """
    count, tokens = len(capture.features), _count_tokens(steps, pool)
    row = capture.features.new_zeros(count, tokens)
    if pool is not None:
        row = F.pad(pool.float(), (tokens - pool.shape[-1], 0))  # a pool may ignore the tokens before the patches
    elif capture.tower.pooling == "cls":
        row[:, 0] = 1
    else:
        row[:, capture.find_patches(tokens)] = 1 / math.prod(capture.grid)
    # Added separately, so that a large share of the first summand does not round off the second.
    kept, moved = row, torch.zeros_like(row)
    for step in reversed(steps):
        moved = identity * moved + torch.einsum("bt,bts->bs", (kept + moved)[:, : step.shape[1]], step.float())
        kept = identity * kept
    return kept + moved if residual else moved


def _count_tokens(steps: Sequence[Tensor], pool: Tensor | None) -> int:
    if steps:
        return steps[-1].shape[-1]
    assert pool is not None  # a tower without attention in its blocks pools by attention
    return pool.shape[-1]
