"""The maps of several layers, scales and mirrored images are combined into one."""

from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from clipcam_lightning.cam.explain import explain
from clipcam_lightning.cam.fuse import FUSIONS, fuse_maps, resize_maps
from clipcam_lightning.cam.methods import METHODS
from tests.oracles.randomize import randomize_parameters
from tests.support.zoo.open_clip import resnet, vit

BY_HAND = {"mean": lambda a, b: (a + b) / 2, "max": torch.maximum, "product": lambda a, b: a.relu() * b.relu()}


@pytest.fixture
def model() -> open_clip.CLIP:
    return randomize_parameters(vit())


@pytest.fixture
def inputs() -> dict[str, Tensor]:
    return {"images": torch.randn(2, 3, 16, 32), "prompts": torch.randn(3, 16)}


@pytest.mark.parametrize("fuse", FUSIONS)
def test_maps_of_one_size_are_combined_cell_by_cell(fuse: str) -> None:
    one, other = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)

    assert_close(fuse_maps([one, other], fuse), BY_HAND[fuse](one, other))


def test_a_single_map_is_returned_unchanged() -> None:
    one = torch.randn(2, 3, 4, 5)

    assert torch.equal(fuse_maps([one], "product"), one)


@pytest.mark.parametrize("order", [1, -1])
def test_maps_are_combined_on_the_finest_grid_in_raw_units(order: int) -> None:
    coarse, fine = 100 * torch.rand(1, 1, 2, 2), torch.rand(1, 1, 4, 6)

    combined = fuse_maps([coarse, fine][::order], "mean")

    assert_close(combined, (F.interpolate(coarse, size=(4, 6), mode="bilinear") + fine) / 2)


def test_resizing_aligns_the_centres_of_cells_with_the_centres_of_pixels() -> None:
    """Two cells resized to four: the inner values are 25 % of the way from one cell's value to the other's."""
    assert_close(resize_maps(torch.tensor([[0.0, 4.0]]), (1, 4)), torch.tensor([[0.0, 1.0, 3.0, 4.0]]))


def test_maps_of_any_leading_shape_are_resized() -> None:
    maps = torch.rand(2, 3, 2, 2)

    assert_close(resize_maps(maps, (4, 6))[1, 2], resize_maps(maps[1, 2], (4, 6)))


@pytest.mark.parametrize("fuse", FUSIONS)
@pytest.mark.parametrize("method", ["gradcam", "eigencam", "shapleycam", "occlusion", "ablationcam"])
def test_each_layer_is_mapped_alone_and_the_maps_are_fused(
    method: str, fuse: str, model: open_clip.CLIP, inputs: dict[str, Tensor]
) -> None:
    one, other = (explain(model, **inputs, method=method, layers=layer).maps for layer in (0, -1))

    both = explain(model, **inputs, method=method, layers=(0, -1), fuse=fuse)

    assert both.layers == ("visual.transformer.resblocks.0.ln_1", "visual.transformer.resblocks.2.ln_1")
    assert_close(both.maps, BY_HAND[fuse](one, other), atol=1e-6, rtol=1e-4)


def test_layers_with_different_grids_are_fused_on_the_finest() -> None:
    model, images, texts = randomize_parameters(resnet()), torch.randn(2, 3, 64, 64), torch.randn(2, 16)
    coarse, fine = (explain(model, images, texts, method="hirescam", layers=i).maps for i in (3, 2))

    maps = explain(model, images, texts, method="hirescam", layers=(3, 2), fuse="max").maps

    assert maps.shape == (2, 2, 4, 4)
    assert_close(maps, torch.maximum(F.interpolate(coarse, size=(4, 4), mode="bilinear"), fine))


def test_a_layer_named_twice_counts_once(model: open_clip.CLIP, inputs: dict[str, Tensor]) -> None:
    last = "visual.transformer.resblocks.2.ln_1"

    explanation = explain(model, **inputs, method="hirescam", layers=(-1, last, 0, 2))

    assert explanation.layers == (last, "visual.transformer.resblocks.0.ln_1")


@pytest.mark.parametrize("method", METHODS)
def test_flip_averages_with_the_mirrored_map_of_the_mirrored_image(
    method: str, model: open_clip.CLIP, inputs: dict[str, Tensor]
) -> None:
    plain = explain(model, **inputs, method=method)
    mirrored = explain(model, inputs["images"].flip(-1), inputs["prompts"], method=method)

    averaged = explain(model, **inputs, method=method, flip=True)

    assert_close(averaged.maps, (plain.maps + mirrored.maps.flip(-1)) / 2, atol=1e-6, rtol=1e-4)
    assert_close(averaged.similarity, (plain.similarity + mirrored.similarity) / 2)
    assert not torch.allclose(averaged.maps, plain.maps)


@pytest.mark.parametrize("method", ["hirescam", "fem", "gae", "maskclip", "cluster_occlusion"])
@pytest.mark.parametrize("build", [vit, resnet], ids=["vit", "resnet"])
def test_scales_are_averaged_in_raw_units_on_the_finest_grid(build: Any, method: str) -> None:
    model = randomize_parameters(build())
    size = (16, 32) if build is vit else (64, 64)
    images, texts = torch.randn(2, 3, *size), torch.randn(3, 16)
    one, two = (explain(model, images, texts, method=method, scales=(scale,)) for scale in (1.0, 2.0))

    averaged = explain(model, images, texts, method=method, scales=(1.0, 2.0))

    enlarged = F.interpolate(one.maps, size=two.maps.shape[-2:], mode="bilinear")
    assert two.maps.shape[-2:] == (2 * one.maps.shape[-2], 2 * one.maps.shape[-1])
    assert_close(averaged.maps, (enlarged + two.maps) / 2)
    assert_close(averaged.similarity, (one.similarity + two.similarity) / 2)


def test_flip_applies_to_every_scale(model: open_clip.CLIP, inputs: dict[str, Tensor]) -> None:
    flipped = [explain(model, **inputs, method="hirescam", scales=(scale,), flip=True).maps for scale in (1.0, 2.0)]

    averaged = explain(model, **inputs, method="hirescam", scales=(1.0, 2.0), flip=True).maps

    assert_close(averaged, (F.interpolate(flipped[0], size=(4, 8), mode="bilinear") + flipped[1]) / 2)


def test_a_product_of_negative_values_is_no_evidence() -> None:
    negative = torch.full((1, 1, 2, 2), -1.0)

    assert (fuse_maps([negative, 2 * negative], "product") == 0).all()
