"""Methods that compute the embedding from the tokens are offered only where that is what the model does."""

from collections.abc import Callable
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import tests.support.zoo.huggingface
import tests.support.zoo.open_clip
from clipcam_lightning.cam import verification
from clipcam_lightning.cam.explain import explain
from clipcam_lightning.cam.finding import find_clip
from clipcam_lightning.cam.towers import find_tower
from clipcam_lightning.cam.towers.open_clip import OpenClipViT
from clipcam_lightning.cam.towers.tower import HEAD, RESIDUAL, AttentionTower
from clipcam_lightning.errors import ConfigError
from tests.support.zoo import huggingface, openai, timm

LIBRARIES = (tests.support.zoo.open_clip, openai, timm, huggingface)
MODELS = {
    f"{each.__name__.rpartition('.')[2]}: {name}": make for each in LIBRARIES for name, make in each.MODELS.items()
}
ADAPTED = tests.support.zoo.open_clip.WIDTH


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_models_of_the_libraries_embed_as_their_towers_describe(make: Callable[[], nn.Module]) -> None:
    tower = find_tower(make())
    offers = tower.offers
    verification.verify_head(tower)
    assert tower.offers == offers


def test_models_in_half_precision_embed_as_their_towers_describe() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        assert RESIDUAL in find_clip(clip().to(dtype)).tower.offers


def clip() -> Any:
    return tests.support.zoo.open_clip.vit()


class Adapted(open_clip.CLIP):
    """A CLIP with a layer after its image tower."""

    def encode_image(self, image: Tensor, normalize: bool = False) -> Tensor:
        return torch.tanh(super().encode_image(image))


class AdaptedAttention(nn.MultiheadAttention):
    """Attention with a layer after its own projection."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output, weights = super().forward(*args, **kwargs)
        return torch.tanh(output), weights


def wrap(model: Any) -> None:
    model.visual = nn.Sequential(model.visual, nn.Linear(ADAPTED, ADAPTED))


def subclass(model: Any) -> None:
    model.__class__ = Adapted


def replace_method(model: Any) -> None:
    encode = model.encode_image
    model.encode_image = lambda images: encode(images).tanh()


def hook(model: Any) -> None:
    model.visual.register_forward_hook(lambda _module, _inputs, output: output.tanh())


def hook_attention(model: Any) -> None:
    attention = model.visual.transformer.resblocks[0].attn
    attention.register_forward_hook(lambda _module, _inputs, output: (output[0].tanh(), None))


def subclass_attention(model: Any) -> None:
    model.visual.transformer.resblocks[-1].attn.__class__ = AdaptedAttention


def append_to_norm(model: Any) -> None:
    model.visual.ln_post = nn.Sequential(model.visual.ln_post, nn.Linear(32, 32))


def replace_norm(model: Any) -> None:
    model.visual.ln_post = nn.RMSNorm(32)


CHANGES = [wrap, subclass, replace_method, hook, hook_attention, subclass_attention, append_to_norm, replace_norm]


@pytest.mark.parametrize("change", CHANGES)
def test_a_model_that_was_changed_gets_a_map_of_what_it_computes(change: Callable[[Any], None]) -> None:
    model, images = clip(), torch.rand(2, 3, 16, 32)
    change(model)
    prompts = torch.randn(2, ADAPTED)

    explanation = explain(model, images, prompts)

    assert explanation.method == "hirescam"
    assert_close(explanation.maps, explain(model, images, prompts, method="hirescam", layers=(-2, -1)).maps)
    with pytest.raises(ConfigError, match="decomposition does not fit OpenClipViT"):
        explain(model, images, prompts, method="decomposition")


@pytest.mark.parametrize(
    "head",
    [
        nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 16)),
        nn.Sequential(nn.Linear(32, 16), nn.LayerNorm(16)),
    ],
)
def test_a_head_that_is_not_affine_is_not_decomposed(head: nn.Module) -> None:
    model: Any = huggingface.clip()
    width = model.visual_projection.in_features
    model.visual_projection = nn.Linear(width, 16)
    assert RESIDUAL in find_clip(model).tower.offers
    model.visual_projection = nn.Sequential(nn.Linear(width, 32), head)
    assert RESIDUAL not in find_clip(model).tower.offers


def test_a_model_is_embedded_once_and_again_after_a_change(monkeypatch: pytest.MonkeyPatch) -> None:
    verified: list[AttentionTower] = []
    embeds_as_described = verification._embeds_as_described

    def record(tower: AttentionTower) -> bool:
        verified.append(tower)
        return embeds_as_described(tower)

    monkeypatch.setattr(verification, "_embeds_as_described", record)
    model = clip()
    for _ in range(2):
        assert HEAD in find_clip(model).tower.offers
    assert len(verified) == 1
    hook(model)
    assert HEAD not in find_clip(model).tower.offers
    assert len(verified) == 2


def test_large_activations_do_not_hide_what_a_block_adds() -> None:
    model = clip()
    model.visual.positional_embedding.data[:, 3] = 1e4
    assert RESIDUAL in find_clip(model).tower.offers


def test_a_model_of_nan_keeps_its_method() -> None:
    model = clip()
    model.visual.conv1.weight.data.fill_(torch.nan)
    assert RESIDUAL in find_clip(model).tower.offers


class ZeroAdapter(nn.Module):
    """Adds what its input has learned to add, which is nothing before the training."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(ADAPTED, ADAPTED)
        nn.init.zeros_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)

    def forward(self, features: Tensor) -> Tensor:
        return features + self.layer(features)


