"""Images of several sizes, which SigLIP 2 supports, each have a grid of their own."""

import torch
from torch.testing import assert_close

from clipcam_lightning.cam.explain import explain
from clipcam_lightning.cam.model import find_clip
from tests.support.zoo.huggingface import MODELS


def test_every_image_has_its_own_grid_and_the_maps_it_would_have_alone() -> None:
    model = MODELS["siglip 2"]()
    patch = find_clip(model).tower.patch_size
    sizes = [(2, 4), (3, 2), (2, 4)]
    images = [torch.randn(3, height * patch, width * patch) for height, width in sizes]
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
    patch = find_clip(model).tower.patch_size

    explanation = explain(model, torch.randn(1, 3, 2 * patch, 4 * patch), torch.randn(1, 16), scales=(2.0,))

    assert explanation.maps.shape == (1, 1, 4, 8)
