"""Towers of forks that add tokens to the patches, wrap blocks or replace attention modules."""

from typing import Any

import pytest
import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

import tests.support.zoo.open_clip
from clipcam_lightning.cam.capture import AttentionCapture
from clipcam_lightning.cam.explain import explain
from clipcam_lightning.cam.finding import find_clip
from clipcam_lightning.cam.methods import METHODS
from clipcam_lightning.cam.towers.traced import TracedTower
from clipcam_lightning.errors import ConfigError, TowerError

ADDED = 4  # prompt tokens


class PromptedViT(VisionTransformer):
    """A ViT with learned prompts among its tokens; the place of the prompts does not change the embedding."""

    place: str

    def forward(self, images: Tensor) -> Tensor:
        patches = self.conv1(images).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(images), 1, -1)
        first, patches = (torch.cat([first, patches], dim=1) + self.positional_embedding).split_with_sizes(
            [1, patches.shape[1]], dim=1
        )
        prompts = self.prompts.expand(len(images), -1, -1)
        if self.place == "of the image":
            prompts = prompts + patches.mean(dim=1, keepdim=True)
        half = patches.shape[1] // 2
        parts = {
            "before": [prompts, patches],
            "after": [patches, prompts],
            "between": [patches[:, :half], prompts, patches[:, half:]],
            "of the image": [prompts, patches],
        }
        tokens = self.transformer(self.ln_pre(torch.cat([first, *parts[self.place]], dim=1)))
        return self.ln_post(tokens[:, 0]) @ self.proj


def add_prompts(place: str) -> Any:
    torch.manual_seed(0)
    model: Any = tests.support.zoo.open_clip.MODELS["cls"]()
    model.visual.__class__ = PromptedViT
    model.visual.place = place
    model.visual.prompts = nn.Parameter(torch.randn(1, ADDED, model.visual.class_embedding.shape[0]))
    return model.eval()


def draw_inputs(model: Any) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, *find_clip(model).tower.input_size, generator=generator)
    return images, torch.randn(2, 16, generator=generator)


def list_attention_methods(model: Any) -> list[str]:
    tower = find_clip(model).tower
    return [
        name
        for name, method in METHODS.items()
        if issubclass(method.reads, AttentionCapture) and not method.missing(tower)
    ]


def test_maps_do_not_depend_on_whether_added_tokens_come_before_or_after_the_patches():
    before, after = add_prompts("before"), add_prompts("after")
    images, texts = draw_inputs(before)
    assert_close(before.encode_image(images), after.encode_image(images))
    methods = list_attention_methods(before)
    assert {"decomposition", "gae", "legrad", "rollout", "maskclip", "gem"} <= {*methods}
    for method in methods:
        expected, maps = (explain(model, images, texts, method=method).maps for model in (before, after))
        assert_close(maps, expected, atol=1e-5, rtol=1e-4, msg=f"{method} differs")


@pytest.mark.parametrize("place", ["before", "after"])
def test_the_map_of_an_altered_patch_changes_where_the_patch_is(place):
    model = add_prompts(place)
    images, texts = draw_inputs(model)
    altered = images.clone()
    side = model.visual.patch_size[0]
    altered[:, :, side : 2 * side, 2 * side : 3 * side] *= -1
    maps, changed = (explain(model, each, texts).maps for each in (images, altered))
    hottest = (maps - changed).abs().flatten(2).argmax(-1)
    assert (hottest == maps.shape[-1] + 2).all()


@pytest.mark.parametrize("place", ["between", "of the image"])
def test_tokens_whose_place_cannot_be_known_are_refused(place):
    model = add_prompts(place)
    images, texts = draw_inputs(model)
    with pytest.raises(TowerError, match=r"expected 1 \+ 8 tokens, got 13, and the patches cannot be found"):
        explain(model, images, texts, method="decomposition")


def test_a_method_that_reads_a_layer_refuses_added_tokens_and_names_methods_that_do_not():
    model = add_prompts("after")
    images, texts = draw_inputs(model)
    with pytest.raises(TowerError, match=r"got \(2, 13, 32\).*a method that reads attention, such as rollout"):
        explain(model, images, texts, method="gradcam")


class Adapter(nn.Module):
    """A block with an adapter behind it, which does not pass on the names of the block's parts."""

    def __init__(self, block: nn.Module, width: int) -> None:
        super().__init__()
        self.block, self.added = block, nn.Linear(width, width)

    def forward(self, tokens: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        tokens = self.block(tokens, attn_mask=attn_mask)
        return tokens + self.added(tokens)


def test_a_tower_whose_blocks_are_wrapped_is_traced():
    model: Any = tests.support.zoo.open_clip.MODELS["cls"]()
    width, blocks = model.visual.class_embedding.shape[0], model.visual.transformer.resblocks
    for i, block in enumerate(blocks):
        blocks[i] = Adapter(block, width)
    assert isinstance(find_clip(model).tower, TracedTower)
    images, texts = draw_inputs(model)
    assert explain(model, images, texts).maps.isfinite().all()


class OwnAttention(nn.Module):
    """Attention with projections of its own names, as for LoRA."""

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.heads = attention.num_heads
        weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
        self.projections = nn.ModuleList(nn.Linear(attention.embed_dim, attention.embed_dim) for _ in range(3))
        for projection, weight, bias in zip(self.projections, weights, biases, strict=True):
            projection.load_state_dict({"weight": weight, "bias": bias})
        self.proj = attention.out_proj

    def forward(self, query: Tensor, key: Tensor, value: Tensor, **_options: object) -> tuple[Tensor, None]:
        parts = (
            projection(each).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projection, each in zip(self.projections, (query, key, value), strict=True)
        )
        return self.proj(F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)), None


def test_a_tower_whose_attention_is_replaced_gives_the_maps_of_the_original():
    model: Any = tests.support.zoo.open_clip.MODELS["cls"]()
    images, texts = draw_inputs(model)
    assert explain(model, images, texts).method == "decomposition"
    expected = {name: explain(model, images, texts, method=name).maps for name in ("hirescam", "rollout")}
    for block in model.visual.transformer.resblocks:
        block.attn = OwnAttention(block.attn)
    for name, maps in expected.items():
        assert_close(explain(model, images, texts, method=name).maps, maps, atol=1e-5, rtol=1e-4)
    assert explain(model, images, texts).method == "hirescam"
    with pytest.raises(ConfigError, match="decomposition"):
        explain(model, images, texts, method="decomposition")
