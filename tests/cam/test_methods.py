"""Properties of all methods: which towers they fit, how they are named, and what must not change their maps."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from clipcam_lightning.cam.capture import AttentionCapture, Capture, LayerCapture, ScoreCapture
from clipcam_lightning.cam.explain import explain
from clipcam_lightning.cam.finding import find_clip
from clipcam_lightning.cam.methods import METHODS, Method, resolve_method
from clipcam_lightning.cam.towers import find_tower
from clipcam_lightning.cam.towers.tower import HEAD, Recipe
from clipcam_lightning.errors import ConfigError
from tests.oracles.randomize import randomize_parameters
from tests.support.tolerances import SCORE, assert_equal_up_to_rounding
from tests.support.zoo.open_clip import resnet, vit

FITTING_ALL = {
    "gradcam", "gradcam_pp", "xgradcam", "hirescam", "elementwise", "layercam", "finercam", "shapleycam", "eigencam",
    "eigengradcam", "fem", "scorecam", "ablationcam", "occlusion", "cluster_occlusion", "gae", "rollout", "maskclip",
    "input_x_gradient", "integrated_gradients",
}  # fmt: skip
BLOCK_METHODS = {"legrad", "clip_surgery", "gem", "attnlrp"}
FITTING: dict[str, tuple[Callable[[], nn.Module], set[str]]] = {
    "class token": (vit, {*BLOCK_METHODS, "grad_eclip", "cci", "decomposition"}),
    "mean": (lambda: vit(pool_type="avg"), BLOCK_METHODS),
    "attention": (lambda: vit(attentional_pool=True, attn_pooler_heads=2), {*BLOCK_METHODS, "grad_eclip", "cci"}),
    "norm inside the attention": (lambda: vit(scale_attn_inner=True), {*BLOCK_METHODS, "grad_eclip", "cci"}),
    "resnet": (resnet, {"grad_eclip"}),
}


def assert_maps_equal(maps: Tensor, expected: Tensor, method: str) -> None:
    assert_equal_up_to_rounding(maps, expected, absolute=SCORE if METHODS[method].reads is ScoreCapture else 0.0)


@pytest.mark.parametrize("name", FITTING)
def test_a_method_that_does_not_fit_is_rejected_with_those_that_do(name: str) -> None:
    build, additional = FITTING[name]
    tower, fitting = find_tower(build()), FITTING_ALL | additional
    for method in METHODS:
        if method in fitting:
            assert resolve_method(method, tower).name == method
        else:
            with pytest.raises(ConfigError, match=f"{method} does not fit .* needs") as raised:
                resolve_method(method, tower)
            assert set(str(raised.value).removesuffix(".").split("Fitting: ")[1].split(", ")) == fitting


@pytest.mark.parametrize("method", METHODS)
def test_the_map_of_an_image_does_not_depend_on_its_batch(method: str) -> None:
    model, images, texts = randomize_parameters(vit()), torch.randn(3, 3, 16, 32), torch.randn(4, 16)

    together = explain(model, images, texts, method=method)
    alone = explain(model, images[1:2], texts, method=method)
    in_batches = explain(model, images, texts, method=method, batch_size=2)

    assert_maps_equal(alone.maps, together.maps[1:2], method)
    assert_maps_equal(in_batches.maps, together.maps, method)


@pytest.mark.parametrize("method", sorted(METHODS.keys() - {"finercam", "clip_surgery"}))
def test_the_map_of_a_prompt_does_not_depend_on_the_other_prompts(method: str) -> None:
    model, images, texts = randomize_parameters(vit()), torch.randn(2, 3, 16, 32), torch.randn(2, 3, 16)

    together = explain(model, images, texts, method=method)
    alone = explain(model, images, texts[:, 1:2], method=method)

    assert_maps_equal(alone.maps, together.maps[:, 1:2], method)


@pytest.mark.parametrize("method", METHODS)
def test_a_frozen_model_under_no_grad_gives_the_same_maps(method: str) -> None:
    model, images, texts = randomize_parameters(vit()), torch.randn(2, 3, 16, 32), torch.randn(4, 16)
    expected = explain(model, images, texts, method=method)

    with torch.no_grad():
        frozen = explain(model.requires_grad_(False), images, texts, method=method)

    assert_maps_equal(frozen.maps, expected.maps, method)
    assert frozen.maps.shape[:2] == (2, 4)
    assert not frozen.maps.requires_grad


@pytest.mark.parametrize("build", [vit, resnet], ids=["vit", "resnet"])
def test_method_auto_stands_for_the_recipe_of_the_tower(
    build: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = randomize_parameters(build())
    tower = find_tower(model)
    images, texts = torch.randn(2, 3, *tower.input_size), torch.randn(3, 16)
    recipes = (tower.recipe, Recipe("layercam", (0,)), Recipe("fem", (-2, -1)), Recipe("hirescam", (-2, -1), "product"))
    for recipe in recipes:
        monkeypatch.setattr(type(tower), "recipe", recipe)
        default = explain(model, images, texts)

        chosen = explain(model, images, texts, method=recipe.method, layers=recipe.layers, fuse=recipe.fuse)

        assert default.method == recipe.method
        assert default.layers == chosen.layers
        assert default.fuse == chosen.fuse == recipe.fuse
        assert torch.equal(default.maps, chosen.maps)


def test_explicit_layers_replace_those_of_the_recipe_and_how_they_are_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = vit()
    tower = find_tower(model)
    monkeypatch.setattr(type(tower), "recipe", Recipe("hirescam", (-2, -1), "product"))

    explanation = explain(model, torch.randn(1, 3, 16, 32), torch.randn(1, 16), layers=0)

    assert (explanation.layers, explanation.fuse) == ((tower.layers[0],), "mean")


def test_an_explicit_fuse_replaces_that_of_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    model = vit()
    monkeypatch.setattr(type(find_tower(model)), "recipe", Recipe("hirescam", (-2, -1), "product"))

    explanation = explain(model, torch.randn(1, 3, 16, 32), torch.randn(1, 16), fuse="max")

    assert (len(explanation.layers), explanation.fuse) == (2, "max")


def test_a_custom_function_reads_activations_and_gradients() -> None:
    def squared_gradient(capture: Capture) -> Tensor:
        return capture.gradients.square().sum(2) * capture.activations[:, :1]

    model, images, texts = randomize_parameters(vit()), torch.randn(2, 3, 16, 32), torch.randn(3, 16)

    explanation = explain(model, images, texts, method=squared_gradient)

    assert explanation.method == "squared_gradient"
    assert explanation.maps.shape == (2, 3, 2, 4)
    assert_close(explanation.maps, explain(model, images, texts, method=Method(squared_gradient)).maps)


def test_a_custom_method_declares_what_it_reads_and_needs() -> None:
    def brightest(capture: LayerCapture) -> Tensor:
        return capture.activations.amax(1, keepdim=True)

    def to_class_token(capture: AttentionCapture) -> Tensor:
        return capture.to_map(capture.attentions[-1].weights()[:, :, 0].mean(1, keepdim=True))

    model, images, texts = randomize_parameters(vit()), torch.randn(2, 3, 16, 32), torch.randn(3, 16)

    maps = explain(model, images, texts, method=Method(brightest, LayerCapture)).maps
    attention = explain(model, images, texts, method=Method(to_class_token, AttentionCapture, blocks=1)).maps

    assert maps.shape == (2, 3, 2, 4)
    assert torch.equal(maps[:, 0], maps[:, 2])
    shares = attention[:, 0] / attention[:, 0].sum((1, 2), keepdim=True)
    assert_close(shares, _rollout_without_residual(model, images, texts))
    with pytest.raises(ConfigError, match="brightest does not fit OpenClipViT: it needs wings"):
        explain(model, images, texts, method=Method(brightest, LayerCapture, needs=("wings",)))


def _rollout_without_residual(model: nn.Module, images: Tensor, texts: Tensor) -> Tensor:
    """Rollout over one block: without the class token's own share, its row is the attention up to a factor."""
    maps = explain(model, images, texts, method="rollout", layers=-1).maps[:, 0]
    return maps / maps.sum((1, 2), keepdim=True)


