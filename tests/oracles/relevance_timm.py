"""Layer-wise relevance propagation through timm's ViTs as open_clip builds them, without autograd.

Gated MLPs, rotary positions, norms of queries and keys, norms inside attention and MLP, register tokens, norms after
the branches, layer scales and all poolings. Float64, one image. Each operation returns its output and a function that
divides the output's relevance among the inputs, as AttnLRP (Achtibat et al. 2024, https://arxiv.org/abs/2402.05602)
defines it.
"""

from collections.abc import Callable
from typing import Any

import torch
from timm.layers import RmsNorm
from torch import Tensor
from torch.nn import functional as F

from tests.oracles.relevance import attend, divide_among_attention

Divide = Callable[[Tensor], Tensor]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "GELU": lambda x: x * (1 + torch.erf(x / 2**0.5)) / 2,
    "QuickGELU": lambda x: x / (1 + (-1.702 * x).exp()),
    "SiLU": lambda x: x / (1 + (-x).exp()),
}


class RelevanceTimmViT:
    """A ViT with the weights of ``visual``, through which relevance is propagated.

    Attributes:
        held: deviations of norms by name, and the length of the embedding, that forwards take for their own; empty at
            first.
        measured: those of the last forward.
    """

    def __init__(self, visual: Any) -> None:
        self.w = {name.removeprefix("trunk."): x.detach().double() for name, x in visual.state_dict().items()}
        self.trunk: Any = visual.trunk
        self.modules = dict(visual.trunk.named_modules())
        self.prefix, self.grid = visual.trunk.num_prefix_tokens, visual.trunk.patch_embed.grid_size
        self.held: dict[str, Tensor] = {}
        self.measured: dict[str, Tensor] = {}

    def at_block(self, image: Tensor, text: Tensor, block: int) -> tuple[Tensor, Tensor]:
        """Propagate the cosine with a text to the input of a block.

        Returns:
            The patches ``[s, d]`` in the block's input, of the first block before positions, and the relevance of each
            of their numbers.
        """
        patches = self.patches_of(image, block)
        _, divide = self.score(patches, text, block)
        return patches[0], divide(torch.ones(()).double())

    def patches_of(self, image: Tensor, block: int) -> tuple[Tensor, Tensor]:
        """Compute the patches and the other tokens in the input of a block."""
        with torch.no_grad():
            patches = self.trunk.patch_embed(image[None])[0]
        prefix = [self.w[name][0] for name in ("cls_token", "reg_token") if name in self.w]
        others = torch.cat(prefix) if prefix else patches[:0]
        if block == 0:
            return patches, others
        tokens, _ = self.place(patches, others)
        for i in range(block):
            tokens, _ = self.block(i, tokens)
        return tokens[self.prefix :], tokens[: self.prefix]

    def score(self, inputs: tuple[Tensor, Tensor], text: Tensor, block: int) -> tuple[Tensor, Divide]:
        """Compute the cosine from the input of a block; its relevance is divided among the patches."""
        self.measured = {}
        tokens, of_inputs = self.place(*inputs) if block == 0 else (torch.cat(inputs[::-1]), self.drop_prefix)
        steps = [of_inputs]
        for step in (*(self.block_step(i) for i in range(block, len(self.trunk.blocks))), self.pool, self.head):
            tokens, divide = step(tokens)
            steps.append(divide)
        length = self.hold("length", tokens.norm())
        parts = tokens[0] / length * text.double() / text.double().norm()

        def propagate(relevance: Tensor) -> Tensor:
            relevance = (parts * relevance)[None]
            for divide in reversed(steps):
                relevance = divide(relevance)
            return relevance

        return parts.sum(), propagate

    def hold(self, name: str, value: Tensor) -> Tensor:
        """Return the value that is held constant under a name, if there is one."""
        self.measured[name] = self.held.get(name, value)
        return self.measured[name]

    def drop_prefix(self, relevance: Tensor) -> Tensor:
        return relevance[self.prefix :]

    def place(self, patches: Tensor, others: Tensor) -> tuple[Tensor, Divide]:
        """Add positions, which a class token may not have, and the norm before the first block."""
        tokens = torch.cat([others, patches])
        positions = self.w.get("pos_embed", tokens[None, :0])[0]
        placed = tokens + F.pad(positions, (0, 0, len(tokens) - len(positions), 0))
        normed, of_placed = self.norm(placed, "norm_pre")

        def divide(relevance: Tensor) -> Tensor:
            return self.drop_prefix(of_placed(relevance) * torch.nan_to_num(tokens / placed))

        return normed, divide

    def block_step(self, i: int) -> Callable[[Tensor], tuple[Tensor, Divide]]:
        return lambda tokens: self.block(i, tokens)

    def block(self, i: int, tokens: Tensor) -> tuple[Tensor, Divide]:
        name = f"blocks.{i}"
        middle, of_middle = self.branch(tokens, self.attention, f"{name}.attn", f"{name}.norm1", (".gamma_1", ".ls1"))
        output, of_output = self.branch(middle, self.mlp, f"{name}.mlp", f"{name}.norm2", (".gamma_2", ".ls2"))
        return output, lambda relevance: of_middle(of_output(relevance))

    def branch(
        self,
        tokens: Tensor,
        function: Callable[[Tensor, str], tuple[Tensor, Divide]],
        name: str,
        norm: str,
        scales: tuple[str, str],
    ) -> tuple[Tensor, Divide]:
        """Add to the tokens what attention or MLP makes of them, with the norm before or after it."""
        block = name.rpartition(".")[0]
        comes_last = "Post" in type(self.modules[block]).__name__
        normed, of_normed = (tokens, keep) if comes_last else self.norm(tokens, norm)
        added, of_added = function(normed, name)
        added, of_last = self.norm(added, norm) if comes_last else (added, keep)
        for scale in (f"{block}{scales[0]}", f"{block}{scales[1]}.gamma"):
            added = added * self.w.get(scale, 1.0)  # passes relevance on unchanged
        output = tokens + added

        def divide(relevance: Tensor) -> Tensor:
            share = relevance / output
            return share * tokens + of_normed(of_added(of_last(share * added)))

        return output, divide

    def norm(self, x: Tensor, name: str) -> tuple[Tensor, Divide]:
        """Apply a norm, whose deviation is constant: a linear layer, identity minus mean, scaled."""
        weight = self.w.get(f"{name}.weight")
        if weight is None:
            return x, keep
        module, width = self.modules[name], x.shape[-1]
        centre = torch.eye(width, dtype=torch.float64) - (0 if isinstance(module, RmsNorm) else 1 / width)
        deviation = self.hold(name, ((x @ centre).square().mean(dim=-1, keepdim=True) + module.eps).sqrt())
        bias = self.w.get(f"{name}.bias", 0.0)
        output = x @ centre / deviation * weight + bias

        def divide(relevance: Tensor) -> Tensor:
            return x * (torch.nan_to_num(relevance / output) * weight / deviation @ centre)

        return output, divide

    def linear(self, x: Tensor, matrix: Tensor, bias: Tensor | float = 0.0) -> tuple[Tensor, Divide]:
        """Apply a linear layer, whose bias keeps its share of the relevance."""
        output = x @ matrix.T + bias
        return output, lambda relevance: x * (torch.nan_to_num(relevance / output) @ matrix)

    def layer(self, x: Tensor, name: str) -> tuple[Tensor, Divide]:
        return self.linear(x, self.w[f"{name}.weight"], self.w.get(f"{name}.bias", 0.0))

    def mlp(self, x: Tensor, name: str) -> tuple[Tensor, Divide]:
        """Apply an MLP, plain or gated; ViTamin's has its norm at the start, others where the activation is."""
        module = self.modules[name]
        kind = type(module).__name__
        activate = ACTIVATIONS[type(module.act).__name__]
        normed, of_normed = self.norm(x, f"{name}.norm") if kind == "GeGluMlp" else (x, keep)
        if kind == "Mlp":
            hidden, of_hidden = self.layer(normed, f"{name}.fc1")
            hidden = activate(hidden)  # passes relevance on unchanged
        else:
            (gate, of_gate), (value, of_value) = self.gate_and_value(normed, name, kind)
            hidden = activate(gate) * value

            def of_hidden(relevance: Tensor) -> Tensor:
                return of_gate(relevance / 2) + of_value(relevance / 2)

        scaled, of_scaled = (hidden, keep) if kind == "GeGluMlp" else self.norm(hidden, f"{name}.norm")
        output, of_output = self.layer(scaled, f"{name}.w2" if kind == "GeGluMlp" else f"{name}.fc2")
        return output, lambda relevance: of_normed(of_hidden(of_scaled(of_output(relevance))))

    def gate_and_value(self, x: Tensor, name: str, kind: str) -> list[tuple[Tensor, Divide]]:
        """Compute the two factors of a gated MLP, the one with the activation function first."""
        if kind == "GluMlp":
            assert not self.modules[name].gate_last
            halves = zip(self.w[f"{name}.fc1.weight"].chunk(2), self.w[f"{name}.fc1.bias"].chunk(2), strict=True)
            return [self.linear(x, *half) for half in halves]
        parts = {"SwiGLU": ("fc1_g", "fc1_x"), "GeGluMlp": ("w0", "w1")}[kind]
        return [self.layer(x, f"{name}.{part}") for part in parts]

    def attention(self, x: Tensor, name: str) -> tuple[Tensor, Divide]:
        module = self.modules[name]
        heads = module.num_heads
        (q, of_q), (k, of_k), (v, of_v) = (self.project(x, name, kind) for kind in "qkv")
        (q, of_q_norm), (k, of_k_norm) = (
            self.per_head(each, heads, lambda part, kind=kind: self.norm(part, f"{name}.{kind}_norm"))
            for each, kind in ((q, "q"), (k, "k"))
        )
        (q, of_q_turn), (k, of_k_turn) = (self.per_head(each, heads, self.rotate) for each in (q, k))
        bias = self.position_bias(module)
        merged, _, _ = attend(q, k, v, heads, bias)
        normed, of_merged = self.norm(merged, f"{name}.norm")
        output, of_normed = self.layer(normed, f"{name}.proj")

        def divide(relevance: Tensor) -> Tensor:
            of_heads = of_merged(of_normed(relevance))
            of_query, of_key, of_value = divide_among_attention(q, k, v, heads, of_heads, bias)
            return of_q(of_q_norm(of_q_turn(of_query))) + of_k(of_k_norm(of_k_turn(of_key))) + of_v(of_value)

        return output, divide

    def project(self, x: Tensor, name: str, kind: str) -> tuple[Tensor, Divide]:
        """Compute queries, keys or values from packed or separate weights, with fewer keys and values than queries."""
        packed, index = self.w.get(f"{name}.qkv.weight"), "qkv".index(kind)
        if packed is None:
            matrix, bias = self.w[f"{name}.{kind}_proj.weight"], self.w.get(f"{name}.{kind}_proj.bias")
        else:
            matrix, bias = packed.chunk(3)[index], self.w.get(f"{name}.{kind}_bias")
            if f"{name}.qkv.bias" in self.w:
                bias = self.w[f"{name}.qkv.bias"].chunk(3)[index]
        bias = torch.zeros(len(matrix)).double() if bias is None else bias
        size = self.modules[name].head_dim
        copies = self.modules[name].num_heads * size // len(matrix)
        matrix, bias = (
            each.unflatten(0, (-1, size)).repeat_interleave(copies, 0).flatten(0, 1) for each in (matrix, bias)
        )
        return self.linear(x, matrix, bias)

    def per_head(
        self, x: Tensor, heads: int, function: Callable[[Tensor], tuple[Tensor, Divide]]
    ) -> tuple[Tensor, Divide]:
        """Apply a function of ``[t, h, k]`` to ``[t, h * k]``."""
        output, divide = function(x.unflatten(1, (heads, -1)))
        return output.flatten(1), lambda relevance: divide(relevance.unflatten(1, (heads, -1))).flatten(1)

    def rotate(self, x: Tensor) -> tuple[Tensor, Divide]:
        """Rotate pairs of channels of each patch by its position: one matrix per token, which is a linear layer."""
        rope = getattr(self.trunk, "rope", None)
        if rope is None:
            return x, keep
        sine, cosine = rope.get_embed(shape=self.grid).detach().double().chunk(2, dim=-1)  # [s, k]
        size, half = x.shape[-1], self.trunk.blocks[0].attn.rotate_half
        matrices = torch.eye(size, dtype=torch.float64).repeat(len(x), 1, 1)
        for pair in range(size // 2):
            a, b = (pair, pair + size // 2) if half else (2 * pair, 2 * pair + 1)
            matrices[self.prefix :, a, a], matrices[self.prefix :, b, b] = cosine[:, a], cosine[:, b]
            matrices[self.prefix :, a, b], matrices[self.prefix :, b, a] = -sine[:, a], sine[:, b]
        output = torch.einsum("tij,thj->thi", matrices, x)
        return (
            output,
            lambda relevance: x * torch.einsum("tij,thi->thj", matrices, torch.nan_to_num(relevance / output)),
        )

    def position_bias(self, module: Any) -> Tensor | float:
        relative = getattr(module, "rel_pos", None)
        return 0.0 if relative is None else relative.get_bias().detach().double()[0]

    def pool(self, tokens: Tensor) -> tuple[Tensor, Divide]:
        """Apply the final norm and pool the class token, the mean patch, or by attention."""
        normed, of_tokens = self.norm(tokens, "norm")
        if self.trunk.global_pool == "map":
            pooled, of_normed = self.pool_by_attention(normed)
        else:
            chosen = slice(0, 1) if self.trunk.global_pool == "token" else slice(self.prefix, None)
            share = torch.zeros(1, len(tokens)).double()
            share[:, chosen] = 1 / share[:, chosen].numel()
            pooled = share @ normed

            def of_normed(relevance: Tensor) -> Tensor:
                return share.T * normed * torch.nan_to_num(relevance / pooled)

        output, of_pooled = self.norm(pooled, "fc_norm")
        return output, lambda relevance: of_tokens(of_normed(of_pooled(relevance)))

    def pool_by_attention(self, tokens: Tensor) -> tuple[Tensor, Divide]:
        """Apply attention of a learned query, which keeps its relevance, and an MLP."""
        heads, w = self.trunk.attn_pool.num_heads, self.w
        query, _ = self.layer(w["attn_pool.latent"][0], "attn_pool.q")
        halves = zip(w["attn_pool.kv.weight"].chunk(2), w["attn_pool.kv.bias"].chunk(2), strict=True)
        (key, of_key), (value, of_value) = (self.linear(tokens, *half) for half in halves)
        merged, _, _ = attend(query, key, value, heads)
        projected, of_merged = self.layer(merged, "attn_pool.proj")
        pooled, of_projected = self.branch(projected, self.mlp, "attn_pool.mlp", "attn_pool.norm", ("", ""))

        def divide(relevance: Tensor) -> Tensor:
            of_heads = of_merged(of_projected(relevance))
            _, own_key, own_value = divide_among_attention(query, key, value, heads, of_heads)
            return of_key(own_key) + of_value(own_value)

        return pooled, divide

    def head(self, pooled: Tensor) -> tuple[Tensor, Divide]:
        """Apply timm's classifier and open_clip's projection, where there are any."""
        steps: list[Divide] = []
        for name in ("head", "head.proj"):
            if f"{name}.weight" in self.w:
                pooled, divide = self.layer(pooled, name)
                steps.insert(0, divide)

        def propagate(relevance: Tensor) -> Tensor:
            for divide in steps:
                relevance = divide(relevance)
            return relevance

        return pooled, propagate


def keep(relevance: Tensor) -> Tensor:
    return relevance
