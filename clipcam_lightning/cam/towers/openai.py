"""Towers of the original ``clip`` package and of the many forks that keep its layout.

The package is not imported: a model is recognised by its parts. open_clip has the same parts and adds some, so its
towers derive from those here.
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from clipcam_lightning.cam.towers.shared import (
    as_pair,
    encode_with,
    find_in_visual,
    resize_positions,
    round_to_cells,
    tokens_to_grid,
)
from clipcam_lightning.cam.towers.tower import (
    ADDITIVE_CLASS_TOKEN_RECIPE,
    CLASS_TOKEN_RECIPE,
    RESNET_RECIPE,
    AttentionTower,
)
from clipcam_lightning.errors import TowerError

STAGES = ("layer1", "layer2", "layer3", "layer4")


class _ClipTower(AttentionTower):
    """The base of both towers: their place in the CLIP, and learned positions, the first of which is not a patch's.

    Attributes:
        path, visual: dotted name of the image encoder below ``clip``, and the image encoder.
        cell: height and width in pixels of one cell of the grid.
        positions: name of the parameter with the positions, below ``visual``.
    """

    cell: tuple[int, int]
    positions: str

    def __init__(self, clip: nn.Module) -> None:
        super().__init__(clip)
        self.path, self.visual = find_in_visual(clip, self.is_visual)

    @classmethod
    def fits(cls, clip: nn.Module) -> bool:
        """Check whether ``clip.visual`` is such an image encoder, or wraps one."""
        return find_in_visual(clip, cls.is_visual)[1] is not None

    @staticmethod
    @abstractmethod
    def is_visual(part: Any) -> bool:
        """Check whether ``part`` is the image encoder itself."""

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return as_pair(self.visual.input_resolution)

    @property
    def input_channels(self) -> int:
        """Number of channels that the first convolution takes."""
        return next((part.in_channels for part in self.visual.conv1.modules() if isinstance(part, nn.Conv2d)), 3)

    def grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Divide the image into whole cells."""
        return image_size[0] // self.cell[0], image_size[1] // self.cell[1]

    def scaled_size(self, size: tuple[int, int], scale: float) -> tuple[int, int]:
        """Round to whole cells."""
        return round_to_cells(size, scale, self.cell)

    def encode(self, images: Float[Tensor, "b 3 y x"]) -> Float[Tensor, "b e"]:
        """Embed images; for another size, all positions but the first are interpolated bicubically."""
        size = (images.shape[-2], images.shape[-1])
        if size == self.input_size:
            return super().encode(images)
        name = f"{self.path}.{self.positions}"
        own = self.clip.get_parameter(name).detach()
        resized = resize_positions(own[1:], self.grid(self.input_size), self.grid(size))
        return encode_with(self.clip, {name: torch.cat([own[:1], resized])}, images)


