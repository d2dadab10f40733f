"""Perturbation-based methods, compared with loops over complete forwards, with pytorch-grad-cam, and on a model that
depends on a single patch."""

from copy import deepcopy
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from clipcam_lightning.cam.capture import ScoreCapture
from clipcam_lightning.cam.explain import explain
from clipcam_lightning.cam.methods import METHODS
from clipcam_lightning.cam.methods.occlusion import CLUSTERS
from tests.oracles.peers import peer_maps, post_process
from tests.oracles.perturbation import ORACLES, Scorer
from tests.oracles.randomize import randomize_parameters
from tests.oracles.scores import SCORES, compute_cosines
from tests.oracles.transformer import ReferenceViT
from tests.support.tolerances import MAP, SCORE, assert_equal_up_to_rounding
from tests.support.zoo.open_clip import resnet, vit

pytestmark = pytest.mark.slow

VIT = {"image_size": (32, 48)}  # a 4x6 grid
LAYERS = {
    "vit": (lambda: vit(**VIT), "visual.transformer.resblocks.2.ln_1"),
    "vit, first block": (lambda: vit(**VIT), "visual.transformer.resblocks.0.ln_1"),
    "vit, whole block": (lambda: vit(**VIT, pool_type="avg"), "visual.transformer.resblocks.1"),
    "patch embedding": (lambda: vit(**VIT), "visual.conv1"),  # a grid still, where blocks have tokens
    "resnet": (lambda: resnet(96), "visual.layer4"),
    "resnet, third stage": (lambda: resnet(64), "visual.layer3"),
}


def build_model(name: str) -> tuple[Any, str, tuple[int, int] | None]:
    """Build a random model; return it with the mapped layer, and the layer's grid if its output is tokens."""
    build, layer = LAYERS[name]
    return randomize_parameters(build()), layer, (4, 6) if name.startswith("vit") else None


def images_for(model: Any, count: int = 2) -> Tensor:
    size = model.visual.image_size
    return torch.randn(count, 3, *(size if isinstance(size, tuple) else (size, size)))


def texts_near(model: Any, images: Tensor) -> Tensor:
    """Draw two texts similar to the images and one opposite to the first: a score close to 0 would only be rounding."""
    with torch.no_grad():
        features = F.normalize(model.encode_image(images), dim=-1)
    return torch.stack([features[0], features[-1], -features[0]]) + 0.2 * torch.randn(3, 16)


def assert_maps_equal(maps: Tensor, expected: Tensor, method: str, scorer: Scorer, images: Tensor) -> None:
    """Compare float32 with float64; a difference of scores has the absolute precision of the scores.

    Ablation-CAM divides such a difference by a score, multiplies it by the activations and sums over the channels.
    """
    assert expected.std() > 0
    factor = 1.0
    if method == "ablationcam":
        activations = torch.tensor([scorer.compute_activations(image) for image in images])
        scores = torch.tensor([scorer.compute_scores(image) for image in images])
        factor = float(activations.abs().sum(dim=1).max() / scores.abs().min())
    assert_equal_up_to_rounding(maps, expected, absolute=factor * SCORE)


@pytest.mark.parametrize("target", ["similarity", "contrast"])
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("method", ORACLES)
def test_maps_equal_those_of_loops_over_complete_forwards(method: str, name: str, target: str) -> None:
    model, layer, grid = build_model(name)
    images = images_for(model, 2 if grid else 1)
    texts = texts_near(model, images)
    double = deepcopy(model).double()
    scorer = Scorer(double, double.get_submodule(layer), grid, texts, SCORES[target])

    maps = explain(model, images, texts, method=method, layers=layer, target=target, score_scale=1.0, batch_size=7).maps

    expected = torch.tensor([ORACLES[method](scorer, image) for image in images])
    assert_maps_equal(maps, expected, method, scorer, images)


@pytest.mark.parametrize(("method", "name"), [("scorecam", "vit"), ("scorecam", "resnet"), ("ablationcam", "resnet")])
def test_maps_equal_those_of_pytorch_grad_cam(method: str, name: str) -> None:
    """Not Ablation-CAM of a ViT, where the package sets a channel to its minimum minus 1e7, and the paper to 0."""
    model, layer, grid = build_model(name)
    images = images_for(model)
    texts = texts_near(model, images)

    maps = explain(model, images, texts, method=method, layers=layer, score_scale=1.0).maps[range(2), range(2)]

    size = (images.shape[2], images.shape[3])
    expected = peer_maps(method, model.visual, model.get_submodule(layer), images, texts, grid)
    assert_close(post_process(maps, size), expected, atol=MAP, rtol=0)
    assert maps.amax() > 0, "all-zero maps would prove nothing"