class AdaptedByNothing(open_clip.CLIP):
    """A CLIP with an adapter after its image tower."""

    def encode_image(self, image: Tensor, normalize: bool = False) -> Tensor:
        features: Tensor = self.adapter(super().encode_image(image))
        return features


def subclass_with_zero_adapter(model: Any) -> None:
    model.__class__ = AdaptedByNothing
    model.adapter = ZeroAdapter()


def wrap_with_zero_adapter(model: Any) -> None:
    model.visual = nn.Sequential(model.visual, ZeroAdapter())


def hook_with_zero_adapter(model: Any) -> None:
    model.adapter = ZeroAdapter()
    model.visual.register_forward_hook(lambda _module, _inputs, output: model.adapter(output))


@pytest.mark.parametrize("change", [subclass_with_zero_adapter, wrap_with_zero_adapter, hook_with_zero_adapter])
def test_an_adapter_that_has_no_effect_yet_is_seen(change: Callable[[Any], None]) -> None:
    model = clip()
    change(model)
    assert HEAD not in find_clip(model).tower.offers


def test_weights_without_values_are_verified_once_they_are_loaded() -> None:
    weights = clip().state_dict()
    with torch.device("meta"):
        model = clip()
    tower = find_tower(model)
    verification.verify_head(tower)
    assert RESIDUAL in tower.offers
    model.load_state_dict(weights, assign=True)
    hook(model)
    verification.verify_head(tower)
    assert HEAD not in tower.offers


def test_a_tower_of_the_user_is_verified_by_itself() -> None:
    class OwnTower(OpenClipViT):
        final_norm = property(lambda _self: None, lambda _self, _norm: None)  # its head is not affine

        def embed_tokens(self, tokens: Tensor) -> Tensor:
            return super().embed_tokens(tokens).tanh()

    model = clip()
    replace_method(model)
    assert HEAD not in find_clip(model).tower.offers
    assert HEAD in find_clip(model, towers=[OwnTower]).tower.offers


def test_a_function_that_is_replaced_again_is_verified_again() -> None:
    model = clip()
    encode = model.encode_image
    model.encode_image = lambda images: encode(images)
    assert HEAD in find_clip(model).tower.offers
    model.encode_image = lambda images: encode(images).tanh()
    assert HEAD not in find_clip(model).tower.offers


def test_memory_that_runs_out_is_no_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def run_out(_tower: AttentionTower) -> bool:
        raise torch.OutOfMemoryError("none left")

    model = clip()
    with monkeypatch.context() as patched:
        patched.setattr(verification, "_embeds_as_described", run_out)
        assert HEAD in find_clip(model).tower.offers
    hook(model)
    assert HEAD not in find_clip(model).tower.offers


def test_an_adapter_is_verified_again_once_it_is_trained() -> None:
    model = clip()
    wrap_with_zero_adapter(model)
    model.visual[1].requires_grad_(False)
    assert HEAD in find_clip(model).tower.offers, "as long as nothing trains it"
    model.visual[1].requires_grad_(True)
    assert HEAD not in find_clip(model).tower.offers
