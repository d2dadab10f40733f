"""Maps of images shifted by half a cell are put back on the grid of the images, and averaged in."""

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from clipcam_lightning.cam.capture import LayerCapture
from clipcam_lightning.cam.explain import explain
from clipcam_lightning.cam.finding import find_clip
from clipcam_lightning.cam.fuse import resize_maps
from clipcam_lightning.cam.methods import METHODS, Method
from clipcam_lightning.cam.views import half_a_cell, shift_images, unshift_maps
from tests.oracles.randomize import randomize_parameters
from tests.support.zoo import huggingface, timm
from tests.support.zoo.open_clip import resnet, vit


def shift_by_loops(image: Tensor, down: int, right: int) -> Tensor:
    """Take each pixel from up and left of it; beyond the border, from its mirror image."""
    shifted = torch.empty_like(image)
    for y, x in product(range(image.shape[1]), range(image.shape[2])):
        shifted[:, y, x] = image[:, abs(y - down), abs(x - right)]
    return shifted


def unshift_by_loops(map_: Tensor, down: int, right: int, size: tuple[int, int]) -> Tensor:
    """Paint the map over the pixels of the shifted image, shift them back, and average those that are in each cell."""
    height, width = size[0] // len(map_), size[1] // len(map_[0])
    sums, counts = torch.zeros_like(map_), torch.zeros_like(map_)
    for y, x in product(range(down, size[0]), range(right, size[1])):
        cell = (y - down) // height, (x - right) // width
        sums[cell] += map_[y // height, x // width]
        counts[cell] += 1
    return sums / counts


@pytest.mark.parametrize("cell", [(6, 6), (7, 7), (4, 9)])
def test_maps_are_put_back_pixel_by_pixel(cell: tuple[int, int]) -> None:
    """A cell with an odd number of pixels moves by less than its half."""
    maps, size = torch.randn(2, 1, 3, 5), (3 * cell[0], 5 * cell[1])
    shift = half_a_cell(size, (3, 5))

    unshifted = unshift_maps(maps, shift, size)

    assert shift == (cell[0] // 2, cell[1] // 2)
    expected = torch.stack([unshift_by_loops(map_[0], *shift, size)[None] for map_ in maps])
    assert_close(unshifted, expected)


def test_what_enters_a_shifted_image_is_its_mirrored_border() -> None:
    image = torch.randn(3, 6, 9)

    assert torch.equal(shift_images(image[None], (2, 3))[0], shift_by_loops(image, 2, 3))


@pytest.mark.parametrize("method", METHODS)
def test_shift_averages_with_the_map_of_the_shifted_image_put_back(method: str) -> None:
    model, images, texts = randomize_parameters(vit()), torch.randn(2, 3, 16, 32), torch.randn(3, 16)
    plain = explain(model, images, texts, method=method)
    down, right = 8 // plain.maps.shape[2], 16 // plain.maps.shape[3]  # occlusion has smaller cells than the tower
    shifted = explain(model, torch.stack([shift_by_loops(i, down, right) for i in images]), texts, method=method)

    averaged = explain(model, images, texts, method=method, shift=True)

    flat = [unshift_by_loops(map_, down, right, (16, 32)) for map_ in shifted.maps.flatten(0, 1)]
    assert_close(averaged.maps, (plain.maps + torch.stack(flat).unflatten(0, (2, 3))) / 2, atol=1e-6, rtol=1e-4)
    assert_close(averaged.similarity, (plain.similarity + shifted.similarity) / 2)
    assert not torch.allclose(averaged.maps, plain.maps)
    assert averaged.shift
    assert not plain.shift


def test_stages_of_several_strides_are_shifted_by_half_a_cell_of_the_finest() -> None:
    """Stages 3 and 4 of a ResNet have cells of 16 and of 32 pixels."""
    model, images, texts = randomize_parameters(resnet(96)), torch.randn(1, 3, 96, 96), torch.randn(2, 16)
    views = (images, torch.stack([shift_by_loops(images[0], 8, 8)]))
    fused = []
    for view in views:
        coarse, fine = (explain(model, view, texts, method="gradcam", layers=i).maps for i in (3, 2))
        fused.append((resize_maps(coarse, (6, 6)) * fine)[0])

    maps = explain(model, images, texts, method="gradcam", layers=(3, 2), fuse="product", shift=True).maps

    put_back = torch.stack([unshift_by_loops(map_, 8, 8, (96, 96)) for map_ in fused[1]])
    assert_close(maps[0], (fused[0] + put_back) / 2)


PATCH_EMBEDDINGS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "open_clip": (vit, "visual.conv1"),
    "timm": (timm.plain, "visual.trunk.patch_embed.proj"),
    "transformers": (huggingface.clip, "vision_model.embeddings.patch_embedding"),
}


@pytest.mark.parametrize("library", PATCH_EMBEDDINGS)
def test_the_cell_means_of_a_linear_image_do_not_change(library: str) -> None:
    """Shifted cells have the values of a linear image half a cell away, whose mean is that of the cell between them.

    A map put back in the wrong direction would be one cell off. At the border, where the mirrored image is not linear,
    the values change.
    """
    build, layer = PATCH_EMBEDDINGS[library]
    model: Any = build()
    clip = find_clip(model)
    patches = model.get_submodule(layer)
    nn.init.constant_(patches.weight, 1 / patches.weight[0].numel())
    height, width = patches.kernel_size
    y, x = torch.meshgrid(torch.arange(4.0 * height), torch.arange(6.0 * width), indexing="ij")
    images = (3 * y + x).expand(1, 3, -1, -1) / 100
    method = Method(lambda capture: capture.activations[:, :1], LayerCapture)
    texts = torch.randn(1, len(clip.embed_images(images)[0]))

    plain, shifted = (
        explain(clip, images, texts, method=method, layers=layer, shift=shift).maps[0, 0] for shift in (False, True)
    )

    assert plain.shape == (4, 6)
    assert_close(shifted[1:-1, 1:-1], plain[1:-1, 1:-1])
    assert (shifted[0, :-1] > plain[0, :-1]).all(), "the mirrored border is brighter than the image would be there"


@pytest.mark.parametrize("method", ["hirescam", "gae", "attnlrp", "occlusion"])
def test_the_views_of_a_mirrored_image_are_the_mirrored_views(method: str) -> None:
    model, images, texts = randomize_parameters(vit()), torch.randn(2, 3, 16, 32), torch.randn(3, 16)

    maps, mirrored = (
        explain(model, view, texts, method=method, flip=True, shift=True) for view in (images, images.flip(-1))
    )

    assert_close(mirrored.maps.flip(-1), maps.maps, atol=1e-6, rtol=1e-4)
    assert_close(mirrored.similarity, maps.similarity)


def test_every_scale_is_shifted_by_half_a_cell_of_its_own_grid() -> None:
    model, images, texts = randomize_parameters(vit()), torch.randn(1, 3, 16, 32), torch.randn(2, 16)
    settings: dict[str, Any] = {"method": "hirescam", "shift": True}
    one, two = (explain(model, images, texts, scales=(scale,), **settings).maps for scale in (1.0, 2.0))

    averaged = explain(model, images, texts, scales=(1.0, 2.0), **settings).maps

    # Four views, each enlarged by itself; the mean of two means is the mean of four.
    assert_close(averaged, (resize_maps(one, (4, 8)) + two) / 2)


def test_the_map_of_an_image_with_all_views_does_not_depend_on_its_batch() -> None:
    model, texts = randomize_parameters(vit()), torch.randn(2, 16)
    images = [torch.randn(3, 16, 32), torch.randn(3, 24, 16), torch.randn(3, 16, 32)]
    settings: dict[str, Any] = {"method": "attnlrp", "scales": (1.0, 1.5), "flip": True, "shift": True}

    together = explain(model, images, texts, **settings)

    for i, image in enumerate(images):
        alone = explain(model, image[None], texts, **settings)
        assert_close(together.maps_of(i), alone.maps[0], atol=1e-6, rtol=1e-4)
        assert_close(together.similarity[i], alone.similarity[0])
