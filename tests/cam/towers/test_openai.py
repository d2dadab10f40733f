"""Towers in the layout of the original ``clip`` package, held against open_clip with the same weights."""

import open_clip
import pytest
import torch
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from clipcam_lightning.cam.explain import explain
from clipcam_lightning.cam.methods import METHODS
from clipcam_lightning.cam.model import find_clip
from clipcam_lightning.cam.towers import tower_of
from clipcam_lightning.cam.towers.openai import OpenAiResNet, OpenAiViT
from clipcam_lightning.errors import TowerError
from tests.support.zoo.openai import (
    CLIP,
    MODELS,
    WIDTH,
    ResidualAttentionBlock,
    VisionTransformer,
    convert_weights,
    resnet,
    vit,
)

TEXT = CLIPTextCfg(context_length=8, vocab_size=16, width=32, heads=2, layers=1)
VISION = {
    "openai vit": CLIPVisionCfg(layers=3, width=32, head_width=16, patch_size=8, image_size=24),
    "openai vit, not square": CLIPVisionCfg(layers=3, width=32, head_width=16, patch_size=8, image_size=(16, 32)),
    "openai resnet": CLIPVisionCfg(layers=(1, 1, 1, 1), width=8, head_width=32, image_size=64),
}


@pytest.fixture(params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def twin_of(model: nn.Module, name: str) -> open_clip.CLIP:
    """open_clip's model of the same architecture, with the weights of ``model``: the names are the same."""
    twin = open_clip.CLIP(WIDTH, vision_cfg=VISION[name], text_cfg=TEXT, quick_gelu=True)
    twin.load_state_dict(model.state_dict())
    return twin.eval()


def images_for(model: nn.Module, count: int = 2) -> Tensor:
    return torch.randn(count, 3, *tower_of(model).input_size)


def prompts_for(model: nn.Module, count: int = 3) -> Tensor:
    with torch.no_grad():
        return model.encode_text(torch.randint(16, (count, 8)))


def test_the_layout_is_recognised_by_its_parts(name: str) -> None:
    tower = tower_of(MODELS[name]())

    assert type(tower) is (OpenAiResNet if "resnet" in name else OpenAiViT)
    assert tower.input_size == {
        "openai vit": (24, 24), "openai vit, not square": (16, 32), "openai resnet": (64, 64)
    }[name]  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_maps_are_those_of_open_clip_with_the_same_weights(name: str, method: str) -> None:
    model = MODELS[name]()
    twin = twin_of(model, name)
    if METHODS[method].missing(tower_of(model)):
        assert METHODS[method].missing(tower_of(twin))
        return
    images, texts = images_for(model), prompts_for(model)

    ours, theirs = (explain(each, images, texts, method=method) for each in (model, twin))

    assert_close(ours.similarity, theirs.similarity)
    # Ablation-CAM divides small differences of scores by a score.
    assert_close(ours.maps, theirs.maps, atol=1e-6, rtol=1e-2 if method == "ablationcam" else 1e-4)


def test_maps_of_the_default_layer_are_those_of_the_full_graph(name: str) -> None:
    """Every activation has its gradient through the whole trainable model, with no shortcut of any kind."""
    model = MODELS[name]()
    images, texts, seen = images_for(model), F.normalize(prompts_for(model), dim=-1), []
    layer = model.visual.layer4 if "resnet" in name else model.visual.transformer.resblocks[-1].ln_1
    handle = layer.register_forward_hook(lambda _layer, _inputs, output: seen.append(output))
    cosines = F.normalize(model.encode_image(images), dim=-1) @ texts.T
    handle.remove()

    found = explain(model, images, texts, method="hirescam").maps

    for p in range(len(texts)):
        (gradient,) = torch.autograd.grad(cosines[:, p].sum(), seen, retain_graph=True)
        product = gradient * seen[0]
        if "resnet" not in name:  # [tokens, batch, width]
            product = product[1:].permute(1, 2, 0).unflatten(2, found.shape[-2:])
        assert_close(found[:, p], product.sum(dim=1).relu(), atol=1e-7, rtol=1e-4)


def test_the_last_block_computes_one_row_and_every_other_block_all(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = vit(), []
    for block in model.visual.transformer.resblocks:
        plain = block.mlp.c_fc.forward
        monkeypatch.setattr(block.mlp.c_fc, "forward", lambda x, plain=plain: (rows.append(len(x)), plain(x))[1])

    explain(model, images_for(model), torch.randn(1, WIDTH))

    assert rows == [10, 10, 1]


class DenseTower(VisionTransformer):
    """A fork that normalises and projects all tokens, and lets the caller take what it needs."""

    def forward(self, x: Tensor) -> Tensor:
        kept: list[Tensor] = []
        handle = self.transformer.register_forward_hook(lambda _module, _inputs, output: kept.append(output))
        super().forward(x)
        handle.remove()
        return self.ln_post(kept[0].permute(1, 0, 2)) @ self.proj


class DenseClip(CLIP):
    def encode_image(self, image: Tensor) -> Tensor:
        return super().encode_image(image)[:, 0]


def test_a_fork_that_projects_all_tokens_gives_the_same_maps() -> None:
    model = vit()
    fork = DenseClip(DenseTower(24, patch_size=8, width=32, layers=3, heads=2)).eval()
    fork.load_state_dict(model.state_dict())
    images, texts = images_for(model), torch.randn(2, WIDTH)

    for method in ("gradcam", "gae", "maskclip"):
        ours, theirs = (explain(each, images, texts, method=method).maps for each in (fork, model))
        assert_close(ours, theirs, atol=1e-7, rtol=1e-4)


class AdaptedBlock(ResidualAttentionBlock):
    """A fork's block with a part that mixes tokens after the attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.mix = nn.Linear(10, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        mixed: Tensor = self.mix(x.permute(1, 2, 0)).permute(2, 0, 1)
        return x + mixed


def test_nothing_is_left_out_of_a_block_with_parts_of_a_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    model = vit()
    model.visual.transformer.resblocks[2] = AdaptedBlock(32, 2).eval()
    images, texts = images_for(model), torch.randn(2, WIDTH)

    found = explain(model, images, texts).maps

    monkeypatch.delattr(OpenAiViT, "skipping_unused")  # the base class leaves nothing out
    assert_close(found, explain(model, images, texts).maps)


def test_another_size_is_embedded_as_with_interpolated_positions(name: str) -> None:
    """open_clip's tower of the same weights interpolates as its own ``resize_pos_embed`` does: see its tests."""
    model = MODELS[name]()
    twin = twin_of(model, name)
    height, width = tower_of(model).scaled_size(tower_of(model).input_size, 2.0)
    images = torch.randn(2, 3, height, width)

    with torch.no_grad():
        assert_close(tower_of(model).encode(images), tower_of(twin).encode(images))


@pytest.mark.parametrize("method", METHODS)
def test_a_model_in_half_precision_as_clip_loads_it_gives_nearly_the_same_maps(method: str) -> None:
    model = vit()
    images, texts = images_for(model), torch.randn(3, WIDTH)
    expected = explain(model, images, texts, method=method).maps

    found = explain(convert_weights(model), images, texts, method=method).maps

    assert found.dtype == torch.float32
    assert (found - expected).abs().max() < 0.05 * expected.abs().max()


def test_texts_go_through_clip_s_own_tokenizer_where_the_vocabulary_is_clip_s() -> None:
    tower = VisionTransformer(24, patch_size=8, width=32, layers=1, heads=2)
    model = CLIP(tower, context_length=77, vocab_size=49408).eval()
    images, prompts = images_for(model), ["a fox", "a watermark"]

    found = explain(model, images, prompts)

    with torch.no_grad():
        texts = model.encode_text(open_clip.SimpleTokenizer(context_length=77)(prompts))
        expected = F.normalize(model.encode_image(images), dim=-1) @ F.normalize(texts, dim=-1).T
    assert_close(found.similarity, expected)


@pytest.mark.parametrize("build", [vit, resnet])
def test_a_missing_part_is_another_layout(build: type) -> None:
    model = build()
    del model.visual.input_resolution

    with pytest.raises(TowerError, match="no tower fits CLIP"):
        find_clip(model)
