"""A tower of an unknown kind is found by tracing, and gives the maps of the specific tower where there is one."""

from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

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


def test_tokens_that_are_not_row_by_row_give_way_to_the_grid_before_them() -> None:
    assert find_clip(Encoders(ColumnByColumn())).tower.default_layer == "owner.image_encoder.patches"


class Shuffled(nn.Module):
    """Patches cut without a convolution, in an order of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(3 * 8 * 8, 32), nn.LayerNorm(32)
        self.position_embedding = nn.Parameter(torch.zeros(1, 64, 32))

    def forward(self, images: Tensor) -> Tensor:
        patches = F.unfold(images, 8, stride=8).transpose(1, 2).flip(1)
        return self.norm(self.embed(patches)).mean(1)


def test_without_any_cells_in_order_an_encoder_is_refused() -> None:
    with pytest.raises(TowerError, match="not the patches row by row: what changes in one place"):
        find_clip(Encoders(Shuffled()))


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
    with pytest.raises(TowerError, match="no module of Encoders returns a grid of cells"):
        find_clip(model)


class TokensOf(nn.Module):
    """A ViT without classes of a library: patches, tokens before or after them, two blocks, and a pool."""

    def __init__(self, before: int = 0, after: int = 0, pool: str = "mean") -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 8, 8)
        self.first, self.last = (nn.Parameter(torch.randn(1, count, 32)) for count in (before, after))
        layer = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True, norm_first=True, dropout=0.0)
        self.blocks, self.norm = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.LayerNorm(32)
        self.pool = pool
        self.position_embedding = nn.Parameter(torch.zeros(1, 64, 32))  # 64 patches of 8 pixels

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patches(images).flatten(2).transpose(1, 2) + self.position_embedding
        own = (each.expand(len(images), -1, -1) for each in (self.first, self.last))
        first, last = own
        tokens = self.norm(self.blocks(torch.cat([first, patches, last], dim=1)))
        return tokens.mean(1) if self.pool == "mean" else tokens[:, 0 if self.pool == "first" else -1]


@pytest.mark.parametrize(("before", "pool"), [(0, "mean"), (1, "first"), (5, "mean")])
def test_tokens_before_the_patches_are_left_out(before: int, pool: str) -> None:
    torch.manual_seed(0)
    clip = find_clip(Encoders(TokensOf(before, pool=pool)).eval())
    assert clip.tower.input_size == (64, 64)
    features = torch.arange(before + 64.0).expand(2, 1, -1).transpose(1, 2)
    assert torch.equal(clip.tower.to_grid(features, (64, 64))[0, 0].flatten(), torch.arange(before, before + 64.0))


@pytest.mark.parametrize(("after", "pool"), [(1, "last"), (8, "mean")])
def test_tokens_after_the_patches_give_way_to_the_grid_before_them(after: int, pool: str) -> None:
    torch.manual_seed(0)
    clip = find_clip(Encoders(TokensOf(after=after, pool=pool)).eval())
    assert clip.tower.default_layer == "owner.image_encoder.patches"


class Resampler(nn.Module):
    """Queries that read the patches: their number may be that of a grid, but they are no cells."""

    def __init__(self, queries: int) -> None:
        super().__init__()
        self.patches, self.queries = nn.Conv2d(3, 32, 8, 8), nn.Parameter(torch.randn(1, queries, 32))
        self.decoder = nn.TransformerDecoderLayer(32, 2, 64, batch_first=True, dropout=0.0)
        self.norm = nn.LayerNorm(32)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patches(images).flatten(2).transpose(1, 2)
        return self.norm(self.decoder(self.queries.expand(len(images), -1, -1), patches)).mean(1)


@pytest.mark.parametrize("queries", [8, 16, 20, 64])
def test_queries_are_not_taken_for_cells(queries: int) -> None:
    torch.manual_seed(0)
    clip = find_clip(Encoders(Resampler(queries)).eval())
    assert clip.tower.default_layer == "owner.image_encoder.patches"


class SharedNorm(TokensOf):
    """Blocks of which each ends in the same norm, so that a module runs several times."""

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.norm(self.patches(images).flatten(2).transpose(1, 2) + self.position_embedding)
        for block in self.blocks.layers:
            tokens = self.norm(block(tokens))
        return tokens.mean(1)


def test_a_module_that_runs_several_times_is_a_layer_by_its_last_run() -> None:
    torch.manual_seed(0)
    clip = find_clip(Encoders(SharedNorm()).eval())
    assert clip.tower.default_layer == "owner.image_encoder.norm"
