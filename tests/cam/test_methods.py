"""What all methods have in common: which towers they fit, how they are named, and what must not matter to them."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from clipcam_lightning.cam.capture import AttentionCapture, Capture, LayerCapture
from clipcam_lightning.cam.explain import explain
from clipcam_lightning.cam.methods import METHODS, Method, resolve_method
from clipcam_lightning.cam.towers import tower_of
from clipcam_lightning.cam.towers.tower import Recipe
from clipcam_lightning.errors import ConfigError
from tests.oracles.lively import lively
from tests.support.zoo.open_clip import resnet, vit

FITTING_ALL = {
    "gradcam", "gradcam_pp", "xgradcam", "hirescam", "elementwise", "layercam", "finercam", "shapleycam", "eigencam",
    "eigengradcam", "fem", "scorecam", "ablationcam", "occlusion", "cluster_occlusion", "gae", "rollout", "maskclip",
}  # fmt: skip
FITTING: dict[str, tuple[Callable[[], nn.Module], set[str]]] = {
    "class token": (vit, {"legrad", "grad_eclip", "decomposition", "gem"}),
    "mean": (lambda: vit(pool_type="avg"), {"legrad", "gem"}),
    "attention": (lambda: vit(attentional_pool=True, attn_pooler_heads=2), {"legrad", "grad_eclip", "gem"}),
    "norm inside the attention": (lambda: vit(scale_attn_inner=True), {"legrad", "grad_eclip", "gem"}),
    "resnet": (resnet, {"grad_eclip"}),
}


@pytest.mark.parametrize("name", FITTING)
def test_a_method_that_does_not_fit_is_answered_with_those_that_do(name: str) -> None:
    build, more = FITTING[name]
    tower, fitting = tower_of(build()), FITTING_ALL | more
    for method in METHODS:
        if method in fitting:
            assert resolve_method(method, tower).name == method
        else:
            with pytest.raises(ConfigError, match=f"{method} does not fit .* needs") as raised:
                resolve_method(method, tower)
            assert set(str(raised.value).removesuffix(".").split("Fitting: ")[1].split(", ")) == fitting


@pytest.mark.parametrize("method", METHODS)
def test_an_image_ignores_the_rest_of_its_batch(method: str) -> None:
    model, images, texts = lively(vit()), torch.randn(3, 3, 16, 32), torch.randn(4, 16)

    together = explain(model, images, texts, method=method)
    alone = explain(model, images[1:2], texts, method=method)
    in_batches = explain(model, images, texts, method=method, batch_size=2)

    assert_close(alone.maps, together.maps[1:2], atol=1e-6, rtol=1e-4)
    assert_close(in_batches.maps, together.maps, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("method", sorted(METHODS.keys() - {"finercam"}))
def test_a_prompt_ignores_the_others(method: str) -> None:
    model, images, texts = lively(vit()), torch.randn(2, 3, 16, 32), torch.randn(2, 3, 16)

    together = explain(model, images, texts, method=method)
    alone = explain(model, images, texts[:, 1:2], method=method)

    assert_close(alone.maps, together.maps[:, 1:2], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_a_frozen_model_under_no_grad_gives_the_same_maps(method: str) -> None:
    model, images, texts = lively(vit()), torch.randn(2, 3, 16, 32), torch.randn(4, 16)
    expected = explain(model, images, texts, method=method)

    with torch.no_grad():
        found = explain(model.requires_grad_(False), images, texts, method=method)

    assert_close(found.maps, expected.maps, atol=1e-6, rtol=1e-4)
    assert found.maps.shape[:2] == (2, 4)
    assert not found.maps.requires_grad


@pytest.mark.parametrize("build", [vit, resnet], ids=["vit", "resnet"])
def test_the_method_by_default_is_the_towers_own(
    build: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = lively(build())
    tower = tower_of(model)
    images, texts = torch.randn(2, 3, *tower.input_size), torch.randn(3, 16)
    for recipe in (tower.recipe, Recipe("layercam", (0,)), Recipe("fem", (-2, -1))):
        monkeypatch.setattr(type(tower), "recipe", recipe)
        default = explain(model, images, texts)

        chosen = explain(model, images, texts, method=recipe.method, layers=recipe.layers)

        assert default.method == recipe.method
        assert default.layers == chosen.layers
        assert torch.equal(default.maps, chosen.maps)


def test_a_layer_that_is_asked_for_replaces_the_towers_own() -> None:
    model = vit()
    assert explain(model, torch.randn(1, 3, 16, 32), torch.randn(1, 16), layers=0).layers == (
        tower_of(model).layers[0],
    )


def test_a_function_of_ones_own_reads_activations_and_gradients() -> None:
    def mine(capture: Capture) -> Tensor:
        return capture.gradients.square().sum(2) * capture.activations[:, :1]

    model, images, texts = lively(vit()), torch.randn(2, 3, 16, 32), torch.randn(3, 16)

    found = explain(model, images, texts, method=mine)

    assert found.method == "mine"
    assert found.maps.shape == (2, 3, 2, 4)
    assert_close(found.maps, explain(model, images, texts, method=Method(mine)).maps)


def test_a_resolve_method_ones_own_says_what_it_reads_and_needs() -> None:
    def brightest(capture: LayerCapture) -> Tensor:
        return capture.activations.amax(1, keepdim=True)

    def to_class_token(capture: AttentionCapture) -> Tensor:
        return capture.to_map(capture.attentions[-1].weights()[:, :, 0].mean(1, keepdim=True))

    model, images, texts = lively(vit()), torch.randn(2, 3, 16, 32), torch.randn(3, 16)

    maps = explain(model, images, texts, method=Method(brightest, LayerCapture)).maps
    seen = explain(model, images, texts, method=Method(to_class_token, AttentionCapture, blocks=1)).maps

    assert maps.shape == (2, 3, 2, 4)
    assert torch.equal(maps[:, 0], maps[:, 2])
    assert_close(seen[:, 0] / seen[:, 0].sum((1, 2), keepdim=True), _rollout_without_residual(model, images, texts))
    with pytest.raises(ConfigError, match="brightest does not fit OpenClipViT: it needs wings"):
        explain(model, images, texts, method=Method(brightest, LayerCapture, needs=("wings",)))


def _rollout_without_residual(model: nn.Module, images: Tensor, texts: Tensor) -> Tensor:
    """Of one block, the class token's row less its own part is the same up to a factor."""
    maps = explain(model, images, texts, method="rollout", layers=-1).maps[:, 0]
    return maps / maps.sum((1, 2), keepdim=True)


