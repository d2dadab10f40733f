"""Images and masks go through the model's own transform, and model input back to pixels."""

from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
import torchvision
from open_clip.constants import IMAGENET_MEAN, IMAGENET_STD
from open_clip.transform import PreprocessCfg
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close
from transformers import CLIPImageProcessor, SiglipImageProcessor

from clipcam_lightning.cam.finding import find_clip
from clipcam_lightning.cam.preprocessing import Preprocessing
from clipcam_lightning.shapes_world.models import build_clip
from clipcam_lightning.shapes_world.scenes import draw_scenes
from tests.support.zoo import huggingface

IMAGE = np.random.default_rng(0).integers(0, 256, (90, 150, 3), dtype=np.uint8)


def test_an_image_is_transformed_as_by_open_clip() -> None:
    model, _, transform = open_clip.create_model_and_transforms("RN50", pretrained=None, force_image_size=64)

    ours = find_clip(model).preprocessing.image(IMAGE)

    assert torch.equal(ours, transform(Image.fromarray(IMAGE)))


def test_an_open_clip_model_without_a_transform_gets_the_default() -> None:
    bare = nn.Module()
    bare.visual = nn.Module()
    bare.visual.image_size = 32

    preprocessing = Preprocessing.of(bare, (32, 48))

    assert preprocessing.size == (32, 48)
    assert preprocessing.config.mean == PreprocessCfg().mean


@pytest.mark.parametrize("name", ["clip", "siglip"])
@pytest.mark.parametrize("resample", [2, 3])
@pytest.mark.parametrize("held_as", ["image_processor", "processor"])
def test_an_image_is_transformed_as_by_the_transformers_processor_near_the_model(
    name: str, resample: int, held_as: str
) -> None:
    side = {"height": 32, "width": 32}
    processor = {
        "clip": CLIPImageProcessor(
            size={"shortest_edge": 32}, crop_size=side, resample=resample, image_mean=[0.1, 0.2, 0.3]
        ),
        "siglip": SiglipImageProcessor(size=side, resample=resample, image_std=[0.4, 0.3, 0.2]),
    }[name]
    module = nn.Module()
    module.net = huggingface.MODELS[name]()
    setattr(module, held_as, processor)

    ours = find_clip(module).preprocessing.image(IMAGE)

    theirs = processor(Image.fromarray(IMAGE), return_tensors="pt")["pixel_values"][0]
    # The processor resizes a float tensor, Pillow resizes bytes and rounds; the range of values is about 4.
    assert_close(ours, theirs, atol=0.02, rtol=0)


def test_a_transformers_clip_without_a_processor_gets_the_transform_of_clip() -> None:
    assert find_clip(huggingface.clip()).preprocessing.config == PreprocessCfg(size=(32, 32))


@pytest.mark.parametrize("name", ["siglip", "siglip 2"])
def test_a_transformers_siglip_without_a_processor_squashes_and_centres_images(name: str) -> None:
    preprocessing = find_clip(huggingface.MODELS[name]()).preprocessing

    theirs = SiglipImageProcessor(size={"height": 32, "width": 32})(Image.fromarray(IMAGE), return_tensors="pt")
    assert_close(preprocessing.image(IMAGE), theirs["pixel_values"][0], atol=0.02, rtol=0)


def test_a_model_without_an_image_size_gets_the_default() -> None:
    bare = nn.Module()
    bare.visual = nn.Module()

    assert Preprocessing.of(bare, (32, 48)).config == PreprocessCfg(size=(32, 48))


@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
def test_a_mask_is_resized_and_cropped_or_padded_like_its_image(resize_mode: str) -> None:
    """An image that is white inside the mask and black outside must be transformed to the transformed mask."""
    mask = np.zeros((90, 150), dtype=bool)
    mask[10:60, 95:135] = True
    image = np.repeat(mask[..., None].astype(np.uint8) * 255, 3, axis=2)
    config = PreprocessCfg(size=(48, 48), mean=(0.2,) * 3, std=(0.3,) * 3, resize_mode=resize_mode)
    preprocessing = Preprocessing(config)

    transformed = preprocessing.mask(mask)

    white = preprocessing.image(image)[0] * 0.3 + 0.2 > 0.5
    assert torch.equal(transformed, white)
    assert transformed.any()


def test_pixels_undo_the_normalisation() -> None:
    preprocessing = find_clip(build_clip("vit")).preprocessing
    image = preprocessing.image(IMAGE)[None]

    pixels = preprocessing.pixels(image)

    assert pixels.dtype == torch.uint8
    assert_close(pixels.float() / 127.5 - 1, image, atol=0.005, rtol=0)


def test_images_normalised_in_another_way_are_stretched_to_their_own_range() -> None:
    preprocessing = find_clip(build_clip("vit")).preprocessing
    image = torch.linspace(-7, 3, 3 * 64 * 64).view(1, 3, 64, 64)

    pixels = preprocessing.pixels(torch.cat([image, torch.full_like(image, torch.nan)]))

    assert (pixels[0].min(), pixels[0].max()) == (0, 255)
    assert (pixels[0].flatten().int().diff() >= 0).all()
    assert (pixels[1] == 0).all()


def test_images_from_0_to_1_that_were_resampled_are_shown_as_they_are() -> None:
    pixels = torch.from_numpy(draw_scenes(3).images).permute(0, 3, 1, 2) / 255
    resampled = F.interpolate(pixels, size=48, mode="bilinear", antialias=True)
    preprocessing = find_clip(build_clip("vit")).preprocessing
    assert (preprocessing.pixels(resampled).float() / 255 - resampled).abs().max() < 0.01


@pytest.mark.parametrize("build", [lambda: timm.create_model("resnet10t", num_classes=0), torchvision.models.resnet18])
def test_a_network_alone_has_the_normalisation_that_it_was_trained_with(build: Any) -> None:
    clip = find_clip(
        nn.ModuleDict({"net": build()}),
        encode_image=lambda module, images: module["net"](images),
        encode_text=lambda module, tokens: tokens,
    )
    assert clip.preprocessing.config.mean == IMAGENET_MEAN
    assert clip.preprocessing.config.std == IMAGENET_STD


@pytest.mark.parametrize(
    ("size", "mode", "image", "share"),
    [
        ((224, 224), "shortest", (400, 600), 2 / 3),
        ((224, 224), "shortest", (600, 400), 2 / 3),
        ((224, 224), "shortest", (500, 500), 1.0),
        ((192, 384), "shortest", (400, 600), 3 / 4),
        ((224, 224), "longest", (400, 600), 1.0),
        ((224, 224), "squash", (400, 600), 1.0),
    ],
)
def test_the_visible_share_is_that_of_the_pixels_that_the_transform_keeps(
    size: tuple[int, int], mode: str, image: tuple[int, int], share: float
) -> None:
    config = PreprocessCfg(size=size, mode="RGB", mean=(0.0,) * 3, std=(1.0,) * 3, resize_mode=mode, fill_color=0)
    preprocessing = Preprocessing(config)
    across, down = np.meshgrid(np.linspace(0, 255, image[1]), np.linspace(0, 255, image[0]))
    ramps = np.stack([across, down, np.full(image, 128)], 2).round().astype(np.uint8)
    seen = preprocessing.image(ramps)
    inside = seen[:, seen[2] > 0.1]  # without padding
    kept = [inside[channel].max() - inside[channel].min() for channel in (0, 1)]

    assert preprocessing.visible_share(*image) == pytest.approx(share)
    assert kept[0] * kept[1] == pytest.approx(share, abs=0.03)
