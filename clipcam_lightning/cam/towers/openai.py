"""Towers of the original ``clip`` package and of the many forks that keep its layout.

There is no package to import, so they are known by their parts. open_clip keeps these parts and adds to them, which is
why its towers derive from the ones here.
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from clipcam_lightning.cam.towers.shared import (
    encode_with,
    inside_visual,
    pair,
    resize_positions,
    tokens_to_grid,
    whole_cells,
)
from clipcam_lightning.cam.towers.tower import OF_CLASS_TOKEN_SUMS, OF_RESNETS, AttentionTower
from clipcam_lightning.errors import TowerError

STAGES = ("layer1", "layer2", "layer3", "layer4")


class _ClipTower(AttentionTower):
    """What the two have in common: where they are, and learned positions of which the first is no patch's.

    Attributes:
        path, visual: dotted name below ``clip``, and the module of that name.
        cell: height and width in pixels of one cell of the grid.
        positions: the parameter with the positions, below ``visual``.
    """

    cell: tuple[int, int]
    positions: str

    def __init__(self, clip: nn.Module) -> None:
        super().__init__(clip)
        self.path, self.visual = inside_visual(clip, self.is_visual)

    @classmethod
    def fits(cls, clip: nn.Module) -> bool:
        """Whether ``clip.visual`` is such a tower, or a wrapper of one."""
        return inside_visual(clip, cls.is_visual)[1] is not None

    @staticmethod
    @abstractmethod
    def is_visual(part: Any) -> bool:
        """Whether ``part`` is the image encoder itself."""

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return pair(self.visual.input_resolution)

    def grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Whole cells."""
        return image_size[0] // self.cell[0], image_size[1] // self.cell[1]

    def scaled_size(self, size: tuple[int, int], scale: float) -> tuple[int, int]:
        """Whole cells."""
        return whole_cells(size, scale, self.cell)

    def encode(self, images: Float[Tensor, "b 3 y x"]) -> Float[Tensor, "b e"]:
        """Image embeddings; at another size with bicubically interpolated positions, the first keeping its own."""
        size = (images.shape[-2], images.shape[-1])
        if size == self.input_size:
            return super().encode(images)
        name = f"{self.path}.{self.positions}"
        own = self.clip.get_parameter(name).detach()
        resized = resize_positions(own[1:], self.grid(self.input_size), self.grid(size))
        return encode_with(self.clip, {name: torch.cat([own[:1], resized])}, images)


