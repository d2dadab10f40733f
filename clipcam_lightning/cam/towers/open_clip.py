"""Towers of open_clip: ``VisionTransformer`` in all its poolings, and ``ModifiedResNet``."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from clipcam_lightning.cam.towers.tower import Tower
from clipcam_lightning.errors import ConfigError, TowerError


class OpenClipViT(Tower):
    """``visual`` is a ``VisionTransformer``: one CLS token, then the patches row by row."""

    def __init__(self, clip: nn.Module) -> None:
        super().__init__(clip)
        self.path, visual = _inside_visual(clip, VisionTransformer)
        self.visual = visual
        self.blocks: Sequence[Any] = list(visual.transformer.resblocks)
        # A CLS-pooled tower reads only the CLS token of its last block's output, so every patch's gradient
        # there is exactly zero. The output of ln_1 is where the patches of the last block still count.
        self.pools_cls = visual.attn_pool is None and visual.pool_type == "tok"
        suffix = ".ln_1" if self.pools_cls else ""
        self.layers = [f"{self.path}.transformer.resblocks.{i}{suffix}" for i in range(len(self.blocks))]
        self.default_layer = self.layers[-1]

    @classmethod
    def fits(cls, clip: nn.Module) -> bool:
        """Whether ``clip.visual`` is open_clip's own ViT, or a wrapper of it."""
        return _inside_visual(clip, VisionTransformer)[1] is not None

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        height, width = self.visual.image_size
        return height, width

    def to_grid(self, features: Float[Tensor, "..."], image_size: tuple[int, int]) -> Float[Tensor, "b c h w"]:
        """Drop the CLS token and lay the patch tokens out row by row."""
        height, width = self._grid(image_size)
        if features.ndim == 3 and not self.visual.transformer.batch_first:
            features = features.transpose(0, 1)
        if features.ndim != 3 or features.shape[1] != 1 + height * width:
            raise TowerError(
                f"expected [batch, 1 + {height}x{width} tokens, channels] from the layer, got "
                f"{tuple(features.shape)}; choose one of {', '.join(self.layers)}."
            )
        patches = features[:, 1:].transpose(1, 2)
        return patches.reshape(*patches.shape[:2], height, width)

    def position_embeddings(self, image_size: tuple[int, int]) -> dict[str, Tensor]:
        """The learned positions, bicubically interpolated to another grid; CLS keeps its own."""
        if image_size == self.input_size:
            return {}
        height, width = self._grid(image_size)
        positions = self.visual.positional_embedding.detach()
        resized = _resize_positions(positions[1:], self.visual.grid_size, (height, width))
        return {f"{self.path}.positional_embedding": torch.cat([positions[:1], resized])}

    def scaled_size(self, scale: float) -> tuple[int, int]:
        """Whole patches."""
        return _whole_cells(self.input_size, scale, self.visual.patch_size)

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
            or not self.pools_cls
            or self.visual.final_ln_after_pool
            or self.visual.output_tokens
            or type(last) is not ResidualAttentionBlock
            or not isinstance(last.attn, nn.MultiheadAttention)
            # Somebody else listens there, and must not see one token in place of all.
            or any(module._forward_hooks for module in (*cut_short, last, self.visual.transformer))
            or any(module._forward_pre_hooks for module in cut_short)
        ):
            yield
            return
        tokens = 1 if last.attn.batch_first else 0

        def first_query(_attn: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            query, *others = inputs
            return query.narrow(tokens, 0, 1), *others

        def first_token(_norm: nn.Module, inputs: tuple[Tensor]) -> Tensor:
            return inputs[0].narrow(tokens, 0, 1)

        def first_token_of_all(_norm: nn.Module, inputs: tuple[Tensor]) -> Tensor:
            return inputs[0][:, :1]  # the transformer gives its output back batch first

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

    def _grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        (y, x), (patch_y, patch_x) = image_size, self.visual.patch_size
        return y // patch_y, x // patch_x


class OpenClipResNet(Tower):
    """``visual`` is a ``ModifiedResNet``: four stages, then attention pooling."""

    STRIDE = 32  # pixels a cell of layer4

    def __init__(self, clip: nn.Module) -> None:
        super().__init__(clip)
        self.path, self.visual = _inside_visual(clip, ModifiedResNet)
        self.layers = [f"{self.path}.layer{i}" for i in (1, 2, 3, 4)]
        self.default_layer = self.layers[-1]
        self.blocks = [block for name in self.layers for block in clip.get_submodule(name).children()]

    @classmethod
    def fits(cls, clip: nn.Module) -> bool:
        """Whether ``clip.visual`` is open_clip's ``ModifiedResNet``, or a wrapper of it."""
        return _inside_visual(clip, ModifiedResNet)[1] is not None

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        size = self.visual.image_size
        return (size, size) if isinstance(size, int) else (size[0], size[1])

    def to_grid(self, features: Float[Tensor, "..."], image_size: tuple[int, int]) -> Float[Tensor, "b c h w"]:
        """A stage's output is a grid already."""
        if features.ndim != 4:
            raise TowerError(
                f"expected [batch, channels, height, width] from the layer, got {tuple(features.shape)}; "
                f"choose one of {', '.join(self.layers)}."
            )
        return features

    def position_embeddings(self, image_size: tuple[int, int]) -> dict[str, Tensor]:
        """The positions of the attention pool, bicubically interpolated to another grid."""
        if image_size == self.input_size:
            return {}
        old, new = ((y // self.STRIDE, x // self.STRIDE) for y, x in (self.input_size, image_size))
        positions = self.visual.attnpool.positional_embedding.detach()
        resized = _resize_positions(positions[1:], old, new)
        return {f"{self.path}.attnpool.positional_embedding": torch.cat([positions[:1], resized])}

    def scaled_size(self, scale: float) -> tuple[int, int]:
        """Whole cells of the last stage."""
        return _whole_cells(self.input_size, scale, (self.STRIDE, self.STRIDE))


def _inside_visual(clip: nn.Module, kind: type[nn.Module]) -> tuple[str, Any]:
    """Path and module of the tower below ``clip.visual``, which may be compiled or wrapped by PEFT; else ``None``."""
    found = ((name, part) for name, part in clip.named_modules() if isinstance(part, kind))
    return next((pair for pair in found if f"{pair[0]}.".startswith("visual.")), ("", None))


def _whole_cells(size: tuple[int, int], scale: float, cell: tuple[int, int]) -> tuple[int, int]:
    height, width = (round(side * scale / step) * step for side, step in zip(size, cell, strict=True))
    if min(height, width) < 1:
        raise ConfigError(f"at scale {scale} an image of {size[0]}x{size[1]} is smaller than one cell of the grid.")
    return height, width


def _resize_positions(
    positions: Float[Tensor, "t d"], old: tuple[int, int], new: tuple[int, int]
) -> Float[Tensor, "u d"]:
    grid = positions.T.float().unflatten(1, old)[None]
    resized = F.interpolate(grid, size=new, mode="bicubic", antialias=True, align_corners=False)
    return resized[0].flatten(1).T.to(positions.dtype)
