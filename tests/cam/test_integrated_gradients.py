"""Integrated gradients, compared with differences of scores, and with the completeness theorem."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from clipcam_lightning.cam.capture import AttentionCapture, Capture, replaced_output
from clipcam_lightning.cam.explain import explain
from clipcam_lightning.cam.methods import METHODS, Method
from clipcam_lightning.cam.methods.integrated_gradients import integrated_gradients
from clipcam_lightning.cam.rules import ConstantNormalizers
from clipcam_lightning.errors import ConfigError
from tests.oracles import path
from tests.oracles.randomize import randomize_parameters
from tests.oracles.transformer import ReferenceViT
from tests.support.tolerances import assert_equal_up_to_rounding
from tests.support.zoo.open_clip import resnet, vit

POOLINGS: dict[str, Callable[[], nn.Module]] = {
    "class token": vit,
    "mean": lambda: vit(pool_type="avg"),
    "attention": lambda: vit(attentional_pool=True, attn_pooler_queries=2, attn_pooler_heads=2),
}


@pytest.mark.parametrize("block", [0, 1])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_maps_equal_differences_of_scores_on_the_way_from_the_mean_patch(pooling: str, block: int) -> None:
    model = randomize_parameters(POOLINGS[pooling]()).double()
    image, texts = torch.randn(1, 3, 16, 32), torch.randn(2, 16)

    maps = explain(model, image, texts, method="integrated_gradients", layers=block).maps[0]

    expected = path.integrated_gradients(ReferenceViT(model.visual), image[0], texts, block, points=3)
    assert_equal_up_to_rounding(maps, expected.float())
    assert expected.min() < 0 < expected.max()


@pytest.mark.parametrize(
    ("build", "layer", "name"),
    [
        (vit, 0, "visual.conv1"),
        (POOLINGS["mean"], 0, "visual.conv1"),
        (lambda: resnet(96), -1, "visual.layer4"),
    ],
    ids=["vit", "mean", "resnet"],
)
def test_the_map_sums_to_the_score_minus_that_of_the_mean_cell_everywhere(
    build: Callable[[], nn.Module], layer: int, name: str
) -> None:
    """Completeness (Sundararajan et al. 2017, proposition 1), which holds for many points."""
    model = randomize_parameters(build()).double()
    size = model.visual.image_size
    images, texts = torch.randn(2, 3, *(size if isinstance(size, tuple) else (size, size))), torch.randn(3, 16)
    method = Method(integrated_gradients, Capture, block_inputs=True, steps=50)

    explanation = explain(model, images, texts, method=method, layers=layer)

    at_mean = score_of_mean_cells(model, model.get_submodule(name), images, texts)
    expected = explanation.similarity - at_mean.float()
    largest = float(expected.abs().max())
    assert largest > 1e-3, "scores that are equal would prove nothing"
    assert_close(explanation.maps.sum(dim=(2, 3)), expected, atol=2e-3 * largest, rtol=0)


@torch.no_grad()
def score_of_mean_cells(model: nn.Module, layer: nn.Module, images: Tensor, texts: Tensor) -> Tensor:
    outputs: list[Tensor] = []
    handle = layer.register_forward_hook(lambda _layer, _inputs, output: outputs.append(output))
    model.encode_image(images.double())
    handle.remove()
    with replaced_output(layer, outputs[0].mean(dim=(2, 3), keepdim=True).expand_as(outputs[0])):
        embedded = F.normalize(model.encode_image(images.double()), dim=-1)
    return embedded @ F.normalize(texts.double(), dim=-1).T


def test_recomputing_the_blocks_changes_no_map() -> None:
    model, images, texts = randomize_parameters(vit()), torch.randn(2, 3, 16, 32), torch.randn(2, 16)

    kept, recomputed = (
        explain(model, images, texts, method="integrated_gradients", checkpointing=checkpointing).maps
        for checkpointing in (False, True)
    )

    assert_equal_up_to_rounding(recomputed, kept)


def test_several_layers_have_a_way_each() -> None:
    model, images, texts = randomize_parameters(vit()), torch.randn(2, 3, 16, 32), torch.randn(2, 16)
    each = [explain(model, images, texts, method="integrated_gradients", layers=layer).maps for layer in (0, 2)]

    maps = explain(model, images, texts, method="integrated_gradients", layers=(0, 2)).maps

    assert_equal_up_to_rounding(maps, (each[0] + each[1]) / 2)


def test_a_method_has_steps_only_where_it_reads_the_true_gradient_of_a_layer() -> None:
    with pytest.raises(ConfigError, match=r"steps are for methods that read a Capture \(got AttentionCapture"):
        Method(integrated_gradients, AttentionCapture, steps=3)
    with pytest.raises(ConfigError, match="either rules or steps"):
        Method(integrated_gradients, Capture, steps=3, rules=ConstantNormalizers)
    assert METHODS["integrated_gradients"].steps == 3
