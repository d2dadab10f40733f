"""Layers after the last attention of a class-token tower: their patches do not reach the embedding."""

import warnings

import open_clip
import pytest
import torch

from clipcam_lightning import ClipCamWarning, MapState, explain, find_clip
from clipcam_lightning.cam.capture import Capture, CurvatureCapture
from clipcam_lightning.cam.methods import METHODS
from tests.support.zoo.open_clip import vit

BLOCK = "visual.transformer.resblocks.2"
GRADIENTS = [name for name, method in METHODS.items() if method.reads in (Capture, CurvatureCapture)]
IMAGES, TEXTS = torch.randn(2, 3, 64, 64), torch.randn(3, 64)


@pytest.mark.parametrize("layer", [BLOCK, f"{BLOCK}.mlp", f"{BLOCK}.ln_2", f"{BLOCK}.attn", "visual.ln_post"])
def test_a_layer_that_only_the_class_token_leaves_is_named_with_those_that_work(
    layer: str, untrained: open_clip.CLIP
) -> None:
    tower = find_clip(untrained).tower

    with pytest.warns(ClipCamWarning) as caught:
        explanation = explain(untrained, IMAGES, TEXTS, method="gradcam", layers=[0, layer], fuse="product")

    (message,) = (str(each.message) for each in caught)
    assert message.startswith(f"no patch of layer {layer} reaches the embedding")
    assert message.endswith(f"layers worth mapping: {', '.join(tower.layers)}.")
    assert explanation.states == ((MapState.ALL_ZERO,) * 3,) * 2


@pytest.mark.parametrize("method", GRADIENTS)
def test_every_method_that_reads_gradients_warns(method: str, untrained: open_clip.CLIP) -> None:
    with pytest.warns(ClipCamWarning, match=f"no patch of layer {BLOCK} "):
        explain(untrained, IMAGES, TEXTS, method=method, layers=BLOCK)


@pytest.mark.parametrize("pooling", ["avg", "tok"])
def test_layers_worth_mapping_are_mapped_without_a_warning(pooling: str) -> None:
    model = vit(pool_type=pooling).eval()
    tower = find_clip(model).tower
    texts = torch.randn(1, model.visual.output_dim)

    with warnings.catch_warnings():
        warnings.simplefilter("error", ClipCamWarning)
        explain(model, torch.randn(1, 3, *tower.input_size), texts, method="gradcam", layers=tuple(tower.layers))


def test_a_model_without_any_gradient_is_not_blamed_on_its_layer(untrained: open_clip.CLIP) -> None:
    untrained.visual.proj.data.zero_()

    with warnings.catch_warnings():
        warnings.simplefilter("error", ClipCamWarning)
        explanation = explain(untrained, IMAGES, TEXTS, method="gradcam")

    assert {state for states in explanation.states for state in states} == {MapState.ALL_ZERO}
