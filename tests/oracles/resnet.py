"""The attention pool of open_clip's ``ModifiedResNet`` once more: float64, one image, cell by cell."""

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from tests.oracles.transformer import Attended, Trace, attended


class ReferenceResNet:
    """The pool of ``visual``; its convolutions, which no attention method looks into, are its own."""

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
        tokens = torch.stack([sum(cells) / len(cells), *cells])  # the mean takes the place of a class token
        pool = self.pooled(tokens + self.pool.positional_embedding)
        return Trace([], tokens, pool, self.linear(pool.merged[0], "c_proj"))

    def pooled(self, tokens: Tensor) -> Attended:
        query, key, value = (
            torch.stack([self.linear(token, f"{kind}_proj") for token in tokens]) for kind in ("q", "k", "v")
        )
        return attended(query, key, value, self.pool.num_heads)

    def embed(self, token: Tensor) -> Tensor:
        """The embedding, were this cell the only one to be pooled, at no position."""
        return self.linear(self.linear(token, "v_proj"), "c_proj")

    def linear(self, x: Tensor, name: str) -> Tensor:
        layer = getattr(self.pool, name)
        return layer.weight @ x + layer.bias