def test_score_cam_of_pytorch_grad_cam_enlarges_its_masks_differently() -> None:
    """Without this the adjustment of the oracle could be removed: corners on corners instead of centres on centres."""
    model, layer, grid = build_model("vit")
    images = images_for(model)
    texts = texts_near(model, images)
    adjusted, original = (
        peer_maps("scorecam", model.visual, model.get_submodule(layer), images, texts, grid, adjusted=adjusted)
        for adjusted in (True, False)
    )

    assert abs(adjusted - original).max() > 1e-2


@pytest.mark.parametrize("layers", [0, 1, -1, (1, -1)])
@pytest.mark.parametrize("tower", ["vit", "resnet"])
def test_ablation_from_the_layer_on_equals_ablation_in_complete_forwards(tower: str, layers: Any) -> None:
    """Blocks before the layer do not run again, which must not change the scores."""
    model = randomize_parameters(vit(**VIT) if tower == "vit" else resnet(64))
    images = images_for(model)
    texts = texts_near(model, images)
    names = explain(model, images, texts, method="gradcam", layers=layers).layers
    double = deepcopy(model).double()
    grid = (4, 6) if tower == "vit" else None
    scorers = [Scorer(double, double.get_submodule(name), grid, texts, SCORES["similarity"]) for name in names]

    fused = explain(model, images, texts, method="ablationcam", layers=layers, fuse="max").maps

    maps = [torch.tensor([ORACLES["ablationcam"](scorer, image) for image in images]) for scorer in scorers]
    size = max(m.shape[-2:] for m in maps)
    expected = torch.stack([F.interpolate(m, size=size, mode="bilinear") for m in maps]).amax(0)
    assert_maps_equal(fused, expected, "ablationcam", scorers[0], images)


def test_ablation_runs_only_the_blocks_after_the_layer() -> None:
    model = randomize_parameters(vit(**VIT))
    images, runs = images_for(model, 1), [0, 0, 0]
    for i, block in enumerate(model.visual.transformer.resblocks):
        block.mlp.register_forward_hook(lambda *_, i=i: runs.__setitem__(i, runs[i] + 1))

    explain(model, images, texts_near(model, images), method="ablationcam", layers=-1)

    assert runs == [2, 2, 3]  # texts_near, the unchanged image; and 32 channels in one batch through the last block


@pytest.mark.parametrize("method", ["occlusion", "cluster_occlusion", "scorecam"])
def test_only_the_patch_that_the_score_depends_on_is_highlighted(method: str) -> None:
    model = DependsOnOnePatch(row=1, column=2)
    images, texts = torch.rand(2, 3, 32, 48) + 0.5, torch.eye(16)[:1]

    maps = explain(model, images, texts, method=method, layers=0).maps

    for map_ in maps[:, 0]:
        if method == "occlusion":  # squares of 8 by 12 pixels every 4 pixels; the patch is 8 by 8 around (12, 20)
            overlaps = [[abs(4 * r + 2 - 12) < 8 and abs(4 * c + 2 - 20) < 10 for c in range(12)] for r in range(8)]
            assert torch.equal(map_ > 0, torch.tensor(overlaps))
            assert map_[2:4, 4:6].amin() > map_.flatten().sort().values[-5]  # these squares hide most of the patch
        else:
            assert map_[1, 2] == map_.amax() > map_.mean()
        if method == "cluster_occlusion":
            assert map_.count_nonzero() == (map_ == map_[1, 2]).sum() < 24


class DependsOnOnePatch(nn.Module):
    """Runs a ViT, which has activations, but its embedding depends only on the brightness of one patch of the image."""

    def __init__(self, row: int, column: int) -> None:
        super().__init__()
        clip = vit(**VIT)
        self.visual, self.row, self.column = clip.visual, row, column

    def encode_image(self, images: Tensor) -> Tensor:
        self.visual(images)
        patch = images[:, :, 8 * self.row : 8 * self.row + 8, 8 * self.column : 8 * self.column + 8]
        brightness = patch.mean(dim=(1, 2, 3))
        return torch.stack([brightness, torch.ones_like(brightness), *[torch.zeros_like(brightness)] * 14], dim=1)

    def encode_text(self, tokens: Tensor) -> Tensor:
        raise AssertionError("these tests pass embeddings")


