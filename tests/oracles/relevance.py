"""Layer-wise relevance propagation through open_clip's ``VisionTransformer``, without autograd.

Relevance is divided at each operation in the proportions of its summands, as AttnLRP (Achtibat et al. 2024,
https://arxiv.org/abs/2402.05602) defines it, from the score down to the patch embedding. Float64, one image.
"""

import math
from typing import Any

import torch
from torch import Tensor


class RelevanceViT:
    """A ViT with the weights of ``visual``, through which relevance is propagated."""

    def __init__(self, visual: Any) -> None:
        self.w = {name: value.detach().double() for name, value in visual.state_dict().items()}
        self.patch, self.grid = visual.patch_size, visual.grid_size
        self.depth, self.heads = len(visual.transformer.resblocks), visual.transformer.resblocks[0].attn.num_heads
        self.pools_by_attention = visual.attn_pool is not None
        self.pool_heads = visual.attn_pool.attn.num_heads if self.pools_by_attention else 0
        self.pools_by_mean, self.norm_after_pool = visual.pool_type == "avg", visual.final_ln_after_pool

    def __call__(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Propagate the cosine with a text.

        Returns:
            The patch embeddings ``[s, d]`` before positions, and the relevance of each of their numbers.
        """
        patches, placed = self.embed(image.double())
        relevance = self.norm_relevance(placed, "ln_pre", self.at_block(image, text, 0)[1])
        # Of the sum of embedding and position, the embedding gets its share.
        return patches, relevance[1:] * torch.nan_to_num(patches / placed[1:])

    def at_block(self, image: Tensor, text: Tensor, block: int) -> tuple[Tensor, Tensor]:
        """Propagate the cosine with a text to the input of a block.

        Returns:
            The block's input tokens ``[t, d]`` and the relevance of each of their numbers.
        """
        _, placed = self.embed(image.double())
        inputs, states = [self.norm(placed, "ln_pre")], []
        for i in range(self.depth):
            output, state = self.block(i, inputs[-1])
            inputs.append(output)
            states.append(state)
        relevance = self.pool(inputs[-1], text.double())
        for i in reversed(range(block, self.depth)):
            relevance = self.block_relevance(i, inputs[i], states[i], relevance)
        return inputs[block], relevance

    def embed(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the patch embeddings, and all tokens with their positions."""
        (y, x), kernel = self.patch, self.w["conv1.weight"]
        cells = image.unfold(1, y, y).unfold(2, x, x)  # [3, rows, columns, y, x]
        patches = torch.einsum("crkyx,dcyx->rkd", cells, kernel).flatten(0, 1)
        tokens = torch.cat([self.w["class_embedding"][None], patches])
        return patches, tokens + self.w["positional_embedding"]

    def norm(self, tokens: Tensor, name: str) -> Tensor:
        deviation = (tokens.var(dim=-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        centred = tokens - tokens.mean(dim=-1, keepdim=True)
        return centred / deviation * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def norm_relevance(self, tokens: Tensor, name: str, relevance: Tensor) -> Tensor:
        """The deviation is constant, so the norm is a linear layer: identity minus mean, scaled."""
        width = tokens.shape[-1]
        deviation = (tokens.var(dim=-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        matrix = (torch.eye(width, dtype=torch.float64) - 1 / width) * self.w[f"{name}.weight"][:, None]
        return torch.stack(
            [
                self.linear_relevance(token, matrix / each, self.w[f"{name}.bias"], own)
                for token, each, own in zip(tokens, deviation, relevance, strict=True)
            ]
        )

    def linear_relevance(self, x: Tensor, matrix: Tensor, bias: Tensor | float, relevance: Tensor) -> Tensor:
        """Divide the relevance of ``matrix @ x + bias`` among ``x``; the bias keeps its share (the 0-rule)."""
        total = matrix @ x + bias
        return x * (matrix.T @ torch.nan_to_num(relevance / total))

    def block(self, i: int, tokens: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        name = f"transformer.resblocks.{i}"
        normed = self.norm(tokens, f"{name}.ln_1")
        projected = normed @ self.w[f"{name}.attn.in_proj_weight"].T + self.w[f"{name}.attn.in_proj_bias"]
        merged, weights, logits = attend(*projected.chunk(3, dim=1), self.heads)
        attended = (
            merged @ self.w[f"{name}.attn.out_proj.weight"].T + self.w[f"{name}.attn.out_proj.bias"]
        ) * self.scale(f"{name}.ls_1")
        middle = tokens + attended
        hidden = (
            self.norm(middle, f"{name}.ln_2") @ self.w[f"{name}.mlp.c_fc.weight"].T + self.w[f"{name}.mlp.c_fc.bias"]
        )
        active = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
        added = (active @ self.w[f"{name}.mlp.c_proj.weight"].T + self.w[f"{name}.mlp.c_proj.bias"]) * self.scale(
            f"{name}.ls_2"
        )
        state = {"normed": normed, "projected": projected, "merged": merged, "weights": weights, "logits": logits}
        state |= {"attended": attended, "middle": middle, "hidden": hidden, "active": active, "added": added}
        return middle + added, state

    def scale(self, name: str) -> Tensor | float:
        return self.w.get(f"{name}.gamma", 1.0)

    def block_relevance(self, i: int, tokens: Tensor, state: dict[str, Tensor], relevance: Tensor) -> Tensor:
        name, w = f"transformer.resblocks.{i}", self.w
        output = state["middle"] + state["added"]
        of_middle = relevance * state["middle"] / output
        of_added = relevance * state["added"] / output
        of_active = self.rows(state["active"], f"{name}.mlp.c_proj", of_added)
        # Activation functions pass relevance on unchanged (identity rule).
        of_normed = self.rows(self.norm(state["middle"], f"{name}.ln_2"), f"{name}.mlp.c_fc", of_active)
        of_middle = of_middle + self.norm_relevance(state["middle"], f"{name}.ln_2", of_normed)
        of_tokens = of_middle * tokens / state["middle"]
        of_attended = of_middle * state["attended"] / state["middle"]
        of_merged = self.rows(state["merged"], f"{name}.attn.out_proj", of_attended)
        query, key, value = state["projected"].chunk(3, dim=1)
        of_projected = torch.cat(divide_among_attention(query, key, value, self.heads, of_merged), dim=1)
        matrix, bias = w[f"{name}.attn.in_proj_weight"], w[f"{name}.attn.in_proj_bias"]
        of_normed = torch.stack(
            [self.linear_relevance(x, matrix, bias, own) for x, own in zip(state["normed"], of_projected, strict=True)]
        )
        return of_tokens + self.norm_relevance(tokens, f"{name}.ln_1", of_normed)

    def rows(self, inputs: Tensor, name: str, relevance: Tensor) -> Tensor:
        matrix, bias = self.w[f"{name}.weight"], self.w[f"{name}.bias"]
        return torch.stack(
            [self.linear_relevance(x, matrix, bias, own) for x, own in zip(inputs, relevance, strict=True)]
        )

    def pool(self, tokens: Tensor, text: Tensor) -> Tensor:
        """Compute the relevance of the last block's output for the cosine with ``text``."""
        unit = text / text.norm()
        if self.pools_by_attention:
            return self.pool_by_attention(tokens, unit)
        if not self.pools_by_mean:
            of_first = self.head_relevance(tokens[0], unit)
            return torch.cat([of_first[None], torch.zeros_like(tokens[1:])])
        patches = tokens[1:]
        if self.norm_after_pool:
            mean = patches.mean(dim=0)
            of_patches = patches / len(patches) * (self.head_relevance(mean, unit) / mean)
        else:
            normed = self.norm(patches, "ln_post")
            mean = normed.mean(dim=0)
            of_normed = normed / len(patches) * (self.projection_relevance(mean, unit) / mean)
            of_patches = self.norm_relevance(patches, "ln_post", of_normed)
        return torch.cat([torch.zeros_like(tokens[:1]), of_patches])

    def pool_by_attention(self, tokens: Tensor, unit: Tensor) -> Tensor:
        name = "attn_pool.attn"
        queries, keys = self.norm(self.w["attn_pool.query"], "attn_pool.ln_q"), self.norm(tokens, "attn_pool.ln_k")
        bias = self.w[f"{name}.in_proj_bias"].chunk(3)
        q, k, v = (
            x @ self.w[f"{name}.{kind}_proj_weight"].T + b
            for kind, x, b in zip("qkv", (queries, keys, keys), bias, strict=True)
        )
        merged, _, _ = attend(q, k, v, self.pool_heads)
        matrix, out_bias = self.w[f"{name}.out_proj.weight"], self.w[f"{name}.out_proj.bias"]
        pooled = matrix @ merged[0] + out_bias
        of_merged = torch.zeros_like(merged)  # only the first query makes the embedding
        of_merged[0] = self.linear_relevance(merged[0], matrix, out_bias, self.head_relevance(pooled, unit))
        _, of_keys, of_values = divide_among_attention(q, k, v, self.pool_heads, of_merged)
        of_normed = torch.stack(
            [
                self.linear_relevance(x, self.w[f"{name}.k_proj_weight"], bias[1], own_key)
                + self.linear_relevance(x, self.w[f"{name}.v_proj_weight"], bias[2], own_value)
                for x, own_key, own_value in zip(keys, of_keys, of_values, strict=True)
            ]
        )
        return self.norm_relevance(tokens, "attn_pool.ln_k", of_normed)

    def head_relevance(self, token: Tensor, unit: Tensor) -> Tensor:
        """Propagate the cosine through projection and final norm to the pooled token."""
        normed = self.norm(token[None], "ln_post")[0]
        return self.norm_relevance(token[None], "ln_post", self.projection_relevance(normed, unit)[None])[0]

    def projection_relevance(self, normed: Tensor, unit: Tensor) -> Tensor:
        features = normed @ self.w["proj"]
        of_features = features * unit / features.norm()  # the length is constant
        return self.linear_relevance(normed, self.w["proj"].T, 0.0, of_features)


def sum_centred(tokens: Tensor, relevance: Tensor, grid: tuple[int, int]) -> Tensor:
    """Sum relevance over the channels, without what the mean patch would have."""
    return ((tokens - tokens.mean(dim=0)) * relevance / tokens).sum(dim=1).view(grid)


def attend(
    query: Tensor, key: Tensor, value: Tensor, heads: int, bias: Tensor | float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the outputs of the heads ``[t, d]``, the weights and the scaled products ``[h, t, s]``."""
    q, k, v = (x.unflatten(1, (heads, -1)).transpose(0, 1) for x in (query, key, value))
    logits = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1]) + bias
    weights = logits.exp() / logits.exp().sum(dim=-1, keepdim=True)
    return (weights @ v).transpose(0, 1).flatten(1), weights, logits


def divide_among_attention(
    query: Tensor, key: Tensor, value: Tensor, heads: int, relevance: Tensor, bias: Tensor | float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Divide the relevance of the heads' outputs among queries, keys and values; a bias of the products keeps its own.

    Args:
        query, key, value: ``[t, d]`` and ``[s, d]``, before they are divided into heads.
        heads: number of heads.
        relevance: of the outputs of the heads, ``[t, d]``.
        bias: added to the scaled products, ``[h, t, s]``.
    """
    merged, weights, logits = attend(query, key, value, heads, bias)
    q, k, v, o, r = (x.unflatten(1, (heads, -1)).transpose(0, 1) for x in (query, key, value, merged, relevance))
    # Uniform rule: of each product of weight and value, both factors get one half.
    terms = weights[:, :, :, None] * v[:, None] * torch.nan_to_num(r / o)[:, :, None] / 2  # [h, t, s, k]
    of_values, of_weights = terms.sum(dim=1), terms.sum(dim=3)
    # Softmax, eq. 13.
    of_logits = logits * (of_weights - weights * of_weights.sum(dim=-1, keepdim=True))
    products = q[:, :, None] * k[:, None] / math.sqrt(q.shape[-1])  # [h, t, s, k]
    shares = products * torch.nan_to_num(of_logits / logits)[..., None] / 2
    parts = (shares.sum(dim=2), shares.sum(dim=1), of_values)
    of_query, of_key, of_value = (x.transpose(0, 1).flatten(1) for x in parts)
    return of_query, of_key, of_value
