"""Checks of every model of a library with every method that fits it.

Tests are parametrised over names alone, and a model is built when its first test runs. Each library has a test file of
its own, so that ``--dist loadfile`` runs the libraries in parallel and each model is built by one process only.
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from clipcam_lightning.cam.capture import AttentionCapture, LayerCapture, ScoreCapture
from clipcam_lightning.cam.explain import explain
from clipcam_lightning.cam.methods import METHODS, Method
from clipcam_lightning.cam.methods.occlusion import MIN_CELLS
from clipcam_lightning.cam.model import ClipModel, find_clip
from clipcam_lightning.cam.towers.tower import AttentionTower, Tower
from tests.support.tolerances import MAP, SCORE, assert_equal_up_to_rounding

Build = Callable[[], nn.Module]

# Methods that do not fit a tower, by what the tower lacks.
UNFIT_WITHOUT_SUM = frozenset({"decomposition"})  # a class token that is a sum over the blocks
UNFIT_FOR_MEAN = frozenset({"grad_eclip", "decomposition"})  # pooled by the mean of the patches
UNFIT_WITHOUT_BLOCKS = frozenset({"legrad", "gem", "decomposition"})  # attention in the pool alone
UNFIT_WITHOUT_ATTENTION = frozenset(
    name for name, method in METHODS.items() if issubclass(method.reads, AttentionCapture)
)
# Methods that blend or hide neighbouring cells together, and so depend on which cells are neighbours.
NEIGHBOURHOOD_METHODS = ("scorecam", "occlusion")


@dataclass(frozen=True, eq=False)
class Case:
    """A model with inputs, and the maps computed so far, which several tests share."""

    clip: ClipModel
    images: Tensor
    texts: Tensor
    cached_maps: dict[str, Tensor]

    def maps(self, method: str) -> Tensor:
        if method not in self.cached_maps:
            self.cached_maps[method] = explain(self.clip, self.images, self.texts, method=method).maps
        return self.cached_maps[method]

    @property
    def tower(self) -> Tower:
        return self.clip.tower


@cache
def build_case(build: Build) -> Case:
    torch.manual_seed(0)
    clip = find_clip(build())
    return Case(clip, torch.randn(2, 3, *clip.tower.input_size), torch.randn(2, 16), {})


@cache
def compile_tower(case: Case) -> nn.Module:
    """Copy the model, compile its image tower and run it once before any hook is registered."""
    model: Any = copy.deepcopy(case.clip.module)
    vision = "visual" if hasattr(model, "visual") else "vision_model"
    setattr(model, vision, torch.compile(getattr(model, vision), backend="eager"))
    with torch.no_grad():
        find_clip(model).tower.encode(case.images)
    return model


class MatrixChecks:
    """Test methods that every library shares.

    Attributes:
        models: the library's models by name.
        unfit: methods that do not fit a model, by the model's name.
        order_free: names of the models in which only learned positions distinguish the patches, in contrast to
            convolutions over several patches and to rotary positions.
    """

    models: ClassVar[Mapping[str, Build]]
    unfit: ClassVar[Mapping[str, frozenset[str]]] = {}
    order_free: ClassVar[Sequence[str]] = ()

    @classmethod
    def pairs(cls) -> list[tuple[str, str]]:
        return [(name, method) for name in cls.models for method in METHODS if method not in cls.unfit.get(name, ())]

    @classmethod
    def pytest_generate_tests(cls, metafunc: pytest.Metafunc) -> None:
        if "method" in metafunc.fixturenames:
            is_selected = PAIR_FILTERS.get(metafunc.function.__name__, lambda *_: True)
            metafunc.parametrize(("name", "method"), [pair for pair in cls.pairs() if is_selected(cls, *pair)])
        elif "name" in metafunc.fixturenames:
            metafunc.parametrize("name", cls.models)

    def case(self, name: str) -> Case:
        return build_case(self.models[name])

    def test_the_declared_methods_do_not_fit_and_all_others_do(self, name: str) -> None:
        unfit = {method for method in METHODS if METHODS[method].missing(self.case(name).tower)}

        assert unfit == self.unfit.get(name, frozenset())

    def test_maps_are_finite_and_on_the_grid_of_the_tower(self, name: str, method: str) -> None:
        case = self.case(name)
        grid = measure_grid(case.tower)
        if method == "occlusion":  # it divides the cells of a coarse grid
            grid = tuple(side * math.ceil(MIN_CELLS / side) for side in grid)

        maps = case.maps(method)

        assert maps.shape == (2, 2, *grid)
        assert maps.isfinite().all()

    def test_the_map_of_an_image_does_not_depend_on_its_batch(self, name: str, method: str) -> None:
        case = self.case(name)

        alone = explain(case.clip, case.images[1:], case.texts, method=method).maps

        assert_maps_close(alone, case.maps(method)[1:], method)

    def test_a_frozen_model_gives_the_maps_of_a_trainable_one(self, name: str, method: str) -> None:
        case = self.case(name)
        expected = case.maps(method)
        case.clip.module.requires_grad_(False)
        try:
            frozen = explain(case.clip, case.images, case.texts, method=method).maps
        finally:
            case.clip.module.requires_grad_(True)

        assert_maps_close(frozen, expected, method)

    def test_a_compiled_tower_gives_the_maps_of_an_eager_one(self, name: str, method: str) -> None:
        case = self.case(name)

        maps = explain(compile_tower(case), case.images, case.texts, method=method).maps

        assert_maps_close(maps, case.maps(method), method)

    def test_a_change_in_a_corner_of_the_image_changes_that_corner_of_the_grid(self, name: str) -> None:
        """A transposed or mirrored grid has the change elsewhere. Convolutions spread it, but less far."""
        case, recorded = self.case(name), []

        def record(capture: LayerCapture) -> Tensor:
            recorded.append(capture.activations)
            return capture.activations[:, :1]

        images = case.images[:1].repeat(5, 1, 1, 1)
        for image, corner in zip(images[1:], corner_slices(images[1:]), strict=True):
            image[corner] = torch.randn_like(image[corner])
        explain(case.clip, images, case.texts, method=Method(record, LayerCapture), layers=0)

        changes = (recorded[0][1:] - recorded[0][:1]).square()
        corners = corner_slices(changes)
        most_changed = [max(range(4), key=lambda i, c=change: c[corners[i]].mean()) for change in changes]
        assert most_changed == [0, 1, 2, 3]

    def test_the_declared_models_know_no_order_without_positions(self, name: str) -> None:
        assert is_order_free(self.case(name).tower) == (name in self.order_free)

    def test_every_tower_with_attention_has_a_model_that_knows_no_order(self) -> None:
        towers = {name: self.case(name).tower for name in self.models}

        assert {type(towers[name]) for name in self.order_free} == {
            type(tower) for tower in towers.values() if getattr(tower, "attentions", ())
        }

    def test_without_positions_shuffled_patches_shuffle_the_map(self, name: str, method: str) -> None:
        """A theorem: attention, and everything else in a block, is equivariant under permutations of its tokens."""
        case = self.case(name)
        images, order = case.images[:1], torch.randperm(math.prod(measure_grid(case.tower)))
        both = torch.cat([images, shuffle_patches(case.tower, images, order)])
        with zeroed_positions(case.clip.module):
            plain, shuffled = explain(case.clip, both, case.texts, method=method).maps.flatten(2)

        assert_maps_close(shuffled, plain[:, order], method)


PAIR_FILTERS: dict[str, Callable[[type[MatrixChecks], str, str], bool]] = {
    # Perturbation-based methods compute no gradient that a frozen model could lack.
    "test_a_frozen_model_gives_the_maps_of_a_trainable_one": (
        lambda _checks, _name, method: METHODS[method].reads is not ScoreCapture
    ),
    "test_without_positions_shuffled_patches_shuffle_the_map": (
        lambda checks, name, method: name in checks.order_free and method not in NEIGHBOURHOOD_METHODS
    ),
}


def measure_grid(tower: Tower) -> tuple[int, int]:
    """Read the grid of the default layer from the layer's output."""
    outputs: list[Tensor] = []
    handle = tower.clip.get_submodule(tower.default_layer).register_forward_hook(
        lambda _layer, _inputs, output: outputs.append(output)
    )
    with torch.no_grad(), tower.native():
        tower.encode(torch.zeros(1, 3, *tower.input_size))
    handle.remove()
    if isinstance(tower, AttentionTower) and tower.attentions:
        return tower.grid(tower.input_size)
    height, width = (side for i, side in enumerate(outputs[0].shape) if i not in (0, tower.channel_dim % 4))
    return height, width


