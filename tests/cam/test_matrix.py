"""Every model of the zoo with every method that fits it: what must hold of all of them."""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

import tests.support.zoo.huggingface
import tests.support.zoo.open_clip
import tests.support.zoo.openai
import tests.support.zoo.timm
from clipcam_lightning.cam.capture import LayerCapture, ScoreCapture
from clipcam_lightning.cam.explain import explain
from clipcam_lightning.cam.methods import METHODS, Method
from clipcam_lightning.cam.methods.occlusion import MIN_CELLS
from clipcam_lightning.cam.model import ClipModel, find_clip
from clipcam_lightning.cam.towers import TOWERS
from clipcam_lightning.cam.towers.tower import AttentionTower, Tower

LIBRARIES = {
    "open_clip": tests.support.zoo.open_clip,
    "openai": tests.support.zoo.openai,
    "timm": tests.support.zoo.timm,
    "huggingface": tests.support.zoo.huggingface,
}
MODELS = {f"{library}: {name}": build for library, module in LIBRARIES.items() for name, build in module.MODELS.items()}


@dataclass(frozen=True)
class Case:
    """One model, what it is asked, and the answers so far, which several tests share."""

    clip: ClipModel
    images: Tensor
    texts: Tensor
    answers: dict[str, Tensor]

    def maps(self, method: str) -> Tensor:
        if method not in self.answers:
            self.answers[method] = explain(self.clip, self.images, self.texts, method=method).maps
        return self.answers[method]

    @property
    def tower(self) -> Tower:
        return self.clip.tower


@cache
def case(name: str) -> Case:
    torch.manual_seed(0)
    clip = find_clip(MODELS[name]())
    return Case(clip, torch.randn(2, 3, *clip.tower.input_size), torch.randn(2, 16), {})


def grid_of(tower: Tower) -> tuple[int, int]:
    """The grid of the default layer, from the layer itself."""
    seen: list[Tensor] = []
    handle = tower.clip.get_submodule(tower.default_layer).register_forward_hook(
        lambda _layer, _inputs, output: seen.append(output)
    )
    with torch.no_grad(), tower.native():
        tower.encode(torch.zeros(1, 3, *tower.input_size))
    handle.remove()
    if isinstance(tower, AttentionTower) and tower.attentions:
        return tower.grid(tower.input_size)
    height, width = (side for i, side in enumerate(seen[0].shape) if i not in (0, tower.channel_dim % 4))
    return height, width


def assert_same(found: Tensor, expected: Tensor, method: str) -> None:
    """Up to the order in which numbers are summed.

    XGrad-CAM divides by sums of activations and Ablation-CAM by a score, which may both be near 0.
    """
    loose = method in ("xgradcam", "ablationcam")
    assert_close(found, expected, atol=1e-5 if loose else 1e-6, rtol=1e-2 if loose else 1e-4)


@contextmanager
def positions_gone(model: nn.Module) -> Iterator[None]:
    """Set what is learned of positions to 0."""
    kept = {
        name: value.detach().clone()
        for name, value in model.named_parameters()
        if any(word in name for word in ("positional_embedding", "position_embedding", "pos_embed"))
    }
    with torch.no_grad():
        for name in kept:
            model.get_parameter(name).zero_()
        try:
            yield
        finally:
            for name, value in kept.items():
                model.get_parameter(name).copy_(value)


