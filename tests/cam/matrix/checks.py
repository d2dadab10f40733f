"""Checks of every model of a library with every method that fits it.

Tests are parametrised over names alone, and a model is built when its first test runs. Each library has a test file of
its own, so that ``--dist loadfile`` runs the libraries in parallel and each model is built by one process only.
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from itertools import product
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from clipcam_lightning.cam.attention import Attention, intercepted_attention
from clipcam_lightning.cam.capture import LayerCapture, ScoreCapture
from clipcam_lightning.cam.explain import explain
from clipcam_lightning.cam.finding import find_clip
from clipcam_lightning.cam.methods import METHODS, Method
from clipcam_lightning.cam.methods.occlusion import MIN_CELLS
from clipcam_lightning.cam.model import ClipModel
from clipcam_lightning.cam.towers.tower import AttentionTower, Tower
from clipcam_lightning.errors import ConfigError
from tests.support.tolerances import MAP, SCORE, assert_equal_up_to_rounding

Build = Callable[[], nn.Module]

# Methods that do not fit a tower, by what the tower lacks.
UNFIT_WITHOUT_SUM = frozenset({"decomposition"})  # a class token that is a sum over the blocks
UNFIT_FOR_MEAN = frozenset({"grad_eclip", "cci", "decomposition"})  # pooled by the mean of the patches
UNFIT_WITHOUT_BLOCKS = frozenset({"legrad", "clip_surgery", "gem", "decomposition", "attnlrp", "cci"})  # only a pool
UNFIT_WITHOUT_ATTENTION = frozenset(name for name, method in METHODS.items() if method.needs)
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
        one_size: names of the models that take images of one size only.
        mlp: name of the MLP in a block with attention.
    """

    models: ClassVar[Mapping[str, Build]]
    unfit: ClassVar[Mapping[str, frozenset[str]]] = {}
    order_free: ClassVar[Sequence[str]] = ()
    one_size: ClassVar[Sequence[str]] = ()
    mlp: ClassVar[str] = "mlp"

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

    @pytest.mark.slow
    def test_the_map_of_an_image_does_not_depend_on_its_batch(self, name: str, method: str) -> None:
        case = self.case(name)

        alone = explain(case.clip, case.images[1:], case.texts, method=method).maps

        assert_maps_close(alone, case.maps(method)[1:], method)

    @pytest.mark.slow
    def test_a_frozen_model_gives_the_maps_of_a_trainable_one(self, name: str, method: str) -> None:
        case = self.case(name)
        expected = case.maps(method)
        case.clip.module.requires_grad_(False)
        try:
            frozen = explain(case.clip, case.images, case.texts, method=method).maps
        finally:
            case.clip.module.requires_grad_(True)

        assert_maps_close(frozen, expected, method)

    @pytest.mark.slow
    def test_a_compiled_tower_gives_the_maps_of_an_eager_one(self, name: str, method: str) -> None:
        case = self.case(name)

        maps = explain(compile_tower(case), case.images, case.texts, method=method).maps

        assert_maps_close(maps, case.maps(method), method)

    def test_a_change_in_a_corner_of_the_image_changes_that_corner_of_the_grid(self, name: str) -> None:
        """A transposed or mirrored grid has the change elsewhere. Convolutions spread it, but less far."""
        case = self.case(name)

        assert find_changed_corners(case, case.images[:1]) == [0, 1, 2, 3]

    def test_a_tall_image_has_its_own_grid_the_right_way_round(self, name: str) -> None:
        case = self.case(name)
        height, width = case.tower.input_size
        image = torch.randn(1, 3, 3 * height, width)
        if name in self.one_size:
            with pytest.raises(ConfigError, match=f"takes images of {height}x{width} only"):
                explain(case.clip, image, case.texts, method="hirescam")
            return

        assert find_changed_corners(case, image) == [0, 1, 2, 3]

    @pytest.mark.slow
    def test_maps_of_a_wide_image_are_finite_and_on_its_own_grid(self, name: str, method: str) -> None:
        case = self.case(name)
        height, width = case.tower.input_size
        rows, columns = measure_grid(case.tower)
        grid = (rows, 2 * columns)
        if method == "occlusion":
            grid = tuple(side * math.ceil(MIN_CELLS / side) for side in grid)

        maps = explain(case.clip, torch.randn(1, 3, height, 2 * width), case.texts, method=method).maps

        assert maps.shape == (1, 2, *grid)
        assert maps.isfinite().all()

    def test_the_gradient_at_the_default_layer_reaches_every_cell(self, name: str) -> None:
        """After the last block of a class-token tower it does not: the embedding reads the class token alone."""
        case = self.case(name)

        norms = explain(case.clip, case.images, case.texts, method=lambda capture: capture.gradients.norm(dim=2)).maps

        assert norms.min() > 0, "choose a default_layer on which the embedding depends in every cell"

    def test_a_scaled_size_is_whole_cells_that_the_tower_embeds(self, name: str) -> None:
        tower = self.case(name).tower
        if name in self.one_size:
            with pytest.raises(ConfigError, match="takes images of"):
                tower.scaled_size(tower.input_size, 1.5)
            return
        assert tower.scaled_size(tower.input_size, 1.0) == tower.input_size
        size = tower.scaled_size(tower.input_size, 1.5)
        cell = [side / cells for side, cells in zip(tower.input_size, measure_grid(tower), strict=True)]

        embedded = tower.encode(torch.randn(1, 3, *size))

        assert all(abs(new - 1.5 * side) < each for new, side, each in zip(size, tower.input_size, cell, strict=True))
        assert embedded.isfinite().all()

    def test_embed_tokens_equals_the_embedding_if_all_tokens_are_equal(self, name: str) -> None:
        """Every kind of pooling of equal tokens returns what it returns for one of them."""
        tower = self.case(name).tower
        if not (isinstance(tower, AttentionTower) and tower.attentions):
            return
        token: list[Tensor] = []

        def equalize(_block: nn.Module, _inputs: object, output: Any) -> Any:
            own = output[0] if isinstance(output, tuple) else output
            token.append(tower.to_tokens(own)[:, :1].detach())
            equal = own.narrow(1 - tower.batch_dim, 0, 1).expand_as(own)
            return (equal, *output[1:]) if isinstance(output, tuple) else equal

        with torch.no_grad(), tower.native(), hooked(tower.blocks[-1], equalize):
            pooled = tower.encode(self.case(name).images)
            embedded = tower.embed_tokens(token[0])[:, 0]

        assert_equal_up_to_rounding(F.normalize(embedded, dim=-1), F.normalize(pooled, dim=-1))

    def test_pool_tokens_of_the_last_blocks_output_is_the_embedding(self, name: str) -> None:
        tower = self.case(name).tower
        if not (isinstance(tower, AttentionTower) and tower.attentions and tower.pooling == "attention"):
            return
        tokens: list[Tensor] = []
        last = tower.blocks[-1]
        with (
            torch.no_grad(),
            tower.native(),
            hooked(last, lambda _block, _inputs, output: tokens.append(tower.to_tokens(output))),
        ):
            embedding = tower.encode(self.case(name).images)
            pooled = tower.pool_tokens(tokens[0])

        assert_equal_up_to_rounding(F.normalize(pooled, dim=-1), F.normalize(embedding, dim=-1))

    def test_final_norm_and_head_map_the_class_token_to_the_embedding(self, name: str) -> None:
        tower = self.case(name).tower
        if not isinstance(tower, AttentionTower) or tower.final_norm is None:
            return
        token: list[Tensor] = []
        with (
            torch.no_grad(),
            hooked(tower.blocks[-1], lambda _block, _inputs, output: token.append(tower.to_tokens(output)[:, :1])),
        ):
            embedding = tower.encode(self.case(name).images)

            assert_equal_up_to_rounding(tower.head(tower.final_norm(token[0]))[:, 0], embedding)

    def test_project_computes_what_attention_adds_to_the_tokens(self, name: str) -> None:
        """Without its MLP, a block adds what its attention adds; other heads add something else."""
        tower = self.case(name).tower
        if not (isinstance(tower, AttentionTower) and tower.attentions):
            return
        for block, attention in zip(tower.blocks, tower.attentions, strict=True):
            (heads, tokens), (changed_heads, changed_tokens) = (
                run_without_mlp(tower, self.case(name).images, block.get_submodule(self.mlp), block, attention, factor)
                for factor in (1.0, 2.0)
            )
            index = list(tower.blocks).index(block)
            with torch.no_grad():
                expected = tower.project(index, changed_heads) - tower.project(index, heads)

            assert expected.abs().max() > 1e-3, "the attention must have an effect"
            assert_equal_up_to_rounding(
                changed_tokens - tokens, expected, absolute=MAP * float(changed_tokens.abs().max())
            )

    def test_block_inputs_are_what_the_blocks_receive(self, name: str) -> None:
        tower = self.case(name).tower
        if not (isinstance(tower, AttentionTower) and tower.attentions):
            return
        assert len(tower.block_inputs) == len(tower.blocks)
        received: list[Tensor] = []
        returned = record_block_inputs(tower, self.case(name).images, received)

        for output, tokens in zip(returned[1:], received[1:], strict=True):
            assert_close(to_cells(tower, output), tokens[:, tower.prefix :], atol=0, rtol=0)
        (reached,) = torch.autograd.grad(received[0].square().sum(), returned[0])
        assert to_cells(tower, reached).norm(dim=-1).min() > 0, "the first block must depend on every patch embedding"

    def test_dims_are_those_of_images_and_channels(self, name: str) -> None:
        tower, images = self.case(name).tower, self.case(name).images
        outputs: dict[str, Tensor] = {}
        with torch.no_grad(), tower.native(), ExitStack() as stack:
            for layer in dict.fromkeys([*getattr(tower, "block_inputs", ()), *tower.layers]):
                record = partial(record_first, outputs, layer)
                stack.enter_context(hooked(tower.clip.get_submodule(layer), record))
            tower.encode(images)

        for layer, output in outputs.items():
            dims = tower.dims(output, tower.input_size)
            output.movedim(dims, (0, 1))[1, 2] = torch.nan
            hidden = tower.to_grid(output, tower.input_size).isnan().all(dim=(2, 3))
            assert hidden.nonzero().tolist() == [[1, 2]], layer

    def test_the_first_of_the_block_inputs_has_no_positions(self, name: str) -> None:
        tower, images = self.case(name).tower, self.case(name).images[:1]
        if name not in self.order_free:
            return
        order = torch.randperm(math.prod(measure_grid(tower)))
        plain, shuffled = (
            to_cells(tower, record_block_inputs(tower, each)[0])
            for each in (images, shuffle_patches(tower, images, order))
        )

        assert_equal_up_to_rounding(shuffled, plain[:, order])

    def test_the_declared_models_know_no_order_without_positions(self, name: str) -> None:
        assert is_order_free(self.case(name).tower) == (name in self.order_free)

    def test_every_tower_with_attention_has_a_model_that_knows_no_order(self) -> None:
        towers = {name: self.case(name).tower for name in self.models}

        covered = {type(towers[name]).__name__ for name in self.order_free}
        attending = {type(tower).__name__ for tower in towers.values() if getattr(tower, "attentions", ())}
        assert covered == attending, (
            "give every tower with attention between patches a model whose only positions are learned parameters, "
            f"named like one of {POSITIONS}, and list it in order_free"
        )

    @pytest.mark.slow
    def test_without_positions_shuffled_patches_shuffle_the_map(self, name: str, method: str) -> None:
        """A theorem: attention, and everything else in a block, is equivariant under permutations of its tokens."""
        case = self.case(name)
        images, order = case.images[:1], torch.randperm(math.prod(measure_grid(case.tower)))
        both = torch.cat([images, shuffle_patches(case.tower, images, order)])
        with zeroed_positions(case.clip.module):
            plain, shuffled = explain(case.clip, both, case.texts, method=method).maps.flatten(2)

        assert_maps_close(shuffled, plain[:, order], method)