class OpenAiViT(_ClipTower):
    """A ViT that pools its CLS token: blocks run sequence first, over the CLS token and the patches row by row."""

    positions = "positional_embedding"
    pooling: Literal["cls", "mean", "attention"] = "cls"  # derived towers may pool otherwise
    batch_dim = 1
    recipe = ADDITIVE_CLASS_TOKEN_RECIPE

    def __init__(self, clip: nn.Module) -> None:
        super().__init__(clip)
        # The original has no patch_size; in open_clip the convolution may be wrapped and have no kernel_size.
        self.cell = as_pair(getattr(self.visual, "patch_size", None) or self.visual.conv1.kernel_size)
        self.blocks: Sequence[Any] = list(self.visual.transformer.resblocks)
        self.attentions = [block.attn for block in self.blocks]
        # The embedding reads only the CLS token of the last block's output, so every patch's gradient there is
        # exactly zero. The output of ln_1 is where the patches of the last block still count.
        self.layers = [f"{self.path}.transformer.resblocks.{i}.ln_1" for i in range(len(self.blocks))]
        self.default_layer = self.layers[-1]
        blocks = [f"{self.path}.transformer.resblocks.{i}" for i in range(len(self.blocks))]
        self.block_inputs = [f"{self.path}.conv1", *blocks[:-1]]
        if all(_find_output_projection(attention) is not None for attention in self.attentions):
            self.final_norm = self.visual.ln_post
        else:
            self.recipe = CLASS_TOKEN_RECIPE

    @staticmethod
    def is_visual(part: Any) -> bool:
        """Check whether ``part`` has the parts of the original ViT, possibly among others."""
        return (
            _child_names(part) >= {"conv1", "ln_pre", "transformer", "ln_post"}
            and hasattr(part, "input_resolution")
            and all(
                _child_names(block) >= {"ln_1", "attn", "ln_2", "mlp"}
                for block in getattr(part.transformer, "resblocks", [nn.Identity()])
            )
        )

    def to_tokens(self, output: Any) -> Float[Tensor, "b t d"]:
        """Convert to batch first, whatever order the transformer runs in."""
        return super().to_tokens(output).transpose(0, self.batch_dim)

    def to_grid(self, features: Float[Tensor, "..."], image_size: tuple[int, int]) -> Float[Tensor, "b c h w"]:
        """Drop the CLS token and lay out the patch tokens row by row."""
        return tokens_to_grid(self, features, image_size)

    def embed_tokens(self, tokens: Float[Tensor, "b t d"]) -> Float[Tensor, "b t e"]:
        """Apply final norm and projection."""
        return self.head(self.visual.ln_post(tokens))

    def project(self, block: int, heads: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        """Apply the output projection."""
        attention = self.attentions[block]
        projection = _find_output_projection(attention)
        if projection is None:
            raise TowerError(
                f"{type(attention).__name__} has no 'out_proj' after its heads, which this method needs; use one that "
                "reads no heads, such as hirescam."
            )
        projected: Tensor = projection(heads)
        return projected

    def head(self, normalized: Float[Tensor, "b t d"]) -> Float[Tensor, "b t e"]:
        """Apply the projection."""
        return normalized if self.visual.proj is None else normalized @ self.visual.proj

    @contextmanager
    def skipping_unused(self, layers: Sequence[str]) -> Iterator[None]:
        """Compute only the CLS token's row of the last block if the embedding reads no other.

        From the last ``ln_1`` on, a tower that pools its CLS token needs the keys and values of all tokens, but the
        query, the MLP and the final norm of one. The result is the same, without most of the last block's cost.
        """
        last, ln_post = self.blocks[-1], self.visual.ln_post
        prefix = f"{self.path}.transformer.resblocks.{len(self.blocks) - 1}"
        late_layers = [name for name in layers if name.startswith((prefix, f"{self.path}.ln_post"))]
        shortened = [module for module in last.modules() if module not in (last, last.ln_1)] + [ln_post]
        if (
            any(name != f"{prefix}.ln_1" for name in late_layers)
            or not self._uses_only_cls()
            or not isinstance(last.attn, nn.MultiheadAttention)
            # Other hooks must see all tokens.
            or any(module._forward_hooks for module in (*shortened, last, self.visual.transformer))
            or any(module._forward_pre_hooks for module in shortened)
        ):
            yield
            return
        token_dim = 1 - self.batch_dim

        def keep_first_query(_attn: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            query, *others = inputs
            return query.narrow(token_dim, 0, 1), *others

        def keep_first_token(_norm: nn.Module, inputs: tuple[Tensor]) -> Tensor:
            return inputs[0].narrow(token_dim, 0, 1)

        def keep_first_token_if_any(_norm: nn.Module, inputs: tuple[Tensor]) -> Tensor:
            # The transformer returns its output batch first; if it is pooled before the norm, it has no tokens here.
            return inputs[0][:, :1] if inputs[0].ndim == 3 else inputs[0]

        handles = [
            last.attn.register_forward_pre_hook(keep_first_query),
            last.ln_2.register_forward_pre_hook(keep_first_token),
            ln_post.register_forward_pre_hook(keep_first_token_if_any),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _uses_only_cls(self) -> bool:
        """Check whether the embedding certainly reads only the CLS token; parts added by a fork may read others."""
        return _child_names(self.visual) == {"conv1", "ln_pre", "transformer", "ln_post"} and _child_names(
            self.blocks[-1]
        ) == {"ln_1", "attn", "ln_2", "mlp"}


class OpenAiResNet(_ClipTower):
    """A ``ModifiedResNet``: four stages, then attention pooling with the mean of the cells as the query."""

    positions = "attnpool.positional_embedding"
    cell = (32, 32)
    channel_dim = 1
    pooling = "attention"
    recipe = RESNET_RECIPE

    def __init__(self, clip: nn.Module) -> None:
        super().__init__(clip)
        self.layers = [f"{self.path}.{stage}" for stage in STAGES]
        self.default_layer = self.layers[-1]
        self.blocks = [block for name in self.layers for block in clip.get_submodule(name).children()]
        self.pool = self.visual.attnpool

    @staticmethod
    def is_visual(part: Any) -> bool:
        """Check whether ``part`` has the parts of the original ResNet, possibly among others."""
        return (
            _child_names(part) >= {*STAGES, "attnpool"}
            and hasattr(part, "input_resolution")
            and _child_names(part.attnpool) >= {"q_proj", "k_proj", "v_proj", "c_proj"}
        )

    def to_grid(self, features: Float[Tensor, "..."], image_size: tuple[int, int]) -> Float[Tensor, "b c h w"]:
        """Return a stage's output, which is a grid already."""
        if features.ndim != 4:
            raise TowerError(
                f"expected [batch, channels, height, width] from the layer, got {tuple(features.shape)}; "
                f"choose one of {', '.join(self.layers)}."
            )
        return features

    def to_tokens(self, output: Any) -> Float[Tensor, "b t d"]:
        """Flatten the cells of a stage, row by row."""
        cells: Tensor = output.flatten(2).transpose(1, 2)
        return cells

    def embed_tokens(self, tokens: Float[Tensor, "b t d"]) -> Float[Tensor, "b t e"]:
        """Apply value and output projection of the attention pool. A token that is pooled alone has no position."""
        projected: Tensor = self.visual.attnpool.c_proj(self.visual.attnpool.v_proj(tokens))
        return projected


def _find_output_projection(attention: nn.Module) -> nn.Module | None:
    """Find what an attention applies to its heads; ``None`` in a replacement that names it otherwise."""
    # The out_proj of PEFT's own wrapper is the one without LoRA.
    return getattr(getattr(attention, "base_layer", attention), "out_proj", None)


def _child_names(part: nn.Module) -> set[str]:
    """Return the names of a module's own children, not those of a module that it wraps and delegates to."""
    return {name for name, _ in part.named_children()}
