"""Relevance in timm's ViTs, with gated MLPs, rotary positions and norms of queries and keys, compared with oracles."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from timm.layers import RmsNorm
from torch import Tensor, nn

from clipcam_lightning.cam.capture import Capture
from clipcam_lightning.cam.explain import explain
from clipcam_lightning.cam.methods import Method
from clipcam_lightning.cam.rules import AttnLrpRules
from clipcam_lightning.cam.towers.timm import TimmViT
from tests.oracles.relevance import sum_centred
from tests.oracles.relevance_timm import RelevanceTimmViT
from tests.support.tolerances import assert_equal_up_to_rounding
from tests.support.zoo.timm import VITS, eva02, pe_core, plain, siglip, vit

Build = Callable[[], nn.Module]

MODELS: dict[str, Build] = {
    **VITS,  # SwiGLU, GEGLU, rotary and relative positions, norms after the branches, layer scales, all poolings
    "packed SwiGLU": partial(eva02, scale_mlp=False),
    "QuickGELU": partial(plain, act_layer="quick_gelu"),
    "norms of queries and keys": partial(siglip, qk_norm=True),
    "rotary positions, norms of queries and keys": partial(pe_core, qk_norm=True),
    "RMS norms, registers, grouped queries, rotated halves": partial(
        eva02,
        **{"attn_type": "rope", "rope_type": "dinov3", "rope_rotate_half": True, "qk_norm": True},
        **{"norm_layer": partial(RmsNorm, eps=1e-5), "num_reg_tokens": 2, "qkv_fused": False, "num_kv_heads": 1},
    ),
}
FORMS = ("eva02", "packed SwiGLU", "rotary positions, norms of queries and keys", "vitamin")


@pytest.mark.parametrize("block", [0, 2])
@pytest.mark.parametrize("name", MODELS)
def test_attnlrp_equals_a_propagation_of_relevance_from_layer_to_layer(name: str, block: int) -> None:
    model, image, text = build(name), torch.randn(3, 64, 96), torch.randn(16)
    reference = RelevanceTimmViT(model.visual)

    explanation = explain(model, image[None], text[None], method="attnlrp", layers=block)

    cosine, _ = reference.score(reference.patches_of(image.double(), block), text, block)
    assert_equal_up_to_rounding(explanation.similarity[0, 0], cosine.float())
    assert_equal_up_to_rounding(explanation.maps[0, 0], propagate(reference, image, text, block))


@pytest.mark.parametrize("name", MODELS)
def test_input_x_gradient_is_the_slope_of_the_score_with_constant_divisors(name: str) -> None:
    """Each cell of the map is the slope along the centred patch, here by central differences."""
    model, image, text = build(name), torch.randn(3, 64, 96), torch.randn(16)
    reference, block, step = RelevanceTimmViT(model.visual), 1, 1e-4

    maps = explain(model, image[None], text[None], method="input_x_gradient", layers=block).maps[0, 0]

    patches, others = reference.patches_of(image.double(), block)
    reference.score((patches, others), text, block)
    reference.held = reference.measured
    slopes = []
    for cell, way in enumerate(patches - patches.mean(dim=0)):
        change = torch.zeros_like(patches)
        change[cell] = step * way
        up, down = (reference.score((patches + sign * change, others), text, block)[0] for sign in (1, -1))
        slopes.append((up - down) / (2 * step))
    assert_equal_up_to_rounding(maps, torch.stack(slopes).float().view(maps.shape))


@pytest.mark.parametrize("small", [{"scale_mlp": False}, {"scale_mlp": True}], ids=["packed SwiGLU", "SwiGLU"])
def test_gated_mlps_conserve_relevance(small: dict[str, bool]) -> None:
    """Without biases, positions and attention, nothing but the patches has relevance, so it sums to the score."""
    model = vit("eva02_base_patch16_clip_224", "avg", depth=3, **small).double()
    with torch.no_grad():
        for name, parameter in model.visual.named_parameters():
            if name.endswith((".bias", "attn.proj.weight", "pos_embed")):
                parameter.zero_()
    relevance = Method(sum_relevance, rules=AttnLrpRules, block_inputs=True)

    explanation = explain(model, torch.randn(1, 3, 64, 96), torch.randn(2, 16), method=relevance)

    assert_equal_up_to_rounding(explanation.maps.sum(dim=(2, 3)), explanation.similarity)
    assert explanation.similarity.abs().min() > 1e-3


def sum_relevance(capture: Capture) -> Tensor:
    return torch.einsum("bpchw,bchw->bphw", capture.gradients, capture.activations)


class PlainAttention(TimmViT):
    """Leaves timm's own matrix products in place of torch's attention function."""

    @contextmanager
    def native(self) -> Iterator[None]:
        yield


@pytest.mark.parametrize("name", FORMS)
def test_attention_of_matrix_products_has_the_relevance_of_torchs_own(name: str) -> None:
    model, image, text = build(name), torch.randn(3, 64, 96), torch.randn(16)
    for block in model.visual.trunk.blocks:
        block.attn.fused_attn = False

    maps = explain(model, image[None], text[None], method="attnlrp", layers=1, towers=[PlainAttention]).maps[0, 0]

    assert_equal_up_to_rounding(maps, propagate(RelevanceTimmViT(model.visual), image, text, 1))


@pytest.mark.parametrize("name", FORMS)
def test_a_compiled_tower_has_the_relevance_of_its_weights(name: str) -> None:
    model, image, text = build(name), torch.randn(3, 64, 96), torch.randn(16)
    expected = propagate(RelevanceTimmViT(model.visual), image, text, 1)
    model.visual = torch.compile(model.visual, backend="eager")
    with torch.no_grad():
        model.visual(image[None].double())  # compiled before any hook is registered

    maps = explain(model, image[None], text[None], method="attnlrp", layers=1).maps[0, 0]

    assert_equal_up_to_rounding(maps, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", FORMS)
def test_half_precision_has_the_relevance_of_its_rounded_weights(name: str, dtype: torch.dtype) -> None:
    model, image, text = build(name).to(dtype), torch.randn(3, 64, 96).to(dtype).float(), torch.randn(16)

    maps = explain(model, image[None], text[None], method="attnlrp", layers=1).maps[0, 0]

    reference = RelevanceTimmViT(model.double().visual)
    assert_equal_up_to_rounding(maps, propagate(reference, image, text, 1), 20 * torch.finfo(dtype).eps)


def build(name: str, **small: Any) -> Any:
    torch.manual_seed(0)
    return MODELS[name](depth=3, **small).double()


def propagate(reference: RelevanceTimmViT, image: Tensor, text: Tensor, block: int) -> Tensor:
    return sum_centred(*reference.at_block(image.double(), text, block), reference.grid).float()