def test_a_function_that_does_not_return_maps_is_rejected(unchecked: None) -> None:
    def without_prompts(capture: Capture) -> Tensor:
        return capture.gradients[:, 0]

    with pytest.raises(ConfigError, match=r"maps \[b, p, h, w\].*without_prompts returned \(1, 32, 2, 4\)"):
        explain(vit(), torch.randn(1, 3, 16, 32), torch.randn(1, 16), method=without_prompts)


@pytest.mark.parametrize(
    ("returned", "name"),
    [(None, "NoneType"), (np.zeros((1, 1, 2, 4)), "ndarray"), (1.0, "float"), (torch.zeros(8), r"\(8,\)")],
    ids=["None", "numpy", "float", "tensor"],
)
@pytest.mark.parametrize("reads", [LayerCapture, Capture, AttentionCapture, ScoreCapture])
def test_a_function_that_does_not_return_a_tensor_of_maps_is_rejected(
    reads: type, returned: object, name: str, unchecked: None
) -> None:
    method: Any = Method(lambda _: returned, reads, steps=2 if reads is Capture else 0)

    with pytest.raises(ConfigError, match=rf"must return maps \[b, p, h, w\].*<lambda> returned {name}"):
        explain(vit(), torch.randn(1, 3, 16, 32), torch.randn(1, 2, 16), method=method, layers=[-2, -1])


