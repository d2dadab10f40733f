"""Towers in the layout of the original ``clip`` package, compared with open_clip with the same weights."""

import open_clip
import pytest
import torch
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from clipcam_lightning.cam.capture import ScoreCapture
from clipcam_lightning.cam.explain import explain
from clipcam_lightning.cam.finding import find_clip
from clipcam_lightning.cam.methods import METHODS
from clipcam_lightning.cam.towers import find_tower
from clipcam_lightning.cam.towers.openai import OpenAiResNet, OpenAiViT
from clipcam_lightning.cam.towers.tower import HEAD
from clipcam_lightning.cam.towers.traced import TracedTower
from tests.support.tolerances import SCORE, assert_equal_up_to_rounding
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


def build_twin(model: nn.Module, name: str) -> open_clip.CLIP:
    """Build open_clip's model of the same architecture and load the weights, whose names are the same."""
    twin = open_clip.CLIP(WIDTH, vision_cfg=VISION[name], text_cfg=TEXT, quick_gelu=True)
    twin.load_state_dict(model.state_dict())
    return twin.eval()


def images_for(model: nn.Module, count: int = 2) -> Tensor:
    return torch.randn(count, 3, *find_tower(model).input_size)


def prompts_for(model: nn.Module, count: int = 3) -> Tensor:
    with torch.no_grad():
        return model.encode_text(torch.randint(16, (count, 8)))


def test_the_tower_is_recognised_by_its_parts(name: str) -> None:
    tower = find_tower(MODELS[name]())

    assert type(tower) is (OpenAiResNet if "resnet" in name else OpenAiViT)
    assert tower.input_size == {
        "openai vit": (24, 24), "openai vit, not square": (16, 32), "openai resnet": (64, 64)
    }[name]  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_maps_equal_those_of_open_clip_with_the_same_weights(name: str, method: str) -> None:
    model = MODELS[name]()
    twin = build_twin(model, name)
    if METHODS[method].missing(find_tower(model)):
        assert METHODS[method].missing(find_tower(twin))
        return
    images, texts = images_for(model), prompts_for(model)

    ours, theirs = (explain(each, images, texts, method=method) for each in (model, twin))

    assert_close(ours.similarity, theirs.similarity)
    if method == "ablationcam":  # divides small differences of scores by a score
        assert_close(ours.maps, theirs.maps, atol=1e-6, rtol=1e-2)
    else:
        absolute = SCORE if METHODS[method].reads is ScoreCapture else 0.0
        assert_equal_up_to_rounding(ours.maps, theirs.maps, absolute=absolute)


def test_maps_of_the_default_layer_equal_those_of_the_complete_graph(name: str) -> None:
    """The gradient is taken through the complete trainable model, without any shortcut."""
    model = MODELS[name]()
    images, texts, outputs = images_for(model), F.normalize(prompts_for(model), dim=-1), []
    layer = model.visual.layer4 if "resnet" in name else model.visual.transformer.resblocks[-1].ln_1
    handle = layer.register_forward_hook(lambda _layer, _inputs, output: outputs.append(output))
    cosines = F.normalize(model.encode_image(images), dim=-1) @ texts.T
    handle.remove()

    maps = explain(model, images, texts, method="hirescam").maps

    for p in range(len(texts)):
        (gradient,) = torch.autograd.grad(cosines[:, p].sum(), outputs, retain_graph=True)
        product = gradient * outputs[0]
        if "resnet" not in name:  # [tokens, batch, width]
            product = product[1:].permute(1, 2, 0).unflatten(2, maps.shape[-2:])
        assert_equal_up_to_rounding(maps[:, p], product.sum(dim=1).relu())


