"""How relevance flows back from the embedding to the patches, block by block."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from clipcam_lightning.cam.capture import AttentionCapture


def pooled_relevance(
    capture: AttentionCapture,
    steps: Sequence[Float[Tensor, "b _t _s"]],
    pool: Float[Tensor, "b s"] | None,
    stays: float,
) -> Float[Tensor, "b t"]:
    r"""The row of :math:`R = \prod_l (\mathrm{stays} \cdot I + S_l)` that the embedding is read from, last block first.

    Only that row is ever needed, so no product of matrices is formed.

    Args:
        capture: where the embedding is read from.
        steps: :math:`S_l` of each block, first to last; the last has one row where only a class token is pooled.
        pool: weights of the attention that pools, where there is one.
        stays: how much of each token's relevance remains with it.
    """
    count, tokens = len(capture.features), _tokens(capture, steps, pool)
    row = capture.features.new_zeros(count, tokens)
    if pool is not None:
        row = F.pad(pool.float(), (tokens - pool.shape[-1], 0))  # a pool may leave the prefix out; patches are last
    elif capture.tower.pooling == "cls":
        row[:, 0] = 1
    else:
        patches = capture.grid[0] * capture.grid[1]
        row[:, -patches:] = 1 / patches
    for step in reversed(steps):
        row = stays * row + torch.einsum("bt,bts->bs", row[:, : step.shape[1]], step.float())
    return row


def _tokens(capture: AttentionCapture, steps: Sequence[Tensor], pool: Tensor | None) -> int:
    if steps:
        return steps[-1].shape[-1]
    assert pool is not None  # a tower without attention in its blocks has one in its pool
    return pool.shape[-1]