def test_a_function_that_gives_no_maps_is_refused(unchecked: None) -> None:
    def forgetful(capture: Capture) -> Tensor:
        return capture.gradients[:, 0]

    with pytest.raises(ConfigError, match=r"maps \[b, p, h, w\].*forgetful gave \(1, 32, 2, 4\)"):
        explain(vit(), torch.randn(1, 3, 16, 32), torch.randn(1, 16), method=forgetful)


def test_an_unknown_method_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'auto', one of gradcam, gradcam_pp, .*, gem, or a function.*'gradcamm'"):
        resolve_method("gradcamm", tower_of(vit()))


@pytest.mark.parametrize("method", ["gae", "rollout", "legrad", "maskclip"])
def test_a_layer_that_is_no_block_is_refused_by_a_method_that_reads_attention(method: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"{method} reads the attention of whole blocks.*visual.ln_post.*resblocks.0"
    ):
        explain(vit(), torch.randn(1, 3, 16, 32), torch.randn(1, 16), method=method, layers="visual.ln_post")


def test_a_tower_whose_pool_alone_has_attention_has_no_block_to_choose() -> None:
    with pytest.raises(ConfigError, match="only the pooling has attention"):
        explain(resnet(), torch.randn(1, 3, 64, 64), torch.randn(1, 16), method="gae", layers=-1)


def test_every_method_says_what_it_is_where_it_is_from_and_what_it_fits() -> None:
    for name, method in METHODS.items():
        assert name == method.name
        text = method.function.__doc__ or ""
        assert "Source: " in text, name
        assert "Fits " in text, name