POSITIONS = ("positional_embedding", "position_embedding", "pos_embed")  # in the names of parameters

PAIR_FILTERS: dict[str, Callable[[type[MatrixChecks], str, str], bool]] = {
    "test_maps_of_a_wide_image_are_finite_and_on_its_own_grid": lambda checks, name, _method: (
        name not in checks.one_size
    ),
    # Perturbation-based methods compute no gradient that a frozen model could lack.
    "test_a_frozen_model_gives_the_maps_of_a_trainable_one": (
        lambda _checks, _name, method: METHODS[method].reads is not ScoreCapture
    ),
    "test_without_positions_shuffled_patches_shuffle_the_map": (
        lambda checks, name, method: name in checks.order_free and method not in NEIGHBOURHOOD_METHODS
    ),
}


def record_first(outputs: dict[str, Tensor], layer: str, _module: nn.Module, _inputs: object, output: Any) -> None:
    """Copy a layer's output, or its first item."""
    outputs[layer] = (output[0] if isinstance(output, tuple) else output).clone()


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
        if any(word in name for word in POSITIONS)
    }
    with torch.no_grad():
        for name in own:
            model.get_parameter(name).zero_()
        try:
            yield
        finally:
            for name, value in own.items():
                model.get_parameter(name).copy_(value)


