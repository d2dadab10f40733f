"""Towers of timm, as open_clip's ``TimmModel`` holds them: ViTs of many makes, and whatever ends in a grid."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from typing import Any, Literal

from jaxtyping import Float
from open_clip.timm_model import TimmModel
from timm.layers.attention import Attention, AttentionRope
from timm.layers.format import Format
from timm.layers.mlp import Mlp
from timm.models.eva import Eva, EvaAttention, EvaBlockPostNorm
from timm.models.vision_transformer import ResPostBlock, VisionTransformer
from timm.models.vision_transformer_relpos import RelPosAttention, ResPostRelPosBlock, VisionTransformerRelPos
from torch import Tensor, nn

from clipcam_lightning.cam.towers.shared import inside_visual, pair, tokens_to_grid, whole_cells
from clipcam_lightning.cam.towers.tower import OF_CLASS_TOKEN_SUMS, OF_OTHER_CLASS_TOKENS, AttentionTower, Tower
from clipcam_lightning.errors import ConfigError, TowerError

VITS = (VisionTransformer, Eva, VisionTransformerRelPos)
ATTENTIONS = (Attention, AttentionRope, EvaAttention, RelPosAttention)
POST_NORM_BLOCKS = (ResPostBlock, ResPostRelPosBlock, EvaBlockPostNorm)
POOLINGS: dict[str, Literal["cls", "mean", "attention"]] = {"token": "cls", "avg": "mean", "map": "attention"}


class TimmViT(AttentionTower):
    """``visual.trunk`` is a ViT: SigLIP, EVA, PE-Core, ViTamin, MobileCLIP-B and the plain ones.

    One whose attention or pooling is of another kind offers a grid and nothing more.
    """

    def __init__(self, clip: nn.Module) -> None:
        super().__init__(clip)
        self.visual: Any = inside_visual(clip, _is_timm)[1]
        path, trunk = inside_visual(clip, _is_vit)
        self.trunk: Any = trunk
        self.blocks: Sequence[Any] = list(trunk.blocks)
        self.attentions: Sequence[Any] = [block.attn for block in self.blocks]
        self.pooling = POOLINGS.get(trunk.global_pool, "mean")
        self.pool = getattr(trunk, "attn_pool", None)
        self.prefix = trunk.num_prefix_tokens
        self.post_norm = isinstance(self.blocks[-1], POST_NORM_BLOCKS)
        self.layers = [f"{path}.blocks.{i}" for i in range(len(self.blocks))]
        last = -1
        if self.pooling != "cls":
            # All patches of the last block's output are read, but where a norm comes next their length is nothing to
            # it: a patch's gradient is orthogonal to the patch, and HiResCAM zero. After the norm it is not.
            if not isinstance(trunk.norm, nn.Identity):
                self.layers.append(f"{path}.norm")
        elif not self.post_norm:
            # Only the class token of the last block's output is read, so every patch's gradient there is exactly
            # zero. The output of norm1 is where the patches of the last block still count.
            self.layers = [f"{name}.norm1" for name in self.layers]
        else:
            # With the norms behind attention and MLP, that place is the output of the block before.
            last = max(-2, -len(self.layers))
        self.default_layer = self.layers[last]
        self.final_norm = self._affine_final_norm()
        if self.final_norm is not None:
            self.recipe = OF_CLASS_TOKEN_SUMS
        elif self.pooling == "cls" and last == -1:
            self.recipe = OF_OTHER_CLASS_TOKENS

    @classmethod
    def fits(cls, clip: nn.Module) -> bool:
        """Whether ``clip.visual`` is a ``TimmModel`` with a ViT, or a wrapper of it."""
        return all(inside_visual(clip, wanted)[1] is not None for wanted in (_is_timm, _is_vit))

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return pair(self.visual.image_size)

    @property
    def offers(self) -> frozenset[str]:
        """As every tower with attention, where the attention and the pooling are understood."""
        # A subclass may pool in its own way, a gate is a factor of the heads that `project` cannot know.
        understood = (
            type(self.trunk) in VITS
            and self.trunk.global_pool in POOLINGS
            and all(isinstance(each, ATTENTIONS) and getattr(each, "gate", None) is None for each in self.attentions)
        )
        return super().offers if understood else frozenset()

    def grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Patches, or cells of the convolutions that come first."""
        height, width = self.trunk.patch_embed.dynamic_feat_size(image_size)
        return height, width

    def to_grid(self, features: Float[Tensor, "..."], image_size: tuple[int, int]) -> Float[Tensor, "b c h w"]:
        """Drop class and register tokens and lay the patch tokens out row by row."""
        return tokens_to_grid(self, features, image_size)

    @contextmanager
    def native(self) -> Iterator[None]:
        """Torch's attention in place of the same written out, which an environment variable of timm asks for."""
        with ExitStack() as stack:
            for module in self.trunk.modules():
                if "fused_attn" in vars(module):
                    stack.enter_context(_assigned(module, fused_attn=True))
            yield

    def encode(self, images: Float[Tensor, "b 3 y x"]) -> Float[Tensor, "b e"]:
        """Image embeddings; at another size with positions as timm resamples them for any size."""
        size = (images.shape[-2], images.shape[-1])
        if size == tuple(self.trunk.patch_embed.img_size):
            return super().encode(images)
        with self._taking(size):
            return super().encode(images)

    @contextmanager
    def _taking(self, size: tuple[int, int]) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(_assigned(self.trunk, dynamic_img_size=True))
            # What timm sets itself in a model that was built for any size.
            free = {"strict_img_size": False, "flatten": False, "output_fmt": Format.NHWC}
            stack.enter_context(_assigned(self.trunk.patch_embed, **free))
            if getattr(self.trunk, "rope", None) is not None:
                rope = deepcopy(self.trunk.rope)  # it caches the embedding of its grid and writes to the cache
                rope.update_feat_shape(list(self.grid(size)))
                stack.enter_context(_assigned(self.trunk, rope=rope))
            yield

    def scaled_size(self, size: tuple[int, int], scale: float) -> tuple[int, int]:
        """Whole patches."""
        rope = getattr(self.trunk, "rope", None)
        if not hasattr(self.trunk, "dynamic_img_size") or not (rope is None or hasattr(rope, "update_feat_shape")):
            raise _one_size_only(self.trunk, self.input_size)
        return whole_cells(size, scale, self.trunk.patch_embed.feat_ratio(as_scalar=False))

    def embed_tokens(self, tokens: Float[Tensor, "b t d"]) -> Float[Tensor, "b t e"]:
        """Norms and projections; where an attention pools, that attention over a single key between them."""
        pooled = self.trunk.norm(tokens)
        if self.pool is not None:
            pooled = self.pool(pooled.flatten(0, 1)[:, None]).unflatten(0, tokens.shape[:2])
        return self.head(self.trunk.fc_norm(pooled))

    def project(self, block: int, heads: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        """Output projection, and what a block has around it: norms, a layer scale."""
        owner, attention = self.blocks[block], self.attentions[block]
        added: Tensor = attention.proj(getattr(attention, "norm", nn.Identity())(heads))
        added = owner.norm1(added) if self.post_norm else added
        added = getattr(owner, "ls1", nn.Identity())(added)
        scale = getattr(owner, "gamma_1", None)  # EVA's layer scale is no module
        return added if scale is None else scale * added

    def head(self, normalized: Float[Tensor, "b t d"]) -> Float[Tensor, "b t e"]:
        """The classifier that timm projects with, and open_clip's own projection; one of them is the identity."""
        projected: Tensor = self.visual.head(self.trunk.head(normalized))
        return projected

    def _affine_final_norm(self) -> nn.LayerNorm | None:
        """The norm of a pooled class token, where all that surrounds it is affine."""
        norms = [norm for norm in (self.trunk.norm, self.trunk.fc_norm) if not isinstance(norm, nn.Identity)]
        affine = (
            self.pooling == "cls"
            and not self.post_norm
            and all(isinstance(getattr(each, "norm", nn.Identity()), nn.Identity) for each in self.attentions)
            and not any(isinstance(module, Mlp) for module in self.visual.head.modules())
        )
        return norms[0] if affine and len(norms) == 1 and isinstance(norms[0], nn.LayerNorm) else None


class TimmStages(Tower):
    """``visual.trunk`` is a row of stages that give ever coarser grids: ConvNeXt, FastViT (MobileCLIP-S), Swin."""

    def __init__(self, clip: nn.Module) -> None:
        super().__init__(clip)
        self.visual: Any = inside_visual(clip, _is_timm)[1]
        path, trunk = inside_visual(clip, _ends_in_grid)
        self.trunk: Any = trunk
        self.channel_dim = -1 if getattr(trunk, "output_fmt", "NCHW") == "NHWC" else 1
        self.layers = [f"{path}.{stage['module']}" for stage in trunk.feature_info]
        stages = [clip.get_submodule(name) for name in self.layers]
        # Elsewhere something may come between the stages, or run in another order.
        if any(isinstance(part, nn.Sequential) and list(part) == stages for part in trunk.children()):
            self.blocks = stages
        if isinstance(getattr(trunk, "norm", None), nn.LayerNorm):  # as in a ViT: before it HiResCAM is zero
            self.layers.append(f"{path}.norm")
        self.default_layer = self.layers[-1]

    @classmethod
    def fits(cls, clip: nn.Module) -> bool:
        """Whether ``clip.visual`` is a ``TimmModel`` with a network of stages, or a wrapper of it."""
        return all(inside_visual(clip, wanted)[1] is not None for wanted in (_is_timm, _ends_in_grid))

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return pair(self.visual.image_size)

    def to_grid(self, features: Float[Tensor, "..."], image_size: tuple[int, int]) -> Float[Tensor, "b c h w"]:
        """A stage's output is a grid already; of some the channels come last."""
        if features.ndim == 4:
            grid = features.movedim(self.channel_dim, 1)
            cell = [pixels / cells for pixels, cells in zip(image_size, grid.shape[-2:], strict=True)]
            # Inside a block channels may come last where those of the stages come first; cells are then no squares.
            if max(cell) < 2 * min(cell):
                return grid
        order = "height, width, channels" if self.channel_dim == -1 else "channels, height, width"
        raise TowerError(
            f"expected [batch, {order}] from the layer, its cells about square, got {tuple(features.shape)}; "
            f"choose one of {', '.join(self.layers)}."
        )

    def scaled_size(self, size: tuple[int, int], scale: float) -> tuple[int, int]:
        """Whole cells of the last stage."""
        if self.trunk.default_cfg.get("fixed_input_size"):
            raise _one_size_only(self.trunk, self.input_size)
        stride = self.trunk.feature_info[-1]["reduction"]
        return whole_cells(size, scale, (stride, stride))


def _is_timm(part: Any) -> bool:
    return isinstance(part, TimmModel)


def _is_vit(part: Any) -> bool:
    return isinstance(part, VITS) and all(hasattr(block, "attn") for block in part.blocks)


def _ends_in_grid(part: Any) -> bool:
    # A wrapper hands attributes of what it wraps on, but has none of them itself. timm's own description of a model
    # says how large a grid is pooled; of a sequence of tokens it gives none.
    config = vars(part).get("default_cfg") or {}
    return bool(config.get("pool_size")) and bool(vars(part).get("feature_info"))


def _one_size_only(trunk: nn.Module, size: tuple[int, int]) -> ConfigError:
    return ConfigError(
        f"{type(trunk).__name__} takes images of {size[0]}x{size[1]} only: leave scales at (1.0,), "
        "or build the model for another size."
    )


@contextmanager
def _assigned(module: nn.Module, **values: Any) -> Iterator[None]:
    """Let attributes of ``module`` have other values for a while."""
    own = {name: getattr(module, name) for name in values}
    try:
        for name, value in values.items():
            setattr(module, name, value)
        yield
    finally:
        for name, value in own.items():
            setattr(module, name, value)
