"""Small models of open_clip: every pooling and every kind of block of its ``VisionTransformer``, and the ResNet."""

from collections.abc import Callable

import open_clip
from open_clip.coca_model import MultimodalCfg
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from torch import nn

WIDTH = 16  # of the embedding
TEXT = {"context_length": 8, "vocab_size": 16, "width": 32, "heads": 2, "layers": 1}


def vit(**vision: object) -> open_clip.CLIP:
    cfg = {"layers": 3, "width": 32, "head_width": 16, "patch_size": 8, "image_size": (16, 32), **vision}
    return open_clip.CLIP(WIDTH, vision_cfg=CLIPVisionCfg(**cfg), text_cfg=CLIPTextCfg(**TEXT)).eval()


def resnet(image_size: int = 64) -> open_clip.CLIP:
    cfg = CLIPVisionCfg(layers=(1, 1, 1, 1), width=8, head_width=32, image_size=image_size)
    model = open_clip.CLIP(WIDTH, vision_cfg=cfg, text_cfg=CLIPTextCfg(**TEXT)).eval()
    for stage in (model.visual.layer1, model.visual.layer2, model.visual.layer3, model.visual.layer4):
        nn.init.ones_(stage[0].bn3.weight)  # initialised to 0, with which the blocks would add nothing
    return model


def coca() -> open_clip.CoCa:
    vision = CLIPVisionCfg(
        layers=2, width=32, head_width=16, patch_size=8, image_size=(16, 32), attentional_pool=True,
        attn_pooler_queries=3, attn_pooler_heads=2, output_tokens=True,
    )  # fmt: skip
    text = CLIPTextCfg(**TEXT, embed_cls=True, output_tokens=True)
    return open_clip.CoCa(WIDTH, multimodal_cfg=MultimodalCfg(**TEXT), text_cfg=text, vision_cfg=vision).eval()


def custom_text() -> open_clip.CustomTextCLIP:
    cfg = CLIPVisionCfg(layers=2, width=32, head_width=16, patch_size=8, image_size=24)
    return open_clip.CustomTextCLIP(WIDTH, vision_cfg=cfg, text_cfg=CLIPTextCfg(**TEXT)).eval()


MODELS: dict[str, Callable[[], nn.Module]] = {
    "cls": vit,
    "average": lambda: vit(pool_type="avg", final_ln_after_pool=True),
    "attention pool": lambda: vit(attentional_pool=True, attn_pooler_queries=1, attn_pooler_heads=2, pool_type="tok"),
    "norm after pool": lambda: vit(final_ln_after_pool=True),
    "layer scale": lambda: vit(ls_init_value=0.1),
    "own blocks": lambda: vit(scale_attn=True),
    "own attention": lambda: vit(scale_attn_inner=True, scale_heads=True, qk_norm=True),
    "resnet": resnet,
    "coca": coca,
    "custom text": custom_text,
}
