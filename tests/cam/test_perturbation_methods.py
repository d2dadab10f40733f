"""Methods that try changed inputs out: against loops that run the whole model, a peer's package, and a model whose
secret is known."""

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
from tests.oracles.lively import lively
from tests.oracles.peers import peer_maps, post_processed
from tests.oracles.perturbation import TRIED, Trials
from tests.oracles.scores import SCORES
from tests.support.zoo.open_clip import resnet, vit

VIT = {"image_size": (32, 48)}  # a 4x6 grid
LAYERS = {
    "vit": (lambda: vit(**VIT), "visual.transformer.resblocks.2.ln_1"),
    "vit, first block": (lambda: vit(**VIT), "visual.transformer.resblocks.0.ln_1"),
    "vit, whole block": (lambda: vit(**VIT, pool_type="avg"), "visual.transformer.resblocks.1"),
    "resnet": (lambda: resnet(96), "visual.layer4"),
    "resnet, third stage": (lambda: resnet(64), "visual.layer3"),
}


def built(name: str) -> tuple[Any, str, tuple[int, int] | None]:
    """A lively model, the layer that is mapped, and its grid if it gives tokens."""
    build, layer = LAYERS[name]
    return lively(build()), layer, (4, 6) if name.startswith("vit") else None


def images_for(model: Any, count: int = 2) -> Tensor:
    size = model.visual.image_size
    return torch.randn(count, 3, *(size if isinstance(size, tuple) else (size, size)))


def texts_near(model: Any, images: Tensor) -> Tensor:
    """Two like the images and one unlike the first: shares of a score near 0 would be shares of rounding."""
    with torch.no_grad():
        features = F.normalize(model.encode_image(images), dim=-1)
    return torch.stack([features[0], features[-1], -features[0]]) + 0.2 * torch.randn(3, 16)


def assert_maps_equal(found: Tensor, expected: Tensor) -> None:
    """As float32 comes to float64: a difference of scores has their absolute precision, a few times 1e-7."""
    assert expected.std() > 0
    assert_close(found, expected, atol=1e-6 + 1e-4 * float(expected.abs().amax()), rtol=0)


@pytest.mark.parametrize("target", ["similarity", "contrast"])
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("method", TRIED)
def test_equals_loops_over_whole_passes(method: str, name: str, target: str) -> None:
    model, layer, grid = built(name)
    images = images_for(model, 2 if grid else 1)
    texts = texts_near(model, images)
    double = deepcopy(model).double()
    trials = Trials(double, double.get_submodule(layer), grid, texts, SCORES[target])

    found = explain(model, images, texts, method=method, layers=layer, target=target, batch_size=7).maps

    assert_maps_equal(found, torch.tensor([TRIED[method](trials, image) for image in images]))


@pytest.mark.parametrize(("method", "name"), [("scorecam", "vit"), ("scorecam", "resnet"), ("ablationcam", "resnet")])
def test_equals_pytorch_grad_cam(method: str, name: str) -> None:
    """On a ViT the peer's Ablation-CAM does not set a channel to 0, as the paper does, but to its minimum minus 1e7."""
    model, layer, grid = built(name)
    images = images_for(model)
    texts = texts_near(model, images)

    found = explain(model, images, texts, method=method, layers=layer).maps[range(2), range(2)]

    size = (images.shape[2], images.shape[3])
    theirs = peer_maps(method, model.visual, model.get_submodule(layer), images, texts, grid)
    assert abs(post_processed(found, size) - theirs).max() < 2e-5
    assert found.amax() > 0, "all-zero maps equal anything"


def test_score_cam_differs_from_the_peer_in_how_masks_are_enlarged() -> None:
    """The peer puts corners on corners there, but enlarges its maps with centres on centres, as is done here."""
    model, layer, grid = built("vit")
    images = images_for(model)
    texts = texts_near(model, images)
    theirs, as_it_is = (
        peer_maps("scorecam", model.visual, model.get_submodule(layer), images, texts, grid, as_the_peer_is=raw)
        for raw in (False, True)
    )

    assert abs(theirs - as_it_is).max() > 1e-2


@pytest.mark.parametrize("layers", [0, 1, -1, (1, -1)])
@pytest.mark.parametrize("tower", ["vit", "resnet"])
def test_an_ablated_pass_resumes_where_a_whole_one_would_be(tower: str, layers: Any) -> None:
    """Blocks before the layer do not run again, and the scores are those of a hook in a whole pass."""
    model = lively(vit(**VIT) if tower == "vit" else resnet(64))
    images = images_for(model)
    texts = texts_near(model, images)
    names = explain(model, images, texts, method="gradcam", layers=layers).layers
    double = deepcopy(model).double()
    grid = (4, 6) if tower == "vit" else None
    each = [Trials(double, double.get_submodule(name), grid, texts, SCORES["similarity"]) for name in names]

    found = explain(model, images, texts, method="ablationcam", layers=layers, fuse="max").maps

    maps = [torch.tensor([TRIED["ablationcam"](trials, image) for image in images]) for trials in each]
    size = max(m.shape[-2:] for m in maps)
    assert_maps_equal(found, torch.stack([F.interpolate(m, size=size, mode="bilinear") for m in maps]).amax(0))


