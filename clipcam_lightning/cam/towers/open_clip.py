"""Towers of open_clip: ``VisionTransformer`` in all its poolings and blocks, and ``ModifiedResNet``."""

from typing import Any

from jaxtyping import Float
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn

from clipcam_lightning.cam.towers.openai import OpenAiResNet, OpenAiViT
from clipcam_lightning.cam.towers.shared import pair
from clipcam_lightning.cam.towers.tower import CLASSIC, OF_OTHER_CLASS_TOKENS


class OpenClipViT(OpenAiViT):
    """``visual`` is a ``VisionTransformer``: one CLS token, then the patches row by row."""

    def __init__(self, clip: nn.Module) -> None:
        super().__init__(clip)
        visual = self.visual
        self.batch_dim = 0 if visual.transformer.batch_first else 1
        if visual.attn_pool is not None:
            self.pooling, self.pool = "attention", visual.attn_pool
        elif visual.pool_type != "tok":
            self.pooling = "mean"
        if self.pooling != "cls":  # then all tokens of the last block's output count
            self.recipe = CLASSIC
            self.layers = [name.removesuffix(".ln_1") for name in self.layers]
            # But where a norm comes next their length is nothing to it: a patch's gradient is orthogonal to the
            # patch, and HiResCAM zero. After the norm it is not.
            if self.pooling == "attention":
                self.layers.append(f"{self.path}.attn_pool.ln_k")
            elif not visual.final_ln_after_pool:
                self.layers.append(f"{self.path}.ln_post")
            self.default_layer = self.layers[-1]
        if self.pooling != "cls" or not all(_is_affine(block) for block in self.blocks):
            self.final_norm = None
            if self.pooling == "cls":
                self.recipe = OF_OTHER_CLASS_TOKENS

    @staticmethod
    def is_visual(part: Any) -> bool:
        """Whether ``part`` is open_clip's own ViT; one with two attention pools, which it left unfinished, is not."""
        return isinstance(part, VisionTransformer) and getattr(part, "attn_pool_contrastive", None) is None

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return pair(self.visual.image_size)

    def embed_tokens(self, tokens: Float[Tensor, "b t d"]) -> Float[Tensor, "b t e"]:
        """Final norm and projection; where an attention pools, that attention over a single key first."""
        if self.pool is not None:  # the first of its queries is the embedding's
            tokens = self.pool(tokens.flatten(0, 1)[:, None])[:, 0].unflatten(0, tokens.shape[:2])
        return super().embed_tokens(tokens)

    def project(self, block: int, heads: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        """Output projection, and what a block may have around it: factors of the heads, norms, a layer scale."""
        owner, attention = self.blocks[block], self.attentions[block]
        factors = getattr(attention, "head_scale", None)
        if factors is not None:
            heads = (heads.unflatten(-1, (attention.num_heads, -1)) * factors[..., 0, :]).flatten(-2)
        projected = super().project(block, _optional(attention, "ln_inner")(heads))
        scaled: Tensor = _optional(owner, "ls_1")(_optional(owner, "ln_attn")(projected))
        return scaled

    def _only_cls_is_used(self) -> bool:
        return (
            self.pooling == "cls" and not self.visual.output_tokens and type(self.blocks[-1]) is ResidualAttentionBlock
        )


class OpenClipResNet(OpenAiResNet):
    """``visual`` is open_clip's ``ModifiedResNet``."""

    @staticmethod
    def is_visual(part: Any) -> bool:
        """Whether ``part`` is open_clip's own ResNet."""
        return isinstance(part, ModifiedResNet)

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return pair(self.visual.image_size)


def _is_affine(block: nn.Module) -> bool:
    """Whether ``block`` adds an affine function of its heads to the tokens."""
    norms = (_optional(block.attn, "ln_inner"), _optional(block, "ln_attn"))
    return all(isinstance(norm, nn.Identity) for norm in norms)


def _optional(owner: Any, name: str) -> nn.Module:
    """A part that only some blocks have; nothing is done where it is missing."""
    return getattr(owner, name, nn.Identity())
