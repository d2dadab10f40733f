"""A slow reimplementation of the attention pool of open_clip's ``ModifiedResNet``: float64, one image, loops."""

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from tests.oracles.transformer import AttentionTrace, Trace, compute_attention


class ReferenceResNet:
    """The pool of ``visual`` behind its own convolutions, which no attention method reads."""

    pools_by_attention = True
    pools_by_mean = False

    def __init__(self, visual: Any) -> None:
        self.convolutions = deepcopy(visual).double()
        self.pool = self.convolutions.attnpool
        self.convolutions.attnpool = torch.nn.Identity()
        self.grid = (visual.image_size // 32, visual.image_size // 32)

    def __call__(self, image: Tensor) -> Trace:
        cells = self.convolutions(image[None].double())[0]
        cells = [cells[:, row, column] for row in range(self.grid[0]) for column in range(self.grid[1])]
        tokens = torch.stack([sum(cells) / len(cells), *cells])  # the mean in the place of a class token
        pool = self.attend_in_pool(tokens + self.pool.positional_embedding)
        return Trace([], tokens, pool, self.linear(pool.merged[0], "c_proj"))

    def attend_in_pool(self, tokens: Tensor) -> AttentionTrace:
        query, key, value = (
            torch.stack([self.linear(token, f"{kind}_proj") for token in tokens]) for kind in ("q", "k", "v")
        )
        return compute_attention(query, key, value, self.pool.num_heads)

    def embed(self, token: Tensor) -> Tensor:
        """Compute the embedding if this cell alone were pooled, without a position."""
        return self.linear(self.linear(token, "v_proj"), "c_proj")

    def linear(self, x: Tensor, name: str) -> Tensor:
        layer = getattr(self.pool, name)
        return layer.weight @ x + layer.bias
