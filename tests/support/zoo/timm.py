"""Small CLIPs with image towers of timm; pooling and projection as in open_clip's own configurations."""

from collections.abc import Callable
from functools import partial
from unittest.mock import patch

import open_clip
import timm
import torch
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from timm.layers import HybridEmbed
from timm.models.vision_transformer_hybrid import ConvStem
from timm.models.vitamin import VitCfg, VitConvCfg
from torch import nn

WIDTH = 16  # of the embedding
TEXT = CLIPTextCfg(context_length=8, vocab_size=16, width=32, heads=2, layers=1)
SIZE = (64, 96)


def clip(
    name: str, pool: str = "", proj: str | None = "linear", size: tuple[int, int] = SIZE, **small: object
) -> open_clip.CustomTextCLIP:
    """Build open_clip's model with a tower of timm, passing ``small`` to timm, which open_clip does not support."""
    vision = CLIPVisionCfg(timm_model_name=name, timm_pool=pool, timm_proj=proj, image_size=size)
    with patch.object(timm, "create_model", partial(timm.create_model, **small)):
        return _randomize(open_clip.CustomTextCLIP(embed_dim=WIDTH, vision_cfg=vision, text_cfg=TEXT))


def _randomize(model: open_clip.CustomTextCLIP) -> open_clip.CustomTextCLIP:
    """Draw every parameter: some start at 0 in timm, so errors in biases or whole blocks would not show."""
    with torch.no_grad():
        for parameter in model.visual.parameters():
            if parameter.ndim == 1:
                parameter += 0.2 * torch.randn_like(parameter)
            else:
                nn.init.normal_(parameter, std=(parameter.numel() / len(parameter)) ** -0.5)
    return model.eval()


def vit(name: str, pool: str = "", proj: str | None = "linear", **small: object) -> open_clip.CustomTextCLIP:
    """Build a ViT with two blocks and a grid of 4 x 6."""
    small = {"img_size": SIZE, "embed_dim": 32, "depth": 2, "num_heads": 2, **small}
    return clip(name, pool, proj, **small)


def siglip(**small: object) -> open_clip.CustomTextCLIP:
    """SigLIP and SigLIP 2: no prefix, attention pooling, and no projection, so the width is that of the embedding."""
    return vit("vit_base_patch16_siglip_224", "map", "none", **{"embed_dim": WIDTH, **small})


def plain(**small: object) -> open_clip.CustomTextCLIP:
    """MobileCLIP2-L: a class token, and the classifier as the projection."""
    return vit("vit_large_patch14_clip_224", "token", None, **{"patch_size": 16, **small})


def eva02(**small: object) -> open_clip.CustomTextCLIP:
    """EVA-02: a class token, rotary positions, a norm inside the attention."""
    return vit("eva02_base_patch16_clip_224", "token", None, **small)


def pe_core(**small: object) -> open_clip.CustomTextCLIP:
    """PE-Core: attention pooling over the class token and the patches, rotary positions."""
    return vit("vit_pe_core_tiny_patch16_384", "map", None, **{"attn_pool_num_heads": 2, **small})


def vitamin(**small: object) -> open_clip.CustomTextCLIP:
    """ViTamin: convolutions, then a ViT whose patches are averaged before the final norm."""
    stem = VitCfg(embed_dim=(8, 16, 32), depths=(1, 1, 1), stem_width=8, conv_cfg=VitConvCfg(norm_layer="layernorm2d"))
    return vit("vitamin_small_224", embed_cfg=stem, **small)


def mobileclip_b(**small: object) -> open_clip.CustomTextCLIP:
    """MobileCLIP-B: convolutions, then a ViT with a class token without a position."""
    stem = ConvStem(channels=(8, 8, 32), stride=(4, 2, 2), kernel_size=(4, 2, 2), padding=0, act_layer=nn.GELU)
    embed = partial(HybridEmbed, backbone=stem, proj=False)
    return vit("vit_base_mci_224", "token", None, embed_layer=embed, **small)


def swin() -> open_clip.CustomTextCLIP:
    """Swin: channels last, one input size."""
    return clip(
        "swin_base_patch4_window7_224", img_size=SIZE, embed_dim=8, depths=(1, 2, 2), num_heads=(1, 2, 2), window_size=2
    )


def fastvit() -> open_clip.CustomTextCLIP:
    """MobileCLIP-S: the last stage has attention."""
    return clip("fastvit_mci0", "avg", None, layers=(1, 1, 1, 1), embed_dims=(8, 16, 32, 64))


VITS: dict[str, Callable[[], nn.Module]] = {
    "siglip": siglip,
    "plain": plain,
    "average": partial(vit, "vit_medium_patch16_gap_256"),
    "relative positions": partial(vit, "vit_relpos_medium_patch16_cls_224"),
    "eva": partial(vit, "eva_giant_patch14_224", "token", None, patch_size=16, init_values=0.5),
    "eva02": eva02,
    "eva02 post-norm": partial(vit, "eva02_enormous_patch14_clip_224", "token", None, patch_size=16),
    "pe-core": pe_core,
    "vitamin": vitamin,
    "mobileclip-b": mobileclip_b,
}
STAGES: dict[str, Callable[[], nn.Module]] = {
    "convnext": partial(clip, "convnext_base", depths=(1, 1, 1, 1), dims=(8, 16, 32, 64)),
    "fastvit": fastvit,
    "swin": swin,
    "resnet": partial(clip, "resnet18", "avg", layers=(1, 1, 1, 1), channels=(8, 16, 32, 64)),
}
MODELS: dict[str, Callable[[], nn.Module]] = {**VITS, **STAGES}