@contextmanager
def hooked(module: nn.Module, hook: Callable[..., Any]) -> Iterator[None]:
    """Register a forward hook while the context lasts."""
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def run_without_mlp(
    tower: AttentionTower, images: Tensor, mlp: nn.Module, block: nn.Module, attention: nn.Module, factor: float
) -> tuple[Tensor, Tensor]:
    """Embed images with one block's MLP returning 0 and half of the channels of its heads multiplied.

    Args:
        tower: the image tower.
        images: model input.
        mlp: the MLP.
        block: the block.
        attention: its attention.
        factor: of half of the channels; of all of them, a norm after the heads would undo it.

    Returns:
        The outputs of the heads, concatenated, and the output tokens of the block.
    """
    heads, tokens = [], []

    def attend(_i: int, own: Attention) -> Tensor:
        output = own.output().clone()
        output[..., ::2] *= factor
        heads.append(output.transpose(1, 2).flatten(2))
        return output

    with (
        tower.native(),
        hooked(mlp, lambda _mlp, _inputs, output: torch.zeros_like(output)),
        hooked(block, lambda _block, _inputs, output: tokens.append(tower.to_tokens(output))),
        intercepted_attention([attention], attend),
    ):
        tower.encode(images)
    return heads[0], tokens[0]


def record_block_inputs(tower: AttentionTower, images: Tensor, received: list[Tensor] | None = None) -> list[Tensor]:
    """Embed images and record what the modules named by ``block_inputs`` return.

    Args:
        tower: the image tower.
        images: model input.
        received: to which the tokens are appended that each block receives.

    Returns:
        Outputs in the form of their library, one per block.
    """
    outputs, tokens = [], [] if received is None else received
    with ExitStack() as stack:
        stack.enter_context(tower.native())
        for path in tower.block_inputs:
            module = tower.clip.get_submodule(path)
            stack.enter_context(hooked(module, lambda _module, _inputs, output: outputs.append(output)))
        for block in tower.blocks:
            stack.enter_context(hooked(block, lambda _block, inputs, _: tokens.append(tower.to_tokens(inputs[0]))))
        tower.encode(images)
    return outputs


def to_cells(tower: Tower, output: Tensor) -> Tensor:
    """Bring a layer's output into the form ``[b, cells, d]``."""
    return tower.to_grid(output, tower.input_size).flatten(2).mT


def find_changed_corners(case: Case, image: Tensor) -> list[int]:
    """Change each corner of an image in turn, and return the corner of the first layer's grid that changes most."""
    recorded = []

    def record(capture: LayerCapture) -> Tensor:
        recorded.append(capture.activations)
        return capture.activations[:, :1]

    images = image.repeat(5, 1, 1, 1)
    for changed, corner in zip(images[1:], corner_slices(images[1:]), strict=True):
        changed[corner] = torch.randn_like(changed[corner])
    explain(case.clip, images, case.texts, method=Method(record, LayerCapture), layers=0)

    changes = (recorded[0][1:] - recorded[0][:1]).square()
    corners = corner_slices(changes)
    return [max(range(4), key=lambda i, c=change: c[corners[i]].mean()) for change in changes]


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