def shuffled(tower: Tower, images: Tensor, order: Tensor) -> Tensor:
    """The same patches in another order."""
    height, width = grid_of(tower)
    size = (images.shape[-2], images.shape[-1])
    patch = (size[0] // height, size[1] // width)
    return F.fold(F.unfold(images, patch, stride=patch)[..., order], size, patch, stride=patch)


def corners(images: Tensor) -> list[tuple[slice, slice, slice]]:
    """Of each image or grid: top left, top right, bottom left, bottom right."""
    halves = [(slice(0, side // 2), slice(-(side // 2), None)) for side in images.shape[2:]]
    return [(slice(None), *corner) for corner in product(*halves)]


def sees_no_order(tower: Tower) -> bool:
    """Whether only learned positions tell the patches apart: not convolutions over several of them, nor rotations."""
    if not (isinstance(tower, AttentionTower) and tower.attentions):
        return False
    images = torch.randn(1, 3, *tower.input_size)
    with torch.no_grad(), positions_gone(tower.clip):
        plain, found = (
            tower.encode(each) for each in (images, shuffled(tower, images, torch.randperm(math.prod(grid_of(tower)))))
        )
    return bool((plain - found).norm() < 1e-5 * plain.norm())


PAIRS = [(name, method) for name in MODELS for method in METHODS if not METHODS[method].missing(case(name).tower)]


def test_the_zoo_has_every_tower() -> None:
    assert {type(case(name).tower) for name in MODELS} == set(TOWERS)


def test_the_zoo_has_every_tower_with_attention_also_without_an_order_of_its_own() -> None:
    assert {type(case(name).tower) for name in ANY_ORDER} == {
        type(case(name).tower) for name in MODELS if getattr(case(name).tower, "attentions", ())
    }


@pytest.mark.parametrize(("name", "method"), PAIRS)
def test_maps_are_finite_and_on_the_grid_of_the_tower(name: str, method: str) -> None:
    maps, grid = case(name).maps(method), grid_of(case(name).tower)
    if method == "occlusion":  # it divides the cells of a coarse grid
        grid = tuple(side * math.ceil(MIN_CELLS / side) for side in grid)

    assert maps.shape == (2, 2, *grid)
    assert maps.isfinite().all()


@pytest.mark.parametrize(("name", "method"), PAIRS)
def test_an_image_ignores_the_rest_of_its_batch(name: str, method: str) -> None:
    alone = explain(case(name).clip, case(name).images[1:], case(name).texts, method=method).maps

    assert_same(alone, case(name).maps(method)[1:], method)


# What reads scores alone computes no gradient that could be missing.
@pytest.mark.parametrize(
    ("name", "method"), [(name, method) for name, method in PAIRS if METHODS[method].reads is not ScoreCapture]
)
def test_a_frozen_model_gives_the_maps_of_a_trainable_one(name: str, method: str) -> None:
    model, expected = case(name).clip.module, case(name).maps(method)
    model.requires_grad_(False)
    try:
        frozen = explain(case(name).clip, case(name).images, case(name).texts, method=method).maps
    finally:
        model.requires_grad_(True)

    assert_same(frozen, expected, method)


@cache
def compiled(name: str) -> nn.Module:
    """The same model with a compiled image tower that has run, before there was any hook."""
    model: Any = copy.deepcopy(case(name).clip.module)
    vision = "visual" if hasattr(model, "visual") else "vision_model"
    setattr(model, vision, torch.compile(getattr(model, vision), backend="eager"))
    with torch.no_grad():
        find_clip(model).tower.encode(case(name).images)
    return model


@pytest.mark.parametrize(("name", "method"), PAIRS)
def test_a_compiled_tower_gives_the_maps_of_an_eager_one(name: str, method: str) -> None:
    maps = explain(compiled(name), case(name).images, case(name).texts, method=method).maps

    assert_same(maps, case(name).maps(method), method)


@pytest.mark.parametrize("name", MODELS)
def test_what_changes_in_a_corner_of_the_image_changes_that_corner_of_the_grid(name: str) -> None:
    """A grid that is transposed or mirrored has the change in another one; convolutions spread it, but not so far."""
    clip, seen = case(name).clip, []

    def keep(capture: LayerCapture) -> Tensor:
        seen.append(capture.activations)
        return capture.activations[:, :1]

    images = case(name).images[:1].repeat(5, 1, 1, 1)
    for image, corner in zip(images[1:], corners(images[1:]), strict=True):
        image[corner] = torch.randn_like(image[corner])
    explain(clip, images, case(name).texts, method=Method(keep, LayerCapture), layers=0)

    changes = (seen[0][1:] - seen[0][:1]).square()
    assert [
        max(range(4), key=lambda i: change[corners(changes)[i]].mean()) for change in changes
    ] == list(range(4))  # fmt: skip


# What blends or hides several neighbouring cells at once knows which are neighbours.
NEIGHBOURLY = ("scorecam", "occlusion")
ANY_ORDER = [name for name in MODELS if sees_no_order(case(name).tower)]


@pytest.mark.parametrize(
    ("name", "method"), [(name, method) for name, method in PAIRS if name in ANY_ORDER and method not in NEIGHBOURLY]
)
def test_without_positions_shuffled_patches_shuffle_the_map(name: str, method: str) -> None:
    """A theorem: attention, and all else in a block, treats its tokens alike. Only the true order commutes with all."""
    clip, images, order = case(name).clip, case(name).images[:1], torch.randperm(math.prod(grid_of(case(name).tower)))
    both = torch.cat([images, shuffled(clip.tower, images, order)])
    with positions_gone(clip.module):
        plain, found = explain(clip, both, case(name).texts, method=method).maps.flatten(2)

    assert_same(found, plain[:, order], method)
