"""The factor on the cosine before the target: what it changes, and what the methods use by default."""

from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from clipcam_lightning.cam.explain import explain
from clipcam_lightning.cam.methods import METHODS
from clipcam_lightning.cam.settings import MapSettings
from clipcam_lightning.cam.targets import LogSoftmax
from clipcam_lightning.errors import ConfigError
from tests.oracles import attention, perturbation
from tests.oracles.perturbation import Scorer
from tests.oracles.randomize import randomize_parameters
from tests.oracles.transformer import ReferenceViT
from tests.support.tolerances import MAP, SCORE, assert_equal_up_to_rounding
from tests.support.zoo.open_clip import resnet, vit

SCALE = 30.0
NOT_LINEAR = {"gradcam_pp", "finercam", "scorecam", "clip_surgery"}
WITHOUT_SCORE = {"eigencam", "fem", "rollout", "ablationcam"}  # no score, or a ratio of scores


def logit(cosines: Tensor, p: int) -> Tensor:
    return SCALE * cosines[p]


def draw_case(model: Any, size: tuple[int, int]) -> tuple[Any, Tensor, Tensor]:
    """Randomize the model; draw two images and four texts, two of them close to the images."""
    model, images = randomize_parameters(model), torch.randn(2, 3, *size)
    with torch.no_grad():
        near = model.encode_image(images)
    return model, images, torch.cat([near, -near]) + 0.2 * torch.randn(4, 16)


@pytest.mark.parametrize("method", sorted(METHODS.keys() - NOT_LINEAR))
def test_the_map_of_a_method_that_is_linear_in_the_score_is_proportional_to_the_scale(method: str) -> None:
    model, images, texts = draw_case(vit(), (16, 32))

    cosine, scaled = (explain(model, images, texts, method=method, score_scale=scale) for scale in (1.0, SCALE))

    factor = 1.0 if method in WITHOUT_SCORE else SCALE
    assert_equal_up_to_rounding(scaled.maps, factor * cosine.maps, absolute=factor * SCORE)
    assert torch.equal(scaled.similarity, cosine.similarity), "the similarity stays the cosine"


@pytest.mark.parametrize("method", sorted(NOT_LINEAR))
def test_the_map_of_any_other_method_is_not(method: str) -> None:
    model, images, texts = draw_case(vit(), (16, 32))

    cosine, scaled = (explain(model, images, texts, method=method, score_scale=scale).maps for scale in (1.0, SCALE))

    cosine, scaled = (maps / maps.abs().amax((2, 3), keepdim=True) for maps in (cosine, scaled))
    assert (scaled - cosine).abs().max() > 0.01


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_score_cam_equals_loops_over_complete_forwards_that_score_logits(name: str) -> None:
    build, layer, grid, size = {
        "vit": (vit, "visual.transformer.resblocks.2.ln_1", (2, 4), (16, 32)),
        "resnet": (lambda: resnet(64), "visual.layer3", None, (64, 64)),
    }[name]
    model, images, texts = draw_case(build(), size)
    double = deepcopy(model).double()
    scorer = Scorer(double, double.get_submodule(layer), grid, texts, logit)

    maps = explain(model, images, texts, method="scorecam", layers=layer, score_scale=SCALE).maps

    expected = torch.tensor([perturbation.scorecam(scorer, image) for image in images])
    # An error of the score is a relative error of its exponential.
    assert_equal_up_to_rounding(maps, expected, tolerance=MAP + SCALE * SCORE)


@pytest.mark.parametrize("method", ["gae", "clip_surgery"])
@pytest.mark.parametrize("pool", ["class token", "attention"])
def test_a_method_that_reads_several_blocks_equals_the_slow_derivation_from_logits(method: str, pool: str) -> None:
    build = vit() if pool == "class token" else vit(attentional_pool=True, attn_pooler_heads=2)
    model, images, texts = draw_case(build, (16, 32))
    reference = ReferenceViT(model.visual)
    rows = [
        [attention.Inputs(reference, reference(image), texts, logit, p, (0, 1, 2)) for p in range(len(texts))]
        for image in images
    ]

    maps = explain(model, images, texts, method=method, layers=(0, 1, 2), score_scale=SCALE).maps

    oracle = attention.ORACLES[method]
    expected = torch.stack([torch.stack([oracle(inputs) for inputs in row]) for row in rows]).float()
    assert_equal_up_to_rounding(maps, expected)


def test_one_step_of_relevance_is_linear_in_the_score_and_two_are_not() -> None:
    """A pool after no block, as of a ResNet, is one step; a pool after one block is two."""
    for build, size, is_linear in (
        (resnet(), (64, 64), True),
        (vit(), (16, 32), True),
        (vit(attentional_pool=True, attn_pooler_heads=2), (16, 32), False),
    ):
        model, images, texts = draw_case(build, size)
        cosine, scaled = (explain(model, images, texts, method="gae", score_scale=scale).maps for scale in (1.0, SCALE))
        difference = (scaled / scaled.amax() - cosine / cosine.amax()).abs().max()
        assert (difference < MAP) == is_linear


def test_a_method_has_its_own_scale_unless_another_is_chosen() -> None:
    model, images, texts = draw_case(vit(), (16, 32))
    own = replace(METHODS["gradcam"], score_scale=SCALE)

    default, chosen = (explain(model, images, texts, method=own, score_scale=scale) for scale in (None, 2.0))

    cosine = explain(model, images, texts, method="gradcam")
    assert (default.score_scale, chosen.score_scale, cosine.score_scale) == (SCALE, 2.0, 1.0)
    assert_close(default.maps, SCALE * cosine.maps)
    assert_close(chosen.maps, 2 * cosine.maps)


def test_only_score_cam_has_a_scale_of_its_own() -> None:
    assert {name: method.score_scale for name, method in METHODS.items() if method.score_scale != 1} == {"scorecam": 15}


def test_the_scale_of_a_method_is_left_out_for_a_target_with_a_temperature() -> None:
    model, images, texts = draw_case(vit(), (16, 32))
    own = replace(METHODS["gradcam"], score_scale=SCALE)

    default = explain(model, images, texts, method=own, target="logsoftmax")
    chosen = explain(model, images, texts, method=own, target="logsoftmax", score_scale=2.0)

    assert default.score_scale == 1
    assert torch.equal(default.maps, explain(model, images, texts, method="gradcam", target="logsoftmax").maps)
    doubled = LogSoftmax(temperature=200.0)
    assert_close(chosen.maps, explain(model, images, texts, method="gradcam", target=doubled).maps)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("inf"), float("nan")])
def test_a_scale_that_is_not_positive_and_finite_is_refused(scale: float) -> None:
    with pytest.raises(ConfigError, match=r"score_scale must be a positive number, or None \(got "):
        MapSettings(score_scale=scale)
