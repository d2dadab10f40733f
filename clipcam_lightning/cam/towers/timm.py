"""Towers of timm, in open_clip's ``TimmModel`` or alone: ViTs of many kinds, and networks of stages."""

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

from clipcam_lightning.cam.towers.shared import as_pair, find_in_visual, round_to_cells, tokens_to_grid
from clipcam_lightning.cam.towers.tower import (
    ADDITIVE_CLASS_TOKEN_RECIPE,
    BLOCKS,
    CLASS_TOKEN_RECIPE,
    POOLED_PATCHES_RECIPE,
    AttentionTower,
    Tower,
)
from clipcam_lightning.errors import ConfigError, TowerError

VITS = (VisionTransformer, Eva, VisionTransformerRelPos)
ATTENTIONS = (Attention, AttentionRope, EvaAttention, RelPosAttention)
POST_NORM_BLOCKS = (ResPostBlock, ResPostRelPosBlock, EvaBlockPostNorm)
POOLINGS: dict[str, Literal["cls", "mean", "attention"]] = {"token": "cls", "avg": "mean", "map": "attention"}


class TimmViT(AttentionTower):
    """A CLIP whose ``visual`` is or holds a ViT: SigLIP, EVA, PE-Core, ViTamin, MobileCLIP-B and plain ones.

    A ViT with an unknown kind of attention or pooling offers only its grid.
    """

    def __init__(self, clip: nn.Module) -> None:
        super().__init__(clip)
        self.visual: Any = find_in_visual(clip, _is_timm)[1]
        self.has_known_head = self.visual is not None
        path, trunk = find_in_visual(clip, _is_vit)
        self.trunk: Any = trunk
        self.blocks: Sequence[Any] = list(trunk.blocks)
        self.attentions: Sequence[Any] = [block.attn for block in self.blocks]
        self.pooling = POOLINGS.get(trunk.global_pool, "mean")
        self.pool = getattr(trunk, "attn_pool", None)
        self.prefix = trunk.num_prefix_tokens
        self.post_norm = isinstance(self.blocks[-1], POST_NORM_BLOCKS)
        self.layers = [f"{path}.blocks.{i}" for i in range(len(self.blocks))]
        self.block_inputs = [f"{path}.patch_embed", *self.layers[:-1]]
        last = -1
        if self.pooling != "cls":
            # The embedding reads all patches of the last block's output. But if the next layer is a norm, which is
            # scale-invariant, the gradient is orthogonal to the tokens and HiResCAM is 0. The norm's own output does
            # not have this problem.
            if not isinstance(trunk.norm, nn.Identity):
                self.layers.append(f"{path}.norm")
        elif not self.post_norm:
            # The embedding reads only the class token of the last block's output, so every patch's gradient there is
            # exactly zero. The output of norm1 is where the patches of the last block still count.
            self.layers = [f"{name}.norm1" for name in self.layers]
        else:
            # With norms after attention and MLP, that place is the output of the block before.
            last = max(-2, -len(self.layers))
        self.default_layer = self.layers[last]
        self.final_norm = self._affine_final_norm()
        if self.final_norm is not None:
            self.recipe = ADDITIVE_CLASS_TOKEN_RECIPE
        elif self.pooling == "cls" and last == -1:
            self.recipe = CLASS_TOKEN_RECIPE
        elif self.pooling != "cls" and BLOCKS in self.offers:
            self.recipe = POOLED_PATCHES_RECIPE

    @classmethod
    def fits(cls, clip: nn.Module) -> bool:
        """Check whether ``clip.visual`` is such a ViT, or wraps one."""
        return find_in_visual(clip, _is_vit)[1] is not None

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return _find_input_size(self.visual, self.trunk)

    @property
    def input_channels(self) -> int:
        """Number of channels that the first convolution takes."""
        return _count_input_channels(self.trunk)

    @property
    def offers(self) -> frozenset[str]:
        """What every tower with attention offers, if attention and pooling are of known kinds."""
        # A subclass may pool in its own way, and `project` does not apply the gates of gated attention.
        is_known = (
            type(self.trunk) in VITS
            and self.trunk.global_pool in POOLINGS
            and all(isinstance(each, ATTENTIONS) and getattr(each, "gate", None) is None for each in self.attentions)
        )
        return super().offers if is_known else frozenset()

    def grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Compute the grid of patches, or of the cells of convolutions that come first."""
        height, width = self.trunk.patch_embed.dynamic_feat_size(image_size)
        return height, width

    def to_grid(self, features: Float[Tensor, "..."], image_size: tuple[int, int]) -> Float[Tensor, "b c h w"]:
        """Drop class and register tokens and lay out the patch tokens row by row."""
        return tokens_to_grid(self, features, image_size)

    @contextmanager
    def native(self) -> Iterator[None]:
        """Use torch's attention function, even if an environment variable of timm selects its plain implementation."""
        with ExitStack() as stack:
            for module in self.trunk.modules():
                if "fused_attn" in vars(module):
                    stack.enter_context(_assigned(module, fused_attn=True))
            yield

    def encode(self, images: Float[Tensor, "b 3 y x"]) -> Float[Tensor, "b e"]:
        """Embed images; for another size, timm resamples the positions."""
        size = (images.shape[-2], images.shape[-1])
        if size == tuple(self.trunk.patch_embed.img_size):
            return super().encode(images)
        with self._accepting(size):
            return super().encode(images)

    @contextmanager
    def _accepting(self, size: tuple[int, int]) -> Iterator[None]:
        """Let the trunk take images of ``size``."""
        with ExitStack() as stack:
            stack.enter_context(_assigned(self.trunk, dynamic_img_size=True))
            # The values that timm sets in a model built for any size.
            any_size = {"strict_img_size": False, "flatten": False, "output_fmt": Format.NHWC}
            stack.enter_context(_assigned(self.trunk.patch_embed, **any_size))
            if getattr(self.trunk, "rope", None) is not None:
                rope = deepcopy(self.trunk.rope)  # a resize overwrites its cached embedding
                rope.update_feat_shape(list(self.grid(size)))
                stack.enter_context(_assigned(self.trunk, rope=rope))
            yield

    def scaled_size(self, size: tuple[int, int], scale: float) -> tuple[int, int]:
        """Round to whole patches."""
        rope = getattr(self.trunk, "rope", None)
        if not hasattr(self.trunk, "dynamic_img_size") or not (rope is None or hasattr(rope, "update_feat_shape")):
            raise _one_size_only(self.trunk, self.input_size)
        return round_to_cells(size, scale, self.trunk.patch_embed.feat_ratio(as_scalar=False))

    def embed_tokens(self, tokens: Float[Tensor, "b t d"]) -> Float[Tensor, "b t e"]:
        """Apply norms and projections, and between them the attention pool, if any, over each token as its only key."""
        pooled = self.trunk.norm(tokens)
        if self.pool is not None:
            pooled = self.pool(pooled.flatten(0, 1)[:, None]).unflatten(0, tokens.shape[:2])
        return self.head(self.trunk.fc_norm(pooled))

    def pool_tokens(self, tokens: Float[Tensor, "b t d"]) -> Float[Tensor, "b e"]:
        """Apply norms and projections, and between them the attention pool, without the prefix if the pool ignores it.

        The pool of a timm model is called by ``forward_head``.
        """
        pooled: Tensor = self.trunk.forward_head(self.trunk.norm(tokens), pre_logits=True)
        return self.head(pooled[:, None])[:, 0]

    def project(self, block: int, heads: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        """Apply the output projection, and where a block has them, norms and a layer scale."""
        owner, attention = self.blocks[block], self.attentions[block]
        added: Tensor = attention.proj(getattr(attention, "norm", nn.Identity())(heads))
        added = owner.norm1(added) if self.post_norm else added
        added = getattr(owner, "ls1", nn.Identity())(added)
        scale = getattr(owner, "gamma_1", None)  # EVA's layer scale is a parameter
        return added if scale is None else scale * added

    def head(self, normalized: Float[Tensor, "b t d"]) -> Float[Tensor, "b t e"]:
        """Apply timm's classifier and open_clip's projection, one of which is the identity."""
        projected: Tensor = self.trunk.head(normalized)
        return projected if self.visual is None else self.visual.head(projected)

    def _affine_final_norm(self) -> nn.LayerNorm | None:
        """Return the norm of a pooled class token if everything around it is affine, else ``None``."""
        norms = [norm for norm in (self.trunk.norm, self.trunk.fc_norm) if not isinstance(norm, nn.Identity)]
        is_affine = (
            self.pooling == "cls"
            and not self.post_norm
            and all(isinstance(getattr(each, "norm", nn.Identity()), nn.Identity) for each in self.attentions)
            and self.visual is not None
            and not any(isinstance(module, Mlp) for module in self.visual.head.modules())
        )
        return norms[0] if is_affine and len(norms) == 1 and isinstance(norms[0], nn.LayerNorm) else None


class TimmStages(Tower):
    """A CLIP whose ``visual`` is or holds a sequence of stages with coarser and coarser grids.

    ConvNeXt, FastViT (MobileCLIP-S), Swin and ResNet are such networks.
    """

    def __init__(self, clip: nn.Module) -> None:
        super().__init__(clip)
        self.visual: Any = find_in_visual(clip, _is_timm)[1]
        path, trunk = find_in_visual(clip, _ends_in_grid)
        self.trunk: Any = trunk
        self.channel_dim = -1 if getattr(trunk, "output_fmt", "NCHW") == "NHWC" else 1
        self.layers = [f"{path}.{stage['module']}" for stage in trunk.feature_info]
        stages = [clip.get_submodule(name) for name in self.layers]
        # In other networks the stages may run in another order, or with something between them.
        if any(isinstance(part, nn.Sequential) and list(part) == stages for part in trunk.children()):
            self.blocks = stages
        if isinstance(getattr(trunk, "norm", None), nn.LayerNorm):  # as in a ViT, HiResCAM is 0 before it
            self.layers.append(f"{path}.norm")
        self.default_layer = self.layers[-1]

    @classmethod
    def fits(cls, clip: nn.Module) -> bool:
        """Check whether ``clip.visual`` is such a network, or wraps one."""
        return find_in_visual(clip, _ends_in_grid)[1] is not None

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return _find_input_size(self.visual, self.trunk)

    @property
    def input_channels(self) -> int:
        """Number of channels that the first convolution takes."""
        return _count_input_channels(self.trunk)

    def to_grid(self, features: Float[Tensor, "..."], image_size: tuple[int, int]) -> Float[Tensor, "b c h w"]:
        """Return a stage's output, which is a grid already, with the channels moved to the front."""
        if features.ndim == 4:
            grid = features.movedim(self.channel_dim, 1)
            cell = [pixels / cells for pixels, cells in zip(image_size, grid.shape[-2:], strict=True)]
            # Inside a block the channels may be elsewhere than in a stage's output; the cells are then not square.
            if max(cell) < 2 * min(cell):
                return grid
        order = "height, width, channels" if self.channel_dim == -1 else "channels, height, width"
        raise TowerError(
            f"expected [batch, {order}] from the layer, its cells about square, got {tuple(features.shape)}; "
            f"choose one of {', '.join(self.layers)}."
        )

    def scaled_size(self, size: tuple[int, int], scale: float) -> tuple[int, int]:
        """Round to whole cells of the last stage."""
        if self.trunk.default_cfg.get("fixed_input_size"):
            raise _one_size_only(self.trunk, self.input_size)
        stride = self.trunk.feature_info[-1]["reduction"]
        return round_to_cells(size, scale, (stride, stride))


def _find_input_size(visual: Any, trunk: Any) -> tuple[int, int]:
    """Get the size that open_clip built a model for, or timm."""
    if visual is not None:
        return as_pair(visual.image_size)
    built_for = getattr(getattr(trunk, "patch_embed", None), "img_size", None)
    return as_pair(built_for or trunk.default_cfg["input_size"][1:])


def _is_timm(part: Any) -> bool:
    return isinstance(part, TimmModel)


def _is_vit(part: Any) -> bool:
    return isinstance(part, VITS) and all(hasattr(block, "attn") for block in part.blocks)


def _ends_in_grid(part: Any) -> bool:
    # By vars, because a wrapper only forwards these attributes. timm's description of a model has the size of the
    # pooled grid, and none for models that pool tokens.
    config = vars(part).get("default_cfg") or {}
    stages = vars(part).get("feature_info") or ()
    names = dict(part.named_modules()).keys() if stages else set()
    return bool(config.get("pool_size")) and bool(stages) and all(stage["module"] in names for stage in stages)


def _count_input_channels(trunk: nn.Module) -> int:
    return next((part.in_channels for part in trunk.modules() if isinstance(part, nn.Conv2d)), 3)


def _one_size_only(trunk: nn.Module, size: tuple[int, int]) -> ConfigError:
    return ConfigError(
        f"{type(trunk).__name__} takes images of {size[0]}x{size[1]} only: resize them and leave scales at (1.0,), "
        "or build the model for another size."
    )


@contextmanager
def _assigned(module: nn.Module, **values: Any) -> Iterator[None]:
    """Assign other values to attributes of ``module``."""
    own = {name: getattr(module, name) for name in values}
    try:
        for name, value in values.items():
            setattr(module, name, value)
        yield
    finally:
        for name, value in own.items():
            setattr(module, name, value)