class OpenAiViT(_ClipTower):
    """Blocks that run sequence first, over one CLS token and then the patches row by row; the CLS token is pooled."""

    positions = "positional_embedding"
    pooling: Literal["cls", "mean", "attention"] = "cls"  # a derived tower may have another
    batch_dim = 1
    recipe = OF_CLASS_TOKEN_SUMS

    def __init__(self, clip: nn.Module) -> None:
        super().__init__(clip)
        # The original has no such attribute; a user of open_clip may have wrapped the convolution.
        self.cell = pair(getattr(self.visual, "patch_size", None) or self.visual.conv1.kernel_size)
        self.blocks: Sequence[Any] = list(self.visual.transformer.resblocks)
        self.attentions = [block.attn for block in self.blocks]
        # The embedding reads only the CLS token of the last block's output, so every patch's gradient there is
        # exactly zero. The output of ln_1 is where the patches of the last block still count.
        self.layers = [f"{self.path}.transformer.resblocks.{i}.ln_1" for i in range(len(self.blocks))]
        self.default_layer = self.layers[-1]
        self.final_norm = self.visual.ln_post

    @staticmethod
    def is_visual(part: Any) -> bool:
        """Whether ``part`` has the original's parts, perhaps among others."""
        return (
            _children(part) >= {"conv1", "ln_pre", "transformer", "ln_post"}
            and hasattr(part, "input_resolution")
            and all(
                _children(block) >= {"ln_1", "attn", "ln_2", "mlp"}
                for block in getattr(part.transformer, "resblocks", [nn.Identity()])
            )
        )

    def to_tokens(self, output: Any) -> Float[Tensor, "b t d"]:
        """Batch first, whatever the transformer runs in."""
        return super().to_tokens(output).transpose(0, self.batch_dim)

    def to_grid(self, features: Float[Tensor, "..."], image_size: tuple[int, int]) -> Float[Tensor, "b c h w"]:
        """Drop the CLS token and lay the patch tokens out row by row."""
        return tokens_to_grid(self, features, image_size)

    def embed_tokens(self, tokens: Float[Tensor, "b t d"]) -> Float[Tensor, "b t e"]:
        """Final norm and projection."""
        return self.head(self.visual.ln_post(tokens))

    def project(self, block: int, heads: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        """Output projection."""
        attention = self.blocks[block].attn
        # The out_proj of peft's own wrapper is the one without the adapter.
        projected: Tensor = getattr(attention, "base_layer", attention).out_proj(heads)
        return projected

    def head(self, normalized: Float[Tensor, "b t d"]) -> Float[Tensor, "b t e"]:
        """The projection."""
        return normalized if self.visual.proj is None else normalized @ self.visual.proj

    @contextmanager
    def skipping_unused(self, layers: Sequence[str]) -> Iterator[None]:
        """Compute only the CLS row of the last block when nothing else is read.

        From the last ``ln_1`` on, a CLS-pooled tower needs the keys and values of all tokens but the query,
        the MLP and the final norm of one. The values are the same; most of the last block's cost is gone.
        """
        last, ln_post = self.blocks[-1], self.visual.ln_post
        prefix = f"{self.path}.transformer.resblocks.{len(self.blocks) - 1}"
        inside = [name for name in layers if name.startswith((prefix, f"{self.path}.ln_post"))]
        cut_short = [module for module in last.modules() if module not in (last, last.ln_1)] + [ln_post]
        if (
            any(name != f"{prefix}.ln_1" for name in inside)
            or not self._only_cls_is_used()
            or not isinstance(last.attn, nn.MultiheadAttention)
            # Somebody else listens there, and must not see one token in place of all.
            or any(module._forward_hooks for module in (*cut_short, last, self.visual.transformer))
            or any(module._forward_pre_hooks for module in cut_short)
        ):
            yield
            return
        tokens = 1 - self.batch_dim

        def first_query(_attn: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            query, *others = inputs
            return query.narrow(tokens, 0, 1), *others

        def first_token(_norm: nn.Module, inputs: tuple[Tensor]) -> Tensor:
            return inputs[0].narrow(tokens, 0, 1)

        def first_token_of_all(_norm: nn.Module, inputs: tuple[Tensor]) -> Tensor:
            # The transformer gives its output back batch first; where it is pooled before the norm, nothing is left.
            return inputs[0][:, :1] if inputs[0].ndim == 3 else inputs[0]

        handles = [
            last.attn.register_forward_pre_hook(first_query),
            last.ln_2.register_forward_pre_hook(first_token),
            ln_post.register_forward_pre_hook(first_token_of_all),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _only_cls_is_used(self) -> bool:
        """Whether that is certain of the last block's output; parts that a fork has added may use other tokens."""
        return _children(self.visual) == {"conv1", "ln_pre", "transformer", "ln_post"} and _children(
            self.blocks[-1]
        ) == {"ln_1", "attn", "ln_2", "mlp"}


class OpenAiResNet(_ClipTower):
    """A ``ModifiedResNet``: four stages, then attention pooling with the mean as its query."""

    positions = "attnpool.positional_embedding"
    cell = (32, 32)
    channel_dim = 1
    pooling = "attention"
    recipe = OF_RESNETS

    def __init__(self, clip: nn.Module) -> None:
        super().__init__(clip)
        self.layers = [f"{self.path}.{stage}" for stage in STAGES]
        self.default_layer = self.layers[-1]
        self.blocks = [block for name in self.layers for block in clip.get_submodule(name).children()]
        self.pool = self.visual.attnpool

    @staticmethod
    def is_visual(part: Any) -> bool:
        """Whether ``part`` has the original's parts, perhaps among others."""
        return (
            _children(part) >= {*STAGES, "attnpool"}
            and hasattr(part, "input_resolution")
            and _children(part.attnpool) >= {"q_proj", "k_proj", "v_proj", "c_proj"}
        )

    def to_grid(self, features: Float[Tensor, "..."], image_size: tuple[int, int]) -> Float[Tensor, "b c h w"]:
        """A stage's output is a grid already."""
        if features.ndim != 4:
            raise TowerError(
                f"expected [batch, channels, height, width] from the layer, got {tuple(features.shape)}; "
                f"choose one of {', '.join(self.layers)}."
            )
        return features

    def to_tokens(self, output: Any) -> Float[Tensor, "b t d"]:
        """Cells of a stage, row by row."""
        cells: Tensor = output.flatten(2).transpose(1, 2)
        return cells

    def embed_tokens(self, tokens: Float[Tensor, "b t d"]) -> Float[Tensor, "b t e"]:
        """Value and output projection of the attention pool; alone, a token has no position among others."""
        projected: Tensor = self.visual.attnpool.c_proj(self.visual.attnpool.v_proj(tokens))
        return projected


def _children(part: nn.Module) -> set[str]:
    """Names of a module's own children, and not of a module that it wraps and speaks for."""
    return {name for name, _ in part.named_children()}