def test_an_unknown_method_is_rejected_with_the_valid_names(unchecked: None) -> None:
    names = "'auto', one of gradcam, gradcam_pp, .*, gem, or a function"
    with pytest.raises(ConfigError, match=rf"{names}.*'gradcamm'.* Did you mean 'gradcam'\?"):
        resolve_method("gradcamm", find_tower(vit()))


@pytest.mark.parametrize("method", ["gae", "rollout", "legrad", "maskclip"])
def test_a_method_that_reads_attention_rejects_a_layer_that_is_not_a_block(method: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"{method} reads the attention of whole blocks.*visual.ln_post.*resblocks.0"
    ):
        explain(vit(), torch.randn(1, 3, 16, 32), torch.randn(1, 16), method=method, layers="visual.ln_post")


def test_a_tower_with_attention_in_its_pool_alone_has_no_block_to_choose() -> None:
    with pytest.raises(ConfigError, match="only the pool has attention"):
        explain(resnet(), torch.randn(1, 3, 64, 64), torch.randn(1, 16), method="gae", layers=-1)


@pytest.mark.parametrize("name", METHODS)
def test_the_docstring_of_a_method_names_its_source_and_the_towers_it_fits(name: str) -> None:
    docstring = METHODS[name].function.__doc__ or ""

    assert METHODS[name].name == name
    assert "Source: " in docstring
    assert "Fits " in docstring


def test_the_source_is_what_the_docstring_names() -> None:
    def without_source(capture: Capture) -> Tensor:
        return capture.gradients.norm(dim=2)

    assert METHODS["gradcam"].source == "Selvaraju et al. 2017, eqs. 1-2, https://arxiv.org/abs/1610.02391"
    assert METHODS["eigengradcam"].source.startswith("pytorch-grad-cam's EigenGradCAM, after Muhammad")
    assert METHODS["hirescam"].source.endswith("taken for display.")
    assert Method(without_source).source == ""


@pytest.mark.parametrize(
    "name", ["eigencam", "rollout", "occlusion", "cluster_occlusion", "cci", "scorecam", "ablationcam"]
)
def test_the_cost_of_a_method_without_gradients_is_the_number_of_images_that_it_embeds(name: str) -> None:
    model, embedded = vit(), []
    clip = find_clip(model)
    assert HEAD in clip.tower.offers  # which is verified here by a forward
    model.visual.conv1.register_forward_hook(lambda _layer, _inputs, patches: embedded.append(len(patches)))

    explain(clip, torch.randn(1, 3, 16, 32), torch.randn(2, 16), method=name)

    assert METHODS[name].forwards([(32, 2, 4)]) == sum(embedded)


@pytest.mark.parametrize(
    ("name", "forwards"),
    [("gradcam", 3), ("gae", 3), ("grad_eclip", 3), ("shapleycam", 7), ("integrated_gradients", 10)],
)
def test_a_backward_costs_two_forwards(name: str, forwards: int) -> None:
    assert METHODS[name].forwards([(32, 2, 4)]) == forwards
    assert METHODS[name].cost == str(forwards)
