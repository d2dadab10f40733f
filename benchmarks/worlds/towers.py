"""Small CLIPs with every kind of image tower, untrained."""

from functools import partial
from typing import Any, NamedTuple
from unittest.mock import patch

import open_clip
import timm
from open_clip.model import CLIPTextCfg, CLIPVisionCfg, set_model_preprocess_cfg
from open_clip.transform import PreprocessCfg
from torch import nn

from benchmarks.worlds.world import World
from clipcam_lightning.shapes_world.models import MEAN, STD

EMBED_DIM, SIZE, PATCH, HEAD = 64, 64, 8, 32


class Tower(NamedTuple):
    """An image tower.

    Attributes:
        kind: how patches become the embedding.
        depth: number of blocks; of a ResNet, of each stage.
        width: of the tokens, or of the first stage.
    """

    kind: str
    depth: int = 3
    width: int = 96


TOWERS = {
    "class token": Tower("class token"),
    "average pool": Tower("average pool"),
    "attention pool": Tower("attention pool"),
    "resnet": Tower("resnet", 1, 12),
    "class token, 8 blocks": Tower("class token", 8),
    "average pool, 8 blocks": Tower("average pool", 8),
    "attention pool, 8 blocks": Tower("attention pool", 8),
}


def build_clip(tower: str, world: World) -> nn.Module:
    """Build an untrained CLIP.

    Args:
        tower: a key of :data:`TOWERS`. The attention pool is that of SigLIP.
        world: whose words the text tower embeds.

    Returns:
        A model of open_clip in train mode.
    """
    kind, depth, width = TOWERS[tower]
    tokenizer = world.tokenizer
    text = CLIPTextCfg(
        context_length=tokenizer.context_length, vocab_size=len(tokenizer.words), width=64, heads=2, layers=2
    )
    size = 160 if kind == "resnet" else SIZE  # the stride of 32 leaves the last stage 5 x 5 cells
    if kind == "attention pool":
        vision = CLIPVisionCfg(
            timm_model_name="vit_base_patch16_siglip_224", timm_pool="map", timm_proj="none", image_size=size
        )
        small = {"img_size": size, "patch_size": PATCH, "embed_dim": width, "depth": depth, "num_heads": width // HEAD}
        with patch.object(timm, "create_model", partial(timm.create_model, **small)):  # open_clip passes no sizes on
            model: Any = open_clip.CustomTextCLIP(embed_dim=width, vision_cfg=vision, text_cfg=text)
    else:
        model = open_clip.CLIP(embed_dim=EMBED_DIM, vision_cfg=_vision(kind, depth, width, size), text_cfg=text)
    cfg = PreprocessCfg(size=(size, size), mean=MEAN, std=STD, interpolation="bilinear", resize_mode="squash")
    set_model_preprocess_cfg(model, vars(cfg))
    return model


def _vision(kind: str, depth: int, width: int, size: int) -> CLIPVisionCfg:
    if kind == "resnet":
        return CLIPVisionCfg(layers=(depth,) * 4, width=width, head_width=64, image_size=size)
    pooling = {"pool_type": "avg", "final_ln_after_pool": True} if kind == "average pool" else {}
    return CLIPVisionCfg(layers=depth, width=width, head_width=HEAD, patch_size=PATCH, image_size=size, **pooling)