def test_an_ablated_pass_computes_only_what_follows_the_layer() -> None:
    model = lively(vit(**VIT))
    images, runs = images_for(model, 1), [0, 0, 0]
    for i, block in enumerate(model.visual.transformer.resblocks):
        block.mlp.register_forward_hook(lambda *_, i=i: runs.__setitem__(i, runs[i] + 1))

    explain(model, images, texts_near(model, images), method="ablationcam", layers=-1)

    assert runs == [2, 2, 3]  # texts_near, the whole pass; and 32 channels in one batch through the last block alone


@pytest.mark.parametrize("method", ["occlusion", "cluster_occlusion", "scorecam"])
def test_only_the_patch_that_the_score_depends_on_is_marked(method: str) -> None:
    model = SeesOnePatch(row=1, column=2)
    images, texts = torch.rand(2, 3, 32, 48) + 0.5, torch.eye(16)[:1]

    maps = explain(model, images, texts, method=method, layers=0).maps

    for found in maps[:, 0]:
        if method == "occlusion":  # squares of 8 by 12 pixels every 4 pixels; the patch is 8 by 8 around (12, 20)
            touches = [[abs(4 * r + 2 - 12) < 8 and abs(4 * c + 2 - 20) < 10 for c in range(12)] for r in range(8)]
            assert torch.equal(found > 0, torch.tensor(touches))
            assert found[2:4, 4:6].amin() > found.flatten().sort().values[-5]  # they hide most of it
        else:
            assert found[1, 2] == found.amax() > found.mean()
        if method == "cluster_occlusion":
            assert found.count_nonzero() == (found == found[1, 2]).sum() < 24


class SeesOnePatch(nn.Module):
    """A ViT runs, and has its activations; but the embedding tells only how bright one patch of the image is."""

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
        raise AssertionError("these tests give embeddings")


def test_members_of_a_cluster_share_the_drop_of_hiding_them_all() -> None:
    model, layer, grid = built("vit")
    images = images_for(model)
    texts = texts_near(model, images)
    double = deepcopy(model).double()
    trials = Trials(double, double.get_submodule(layer), grid, texts, SCORES["similarity"])

    maps = explain(model, images, texts, method="cluster_occlusion").maps

    for (i, image), p in product(enumerate(images), range(2)):
        values = maps[i, p].unique()
        assert 2 <= len(values) <= CLUSTERS
        for value in values:
            hidden = image.clone()
            for row, column in (maps[i, p] == value).nonzero().tolist():
                hidden[:, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = 0
            assert_close(float(value), trials.scored(image)[p] - trials.scored(hidden)[p], atol=1e-6, rtol=1e-4)


def test_patches_of_one_direction_are_one_cluster() -> None:
    """Eight directions in all lengths, spread over the picture."""
    directions, which = F.normalize(torch.randn(CLUSTERS, 5), dim=1), torch.arange(24).reshape(4, 6) * 5 % CLUSTERS
    activations = (directions[which] * (1 + torch.rand(4, 6, 1))).permute(2, 0, 1)[None]

    def rescored(variant: Any, count: int) -> Tensor:
        return -torch.arange(float(count))[None, :, None]  # every cluster its own drop

    capture = ScoreCapture(activations, torch.zeros(1, 3, 32, 48), torch.zeros(1, 1), rescored, lambda: torch.zeros(0))

    found = METHODS["cluster_occlusion"](capture)[0, 0]

    assert torch.equal(found[:, :, None, None] == found, which[:, :, None, None] == which)


@pytest.mark.parametrize("method", ["scorecam", "ablationcam", "occlusion", "cluster_occlusion"])
def test_no_more_than_a_batch_goes_through_the_model_at_once(method: str) -> None:
    model = lively(vit(**VIT))
    images, texts, sizes = images_for(model), torch.randn(1, 16), []
    expected = explain(model, images, texts, method=method).maps
    model.visual.ln_post.register_forward_hook(lambda _m, _i, output: sizes.append(len(output)))

    found = explain(model, images, texts, method=method, batch_size=5).maps

    assert max(sizes) == 5
    assert_close(found, expected)