def test_patches_of_a_cluster_share_the_loss_from_hiding_all_of_them() -> None:
    model, layer, grid = build_model("vit")
    images = images_for(model)
    texts = texts_near(model, images)
    double = deepcopy(model).double()
    scorer = Scorer(double, double.get_submodule(layer), grid, texts, SCORES["similarity"])

    maps = explain(model, images, texts, method="cluster_occlusion").maps

    for (i, image), p in product(enumerate(images), range(2)):
        values = maps[i, p].unique()
        assert 2 <= len(values) <= CLUSTERS
        for value in values:
            hidden = image.clone()
            for row, column in (maps[i, p] == value).nonzero().tolist():
                hidden[:, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = 0
            loss = scorer.compute_scores(image)[p] - scorer.compute_scores(hidden)[p]
            assert_close(float(value), loss, atol=SCORE, rtol=0)


@pytest.mark.parametrize("target", ["similarity", "contrast"])
@pytest.mark.parametrize("pool", ["class token", "attention"])
@torch.no_grad()
def test_a_cluster_hidden_from_all_attention_is_as_good_as_removed(pool: str, target: str) -> None:
    """No token attends to it and nothing reads it, so a sequence without its tokens gives the same embedding."""
    options = {} if pool == "class token" else {"attentional_pool": True, "attn_pooler_heads": 2}
    model = randomize_parameters(vit(**options))
    image = torch.randn(3, 16, 32)
    texts, reference = texts_near(model, image[None]), ReferenceViT(model.visual)
    tokens = reference.place(reference.cut_patches(image.double()))

    maps = explain(model, image[None], texts, method="cci", target=target).maps[0]

    def compute_scores(stays: Tensor) -> Tensor:
        cosines = compute_cosines(reference.run(tokens[stays]).features, texts)
        return torch.stack([SCORES[target](cosines, p) for p in range(len(texts))]).float()

    whole = compute_scores(torch.ones(9, dtype=torch.bool))
    values = maps[0].unique()
    assert 2 <= len(values) <= 7
    for value in values:
        cluster = (maps[0] == value).flatten()
        losses = whole - compute_scores(torch.cat([torch.tensor([True]), ~cluster]))
        assert_close(maps.flatten(1)[:, cluster], losses[:, None].expand(-1, int(cluster.sum())), atol=SCORE, rtol=0)


def test_patches_with_the_same_direction_form_a_cluster() -> None:
    """Eight directions of various lengths, spread over the image."""
    directions, which = F.normalize(torch.randn(CLUSTERS, 5), dim=1), torch.arange(24).reshape(4, 6) * 5 % CLUSTERS
    activations = (directions[which] * (1 + torch.rand(4, 6, 1))).permute(2, 0, 1)[None]

    def score_variants(variant: Any, count: int) -> Tensor:
        return -torch.arange(float(count))[None, :, None]  # a different loss for every cluster

    capture = ScoreCapture(
        activations,
        torch.zeros(1, 3, 32, 48),
        torch.zeros(1, 1),
        score_variants,
        lambda: torch.zeros(0),
        torch.zeros_like,
    )

    map_ = METHODS["cluster_occlusion"](capture)[0, 0]

    assert torch.equal(map_[:, :, None, None] == map_, which[:, :, None, None] == which)


@pytest.mark.parametrize("method", ["scorecam", "ablationcam", "occlusion", "cluster_occlusion", "cci"])
def test_batch_size_bounds_the_variants_per_forward(method: str) -> None:
    model = randomize_parameters(vit(**VIT))
    images, texts, sizes = images_for(model), torch.randn(1, 16), []
    expected = explain(model, images, texts, method=method).maps
    model.visual.ln_post.register_forward_hook(lambda _m, _i, output: sizes.append(len(output)))

    maps = explain(model, images, texts, method=method, batch_size=5).maps

    assert max(sizes) == 5
    assert_close(maps, expected)
