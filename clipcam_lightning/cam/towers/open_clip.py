"""Towers of open_clip: ``VisionTransformer`` with all of its poolings and blocks, and ``ModifiedResNet``."""

from typing import Any

from jaxtyping import Float
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn

from clipcam_lightning.cam.towers.openai import OpenAiResNet, OpenAiViT
from clipcam_lightning.cam.towers.shared import as_pair
from clipcam_lightning.cam.towers.tower import CLASS_TOKEN_RECIPE, POOLED_PATCHES_RECIPE


class OpenClipViT(OpenAiViT):
    """A CLIP whose ``visual`` is a ``VisionTransformer``: one CLS token, then the patches row by row."""

    def __init__(self, clip: nn.Module) -> None:
        super().__init__(clip)
        visual = self.visual
        self.batch_dim = 0 if visual.transformer.batch_first else 1
        if visual.attn_pool is not None:
            self.pooling, self.pool = "attention", visual.attn_pool
        elif visual.pool_type != "tok":
            self.pooling = "mean"
        if self.pooling != "cls":  # then the embedding reads all tokens of the last block's output
            self.recipe = POOLED_PATCHES_RECIPE
            self.layers = [name.removesuffix(".ln_1") for name in self.layers]
            # But if the next layer is a norm, which is scale-invariant, the gradient is orthogonal to the tokens and
            # HiResCAM is 0. The norm's own output does not have this problem.
            if self.pooling == "attention":
                self.layers.append(f"{self.path}.attn_pool.ln_k")
            elif not visual.final_ln_after_pool:
                self.layers.append(f"{self.path}.ln_post")
            self.default_layer = self.layers[-1]
        if self.pooling != "cls" or not all(_is_affine(block) for block in self.blocks):
            self.final_norm = None
            if self.pooling == "cls":
                self.recipe = CLASS_TOKEN_RECIPE

    @staticmethod
    def is_visual(part: Any) -> bool:
        """Check whether ``part`` is open_clip's ViT, without the second attention pool that is unfinished there.

        A block that another module wraps, such as an adapter, hides its parts.
        """
        return (
            isinstance(part, VisionTransformer)
            and getattr(part, "attn_pool_contrastive", None) is None
            and all(hasattr(block, "attn") and hasattr(block, "ln_1") for block in part.transformer.resblocks)
        )

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return as_pair(self.visual.image_size)

    def embed_tokens(self, tokens: Float[Tensor, "b t d"]) -> Float[Tensor, "b t e"]:
        """Apply the attention pool with each token as its only key, if there is one, then final norm and projection."""
        if self.pool is not None:
            return self.pool_tokens(tokens.flatten(0, 1)[:, None]).view(*tokens.shape[:2], -1)
        return super().embed_tokens(tokens)

    def pool_tokens(self, tokens: Float[Tensor, "b t d"]) -> Float[Tensor, "b e"]:
        """Apply the attention pool, the first of whose queries makes the embedding, then final norm and projection."""
        assert self.pool is not None  # the tower pools by attention
        return super().embed_tokens(self.pool(tokens)[:, :1])[:, 0]

    def project(self, block: int, heads: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        """Apply the output projection, and where a block has them, factors of the heads, norms and a layer scale."""
        owner, attention = self.blocks[block], self.attentions[block]
        factors = getattr(attention, "head_scale", None)
        if factors is not None:
            heads = (heads.unflatten(-1, (attention.num_heads, -1)) * factors[..., 0, :]).flatten(-2)
        projected = super().project(block, _get_optional(attention, "ln_inner")(heads))
        scaled: Tensor = _get_optional(owner, "ls_1")(_get_optional(owner, "ln_attn")(projected))
        return scaled

    def _uses_only_cls(self) -> bool:
        return (
            self.pooling == "cls" and not self.visual.output_tokens and type(self.blocks[-1]) is ResidualAttentionBlock
        )


class OpenClipResNet(OpenAiResNet):
    """A CLIP whose ``visual`` is open_clip's ``ModifiedResNet``."""

    @staticmethod
    def is_visual(part: Any) -> bool:
        """Check whether ``part`` is open_clip's ResNet."""
        return isinstance(part, ModifiedResNet)

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return as_pair(self.visual.image_size)


def _is_affine(block: nn.Module) -> bool:
    """Check whether ``block`` adds an affine function of its heads to the tokens."""
    norms = (_get_optional(block.attn, "ln_inner"), _get_optional(block, "ln_attn"))
    return all(isinstance(norm, nn.Identity) for norm in norms)


def _get_optional(owner: Any, name: str) -> nn.Module:
    """Return a part that only some blocks have, or the identity."""
    return getattr(owner, name, nn.Identity())