def assert_maps_close(maps: Tensor, expected: Tensor, method: str) -> None:
    """Compare up to the order of summation.

    XGrad-CAM divides by sums of activations and Ablation-CAM by a score, which may be close to 0.
    """
    if method in ("xgradcam", "ablationcam"):
        assert_close(maps, expected, atol=1e-5, rtol=1e-2)
    else:
        assert_equal_up_to_rounding(maps, expected, absolute=SCORE if METHODS[method].reads is ScoreCapture else 0.0)


@contextmanager
def zeroed_positions(model: nn.Module) -> Iterator[None]:
    """Set the learned positions to 0."""
    own = {
        name: value.detach().clone()
        for name, value in model.named_parameters()
        if any(word in name for word in ("positional_embedding", "position_embedding", "pos_embed"))
    }
    with torch.no_grad():
        for name in own:
            model.get_parameter(name).zero_()
        try:
            yield
        finally:
            for name, value in own.items():
                model.get_parameter(name).copy_(value)


def shuffle_patches(tower: Tower, images: Tensor, order: Tensor) -> Tensor:
    height, width = measure_grid(tower)
    size = (images.shape[-2], images.shape[-1])
    patch = (size[0] // height, size[1] // width)
    return F.fold(F.unfold(images, patch, stride=patch)[..., order], size, patch, stride=patch)


def corner_slices(images: Tensor) -> list[tuple[slice, slice, slice]]:
    """Slices of the top left, top right, bottom left and bottom right of each image or grid."""
    halves = [(slice(0, side // 2), slice(-(side // 2), None)) for side in images.shape[2:]]
    return [(slice(None), *corner) for corner in product(*halves)]


def is_order_free(tower: Tower) -> bool:
    """Check by experiment whether the embedding without learned positions ignores the order of the patches."""
    if not (isinstance(tower, AttentionTower) and tower.attentions):
        return False
    images, order = torch.randn(1, 3, *tower.input_size), torch.randperm(math.prod(measure_grid(tower)))
    with torch.no_grad(), zeroed_positions(tower.clip):
        plain, shuffled = tower.encode(images), tower.encode(shuffle_patches(tower, images, order))
    return bool((plain - shuffled).norm() < MAP * plain.norm())