def test_only_the_last_block_computes_a_single_token(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = vit(), []
    clip = find_clip(model)
    assert HEAD in clip.tower.offers  # which is verified here by a forward
    for block in model.visual.transformer.resblocks:
        plain = block.mlp.c_fc.forward
        monkeypatch.setattr(block.mlp.c_fc, "forward", lambda x, plain=plain: (rows.append(len(x)), plain(x))[1])

    explain(clip, images_for(model), torch.randn(1, WIDTH))

    assert rows == [10, 10, 1]


class DenseTower(VisionTransformer):
    """A fork that normalises and projects all tokens and leaves the selection to the caller."""

    def forward(self, x: Tensor) -> Tensor:
        outputs: list[Tensor] = []
        handle = self.transformer.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
        super().forward(x)
        handle.remove()
        return self.ln_post(outputs[0].permute(1, 0, 2)) @ self.proj


class DenseClip(CLIP):
    def encode_image(self, image: Tensor) -> Tensor:
        return super().encode_image(image)[:, 0]


def test_a_fork_that_projects_all_tokens_gives_the_same_maps() -> None:
    model = vit()
    fork = DenseClip(DenseTower(24, patch_size=8, width=32, layers=3, heads=2)).eval()
    fork.load_state_dict(model.state_dict())
    images, texts = images_for(model), torch.randn(2, WIDTH)

    for method in ("gradcam", "gae", "maskclip"):
        maps, expected = (explain(each, images, texts, method=method).maps for each in (fork, model))
        assert_equal_up_to_rounding(maps, expected)


class AdaptedBlock(ResidualAttentionBlock):
    """A fork's block with an additional layer that mixes tokens after the attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.mix = nn.Linear(10, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        mixed: Tensor = self.mix(x.permute(1, 2, 0)).permute(2, 0, 1)
        return x + mixed


def test_no_work_is_skipped_in_a_block_with_additional_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    model = vit()
    model.visual.transformer.resblocks[2] = AdaptedBlock(32, 2).eval()
    images, texts = images_for(model), torch.randn(2, WIDTH)

    maps = explain(model, images, texts).maps

    monkeypatch.delattr(OpenAiViT, "skipping_unused")  # the base class skips nothing
    assert_close(maps, explain(model, images, texts).maps)


def test_another_size_is_embedded_as_with_interpolated_positions(name: str) -> None:
    """test_open_clip.py compares the interpolation with open_clip's own ``resize_pos_embed``."""
    model = MODELS[name]()
    twin = build_twin(model, name)
    height, width = find_tower(model).scaled_size(find_tower(model).input_size, 2.0)
    images = torch.randn(2, 3, height, width)

    with torch.no_grad():
        assert_close(find_tower(model).encode(images), find_tower(twin).encode(images))


@pytest.mark.parametrize("method", METHODS)
def test_half_precision_as_in_clip_load_gives_nearly_the_same_maps(method: str) -> None:
    model = vit()
    images, texts = images_for(model), torch.randn(3, WIDTH)
    expected = explain(model, images, texts, method=method).maps

    maps = explain(convert_weights(model), images, texts, method=method).maps

    assert maps.dtype == torch.float32
    # Ten times the measured difference; two methods divide by small sums or differences.
    tolerance = 0.2 if method in ("xgradcam", "ablationcam") else 0.1
    assert (maps - expected).abs().max() < tolerance * expected.abs().max()


def test_texts_are_tokenized_by_the_tokenizer_of_clip_if_the_vocabulary_is_that_of_clip() -> None:
    tower = VisionTransformer(24, patch_size=8, width=32, layers=1, heads=2)
    model = CLIP(tower, context_length=77, vocab_size=49408).eval()
    images, prompts = images_for(model), ["a fox", "a watermark"]

    explanation = explain(model, images, prompts)

    with torch.no_grad():
        texts = model.encode_text(open_clip.SimpleTokenizer(context_length=77)(prompts))
        expected = F.normalize(model.encode_image(images), dim=-1) @ F.normalize(texts, dim=-1).T
    assert_close(explanation.similarity, expected)


@pytest.mark.parametrize("build", [vit, resnet])
def test_a_model_that_lacks_a_part_fits_no_tower_and_is_traced(build: type) -> None:
    model = build()
    expected = find_clip(model).tower
    del model.visual.input_resolution

    tower = find_clip(model).tower
    assert type(tower) is TracedTower
    assert tower.default_layer == expected.default_layer
