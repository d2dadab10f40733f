"""Images of several sizes each have a grid of their own."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from clipcam_lightning.cam.explain import explain
from clipcam_lightning.errors import ConfigError
from tests.support.zoo import open_clip, timm
from tests.support.zoo.huggingface import MODELS, PATCH


@pytest.mark.parametrize("build", [MODELS["siglip 2"], MODELS["clip"], open_clip.vit])  # all with patches of 8 pixels
def test_every_image_has_its_own_grid_and_the_maps_it_would_have_alone(build: Callable[[], nn.Module]) -> None:
    model = build()
    sizes = [(2, 4), (3, 2), (2, 4)]
    images = [torch.randn(3, height * PATCH, width * PATCH) for height, width in sizes]
    texts = torch.randn(3, 2, 16)

    together = explain(model, images, texts, method="hirescam")

    assert together.grids == tuple(sizes)
    assert together.maps.shape == (3, 2, 3, 4)
    for i, image in enumerate(images):
        alone = explain(model, image[None], texts[i : i + 1], method="hirescam")
        assert_close(together.maps_of(i), alone.maps[0], atol=1e-6, rtol=1e-4)
        assert_close(together.similarity[i], alone.similarity[0])
        assert together.maps[i].isfinite().sum() == 2 * sizes[i][0] * sizes[i][1], "NaN must be outside the grid only"
    assert together.resize((20, 20)).isfinite().all()


def test_a_larger_scale_keeps_the_aspect_ratio_of_an_image() -> None:
    model = MODELS["siglip 2"]()

    explanation = explain(model, torch.randn(1, 3, 2 * PATCH, 4 * PATCH), torch.randn(1, 16), scales=(2.0,))

    assert explanation.maps.shape == (1, 1, 4, 8)


@pytest.mark.parametrize(
    "dynamic", [{}, {"dynamic_img_size": True}, {"dynamic_img_size": True, "dynamic_img_pad": True}]
)
@pytest.mark.parametrize("registers", [0, 2])
def test_a_timm_vit_takes_other_sizes_whether_it_was_built_for_them_or_not(
    dynamic: dict[str, bool], registers: int
) -> None:
    """With all patches alike but one, the changed cell is where that patch is."""
    model = timm.plain(reg_tokens=registers, **dynamic)
    images = torch.zeros(2, 3, 48, 80)
    images[1, :, 32:, 16:32] = 1

    features = explain(model, images, torch.randn(1, 16), method="fem", layers="visual.trunk.patch_embed")
    maps = explain(model, images, torch.randn(1, 16), method="hirescam").maps

    assert features.maps.shape == maps.shape == (2, 1, 3, 5)
    assert (features.maps[1] - features.maps[0]).abs().flatten().argmax() == 2 * 5 + 1


def test_an_image_that_timm_would_pad_is_refused_with_a_size_that_it_would_not() -> None:
    model = timm.plain(dynamic_img_size=True, dynamic_img_pad=True)

    with pytest.raises(ConfigError, match=r"TimmViT takes images in whole cells .*\(got 50x80 pixels\).* to 48x80"):
        explain(model, torch.randn(1, 3, 50, 80), torch.randn(1, 16))


def test_another_size_takes_one_forward_and_writes_no_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = open_clip.vit()
    own = {name: (value, value.clone()) for name, value in model.named_parameters()}
    sizes, encode = [], model.encode_image
    monkeypatch.setattr(model, "encode_image", lambda images: (sizes.append(images.shape[2:]), encode(images))[1])

    explain(model, torch.randn(3, 3, 40, 24), torch.randn(2, 16), method="gradcam")

    assert sizes == [(40, 24)]
    assert all(value is own[name][0] and torch.equal(value, own[name][1]) for name, value in model.named_parameters())
