"""A tower of an unknown kind is found by tracing, and gives the maps of the specific tower where there is one."""

from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from clipcam_lightning.cam.explain import explain
from clipcam_lightning.cam.finding import find_clip
from clipcam_lightning.cam.towers.traced import TracedTower
from clipcam_lightning.errors import ConfigError, TowerError
from tests.support.zoo import huggingface, open_clip, openai, timm as timm_zoo

ZOO = {
    f"{library}: {name}": build
    for library, zoo in (
        ("transformers", huggingface),
        ("open_clip", open_clip),
        ("openai", openai),
        ("timm", timm_zoo),
    )
    for name, build in zoo.MODELS.items()
}
# SigLIP 2 takes patches, which only its own tower cuts.
TRACEABLE = {name: build for name, build in ZOO.items() if "siglip 2" not in name}


@pytest.mark.parametrize("name", TRACEABLE)
@pytest.mark.parametrize("method", ["gradcam", "hirescam"])
def test_maps_equal_those_of_the_specific_tower(name: str, method: Any) -> None:
    torch.manual_seed(0)
    specific = find_clip(TRACEABLE[name]().eval())
    traced = replace(specific, tower=TracedTower(specific.module))
    images = torch.randn(2, 3, *specific.tower.input_size)
    texts = torch.randn(2, specific.embed_images(images).shape[1])
    assert traced.tower.input_size == specific.tower.input_size

    expected = explain(specific, images, texts, method=method)
    layer = expected.layers[0]
    maps = explain(traced, images, texts, method=method, layers=layer).maps
    torch.testing.assert_close(maps, expected.maps, rtol=1e-5, atol=1e-5 * float(expected.maps.abs().max()))


# The convolution after its last stage.
OTHER_LAYER = {"timm: fastvit"}


@pytest.mark.parametrize("name", sorted(TRACEABLE.keys() - OTHER_LAYER))
def test_the_default_layer_gives_the_maps_of_the_specific_tower_s(name: str) -> None:
    torch.manual_seed(0)
    specific = find_clip(TRACEABLE[name]().eval())
    traced = replace(specific, tower=TracedTower(specific.module))
    images = torch.randn(2, 3, *specific.tower.input_size)
    texts = torch.randn(2, specific.embed_images(images).shape[1])
    maps, expected = (
        explain(clip, images, texts, method="gradcam", layers=clip.tower.default_layer).maps
        for clip in (traced, specific)
    )
    torch.testing.assert_close(maps, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


class Encoders(nn.Module):
    """An image encoder of any kind, and texts that are embeddings already."""

    def __init__(self, image_encoder: nn.Module) -> None:
        super().__init__()
        self.image_encoder = image_encoder

    def encode_image(self, images: Tensor) -> Tensor:
        return self.image_encoder(images)

    def encode_text(self, tokens: Tensor) -> Tensor:
        return tokens.float()


class WithoutClassifier(nn.Module):
    """A network of torchvision whose last layer is the identity."""

    def __init__(self, network: nn.Module, classifier: str) -> None:
        super().__init__()
        setattr(network, classifier, nn.Identity() if classifier != "classifier" else nn.Flatten(1))
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)


NETWORKS = {
    "resnet18": ("fc", 2),
    "vit_b_32": ("heads", 2),
    "swin_t": ("head", 2),
    "convnext_tiny": ("classifier", 2),
    "mobilenet_v3_small": ("classifier", 2),
    "densenet121": ("classifier", 2),
    "regnet_y_400mf": ("fc", 2),
}


@pytest.mark.parametrize(("name", "classifier", "cells"), [(name, *rest) for name, rest in NETWORKS.items()])
def test_networks_of_torchvision_have_a_grid(name: str, classifier: str, cells: int) -> None:
    torch.manual_seed(0)
    model = Encoders(WithoutClassifier(getattr(torchvision.models, name)(), classifier)).eval()
    clip = find_clip(model)
    images = torch.randn(1, 3, *clip.tower.input_size)
    maps = explain(clip, images, torch.randn(2, clip.embed_images(images).shape[1])).maps
    assert clip.tower.input_size == (224, 224)
    assert maps.shape == (1, 2, 7, 7)
    assert not torch.allclose(maps[:, 0], maps[:, 1])


def test_images_of_another_size_are_taken_where_the_network_takes_them() -> None:
    clip = find_clip(Encoders(WithoutClassifier(torchvision.models.resnet18(), "fc")))
    maps = explain(clip, torch.randn(1, 3, 96, 160), torch.randn(2, 512)).maps
    assert maps.shape == (1, 2, 3, 5)
    assert clip.tower.scaled_size((224, 224), 1.5) == (320, 320)  # whole cells of the stem, the finest grid


def test_images_of_another_size_are_refused_where_the_network_does_not_take_them() -> None:
    clip = find_clip(Encoders(timm.create_model("mixer_s32_224", num_classes=0)))
    with pytest.raises(ConfigError, match=r"does not take images of 96x160 pixels.*built for 224x224"):
        explain(clip, torch.randn(1, 3, 96, 160), torch.randn(2, 512))


class ColumnByColumn(nn.Module):
    """Patches that become tokens column by column."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.block = nn.Conv2d(3, 8, 16, 16), nn.Sequential(nn.LayerNorm(8), nn.GELU())

    def forward(self, images: Tensor) -> Tensor:
        return self.block(self.patches(images).transpose(2, 3).flatten(2).transpose(1, 2)).mean(1)


def test_patches_that_are_not_row_by_row_are_refused() -> None:
    with pytest.raises(TowerError, match=r"not the patches row by row.*is token 14,.*is token 1 "):
        find_clip(Encoders(ColumnByColumn()))


def test_an_encoder_without_gradient_is_refused_with_what_to_do() -> None:
    class NoGradient(Encoders):
        @torch.no_grad()
        def encode_image(self, images: Tensor) -> Tensor:
            return super().encode_image(images)

    model = NoGradient(WithoutClassifier(torchvision.models.resnet18(), "fc"))
    with pytest.raises(TowerError, match=r"no gradient.*under torch.no_grad.*requires_grad_\(False\)"):
        find_clip(model)


def test_an_encoder_without_a_grid_is_refused() -> None:
    model = Encoders(nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 8)))
    with pytest.raises(TowerError, match="no module of EncoderPair returns a grid of cells"):
        find_clip(model)
