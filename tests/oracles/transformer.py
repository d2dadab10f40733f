"""A slow reimplementation of open_clip's ``VisionTransformer``: float64, one image, loops over tokens and heads."""

import math
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False, repr=False)
class AttentionTrace:
    """Inputs and outputs of one attention with h heads, t queries and s keys."""

    query: Tensor  # [h, t, k]
    key: Tensor  # [h, s, k]
    value: Tensor  # [h, s, k]
    weights: Tensor  # [h, t, s]
    merged: Tensor  # [t, h * k], before the output projection


@dataclass(frozen=True, eq=False, repr=False)
class BlockTrace:
    """Input tokens of a block, the same after the first norm, its attention and its output tokens."""

    tokens: Tensor
    normed: Tensor
    attention: AttentionTrace
    output: Tensor


@dataclass(frozen=True, eq=False, repr=False)
class Trace:
    """Intermediate results of one image.

    Attributes:
        blocks: the blocks, first to last.
        tokens: the tokens that are pooled.
        pool: the attention that pools, if there is one.
        features: the embedding, before it is scaled to unit length.
    """

    blocks: list[BlockTrace]
    tokens: Tensor
    pool: AttentionTrace | None
    features: Tensor


class ReferenceViT:
    """A ViT with the weights of ``visual``, pooled by its class token, by a mean, or by attention."""

    def __init__(self, visual: Any) -> None:
        self.w = {name: value.detach().double().requires_grad_() for name, value in visual.state_dict().items()}
        self.patch, self.grid = visual.patch_size, visual.grid_size
        self.depth, self.heads = len(visual.transformer.resblocks), visual.transformer.resblocks[0].attn.num_heads
        self.pools_by_attention = visual.attn_pool is not None
        self.pool_heads = visual.attn_pool.attn.num_heads if self.pools_by_attention else 0
        self.pools_by_mean = visual.pool_type == "avg"
        self.norm_after_pool = visual.final_ln_after_pool

    def __call__(self, image: Tensor) -> Trace:
        return self.run(self.place(self.cut_patches(image.double())))

    def run(self, tokens: Tensor, first: int = 0) -> Trace:
        """Run the blocks from ``first`` on, with ``tokens`` as its input, and the pool."""
        blocks: list[BlockTrace] = []
        for i in range(first, self.depth):
            blocks.append(self.block(i, tokens))
            tokens = blocks[-1].output
        pool = None
        if self.pools_by_attention:
            pool = self.attend_in_pool(tokens)
            features = self.head(self.out(pool.merged[0], "attn_pool.attn"))
        elif not self.pools_by_mean:
            features = self.head(tokens[0])
        elif self.norm_after_pool:
            features = self.head(sum(tokens[1:]) / (len(tokens) - 1))
        else:
            features = sum(self.head(token) for token in tokens[1:]) / (len(tokens) - 1)
        return Trace(blocks, tokens, pool, features)

    def cut_patches(self, image: Tensor) -> Tensor:
        """Compute the patch embeddings, row by row, before positions."""
        (y, x), kernel, patches = self.patch, self.w["conv1.weight"], []
        for row, column in product(range(self.grid[0]), range(self.grid[1])):
            pixels = image[:, row * y : (row + 1) * y, column * x : (column + 1) * x]
            patches.append((kernel * pixels).sum(dim=(1, 2, 3)))
        return torch.stack(patches)

    def place(self, patches: Tensor) -> Tensor:
        """Compute the first block's input: the class token, then the patches, with positions."""
        tokens = [self.w["class_embedding"], *patches]
        tokens = [token + position for token, position in zip(tokens, self.w["positional_embedding"], strict=True)]
        return torch.stack([self.norm(token, "ln_pre") for token in tokens])

    def block(self, i: int, tokens: Tensor) -> BlockTrace:
        normed = torch.stack([self.norm(token, f"transformer.resblocks.{i}.ln_1") for token in tokens])
        weight, bias = (self.w[f"transformer.resblocks.{i}.attn.in_proj_{kind}"] for kind in ("weight", "bias"))
        width = len(weight) // 3
        query, key, value = (
            torch.stack([weight[start : start + width] @ token + bias[start : start + width] for token in normed])
            for start in (0, width, 2 * width)
        )
        attention = compute_attention(query, key, value, self.heads)
        output = torch.stack([self.update(i, x, heads) for x, heads in zip(tokens, attention.merged, strict=True)])
        return BlockTrace(tokens, normed, attention, output)

    def update(self, i: int, token: Tensor, heads: Tensor) -> Tensor:
        """Compute a block's output for one token from the token and the output of its heads."""
        token = token + self.attention_branch(i, heads)
        return token + self.mlp_branch(i, token)

    def attention_branch(self, i: int, heads: Tensor) -> Tensor:
        scale = self.w.get(f"transformer.resblocks.{i}.ls_1.gamma", 1.0)
        return scale * self.out(heads, f"transformer.resblocks.{i}.attn")

    def mlp_branch(self, i: int, token: Tensor) -> Tensor:
        name = f"transformer.resblocks.{i}"
        hidden = self.linear(self.norm(token, f"{name}.ln_2"), f"{name}.mlp.c_fc")
        hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2  # GELU
        return self.w.get(f"{name}.ls_2.gamma", 1.0) * self.linear(hidden, f"{name}.mlp.c_proj")

    def attend_in_pool(self, tokens: Tensor) -> AttentionTrace:
        """Compute the attention of the pool's learned queries to the tokens."""
        queries = [self.norm(query, "attn_pool.ln_q") for query in self.w["attn_pool.query"]]
        inputs = [self.norm(token, "attn_pool.ln_k") for token in tokens]
        bias = self.w["attn_pool.attn.in_proj_bias"].chunk(3)
        query, key, value = (
            torch.stack([self.w[f"attn_pool.attn.{kind}_proj_weight"] @ x + b for x in inputs])
            for kind, b, inputs in zip("qkv", bias, (queries, inputs, inputs), strict=True)
        )
        return compute_attention(query, key, value, self.pool_heads)

    def embed(self, token: Tensor) -> Tensor:
        """Compute the embedding if this token alone were pooled."""
        if self.pools_by_attention:
            token = self.out(self.attend_in_pool(token[None]).merged[0], "attn_pool.attn")
        return self.head(token)

    def head(self, token: Tensor) -> Tensor:
        """Apply the final norm and the projection."""
        return self.norm(token, "ln_post") @ self.w["proj"]

    def out(self, heads: Tensor, name: str) -> Tensor:
        return self.linear(heads, f"{name}.out_proj")

    def linear(self, x: Tensor, name: str) -> Tensor:
        return self.w[f"{name}.weight"] @ x + self.w[f"{name}.bias"]

    def norm(self, x: Tensor, name: str) -> Tensor:
        centred = x - x.mean()
        return centred / ((centred**2).mean() + 1e-5).sqrt() * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]


def compute_attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> AttentionTrace:
    """Compute softmax attention of ``[t, d]`` queries over ``[s, d]`` keys in ``heads`` slices of the channels."""
    size = query.shape[1] // heads
    query, key, value = (
        torch.stack([x[:, h * size : (h + 1) * size] for h in range(heads)]) for x in (query, key, value)
    )
    rows = []
    for h in range(heads):
        for q in query[h]:
            scores = torch.stack([q @ k / math.sqrt(size) for k in key[h]])
            odds = (scores - scores.max().detach()).exp()
            rows.append(odds / odds.sum())
    weights = torch.stack(rows).reshape(heads, query.shape[1], key.shape[1])
    merged = torch.stack([
        torch.cat([sum(weight * v for weight, v in zip(weights[h, t], value[h], strict=True)) for h in range(heads)])
        for t in range(query.shape[1])
    ])  # fmt: skip
    return AttentionTrace(query, key, value, weights, merged)
