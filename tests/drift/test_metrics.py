"""Metrics of maps against numpy, plain loops, hand-computed values and earlier measurements."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import assume, given, strategies as st
from torch import Tensor
from torch.testing import assert_close

from clipcam_lightning.drift.metrics import (
    center_shift,
    concentration,
    correlation,
    energy_inside,
    is_valid,
    pointing_hit,
    shared_gain,
    top_iou,
)

SEEDS = st.integers(0, 2**31)
GRIDS = st.sampled_from([(7, 7), (3, 5), (14, 9), (1, 4)])


def random_maps(seed: int, *shape: int) -> Tensor:
    """Rectified noise: half of the cells are exactly zero, as in real maps."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).relu() + 0.0


def hot(cell: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    map_ = torch.zeros(1, *grid)
    map_[0, cell[0], cell[1]] = 1
    return map_


def blob(y: float, x: float, side: int = 14) -> Tensor:
    """A rectified bump whose edge is a circle, so that a good part of the map is exactly zero."""
    ys, xs = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    bump = torch.exp(-((ys - y) ** 2 + (xs - x) ** 2) / (2 * 3.0**2))
    return (bump - 0.1).relu()[None]


@given(SEEDS, GRIDS)
def test_correlation_equals_that_of_numpy(seed: int, grid: tuple[int, int]) -> None:
    a, b = torch.rand(2, 4, *grid, generator=torch.Generator().manual_seed(seed))
    expected = [np.corrcoef(x.flatten().double(), y.flatten().double())[0, 1] for x, y in zip(a, b, strict=True)]
    assert_close(correlation(a, b), torch.tensor(expected, dtype=torch.float32), atol=1e-6, rtol=0)


@given(SEEDS, st.floats(1e-6, 1e6), st.floats(-3, 3))
def test_correlation_ignores_scale_and_offset(seed: int, scale: float, offset: float) -> None:
    a, b = torch.rand(2, 4, 7, 7, generator=torch.Generator().manual_seed(seed)).double()
    moved = scale * (a + offset)
    assert_close(correlation(moved, b), correlation(a, b), atol=1e-5, rtol=0)
    assert_close(correlation(moved, a), torch.ones(4), atol=1e-6, rtol=0)
    assert_close(correlation(-moved, a), -torch.ones(4), atol=1e-6, rtol=0)


@pytest.mark.parametrize("map_", [torch.zeros(7, 7), torch.full((7, 7), 0.1), torch.full((7, 7), torch.nan)], ids=str)
def test_correlation_with_a_degenerate_map_is_nan(map_: Tensor) -> None:
    assert correlation(map_[None], torch.rand(1, 7, 7)).isnan().all()


def iou_by_sets(a: Tensor, b: Tensor) -> float:
    """The cells one by one: hottest first, of equally hot cells the earlier first, the coldest never."""
    cells = list(product(range(a.shape[0]), range(a.shape[1])))
    count = max(1, round(len(cells) / 5))
    top_a, top_b = (set(sorted(cells, key=lambda cell, m=m: (-m[cell].item(), cell))[:count]) for m in (a, b))
    top_a, top_b = ({cell for cell in top if m[cell] > m.min()} for top, m in ((top_a, a), (top_b, b)))
    return len(top_a & top_b) / len(top_a | top_b) if top_a | top_b else math.nan


@given(SEEDS, GRIDS, st.sampled_from([1, 2, 100]))
def test_top_iou_equals_that_of_sets_of_cells_even_with_ties(seed: int, grid: tuple[int, int], steps: int) -> None:
    a, b = (random_maps(seed, 2, 3, *grid) * steps).round()  # few levels: many ties
    slow = torch.tensor([iou_by_sets(x, y) for x, y in zip(a, b, strict=True)])
    assert_close(top_iou(a, b), slow, equal_nan=True)


@pytest.mark.parametrize("grid", [(7, 7), (3, 5), (1, 4), (16, 10)])
def test_center_shift_between_opposite_corners_is_that_computed_by_hand(grid: tuple[int, int]) -> None:
    h, w = grid  # cell centres lie half a cell in, so the corners are (h-1)/h and (w-1)/w of a side apart
    expected = math.hypot((h - 1) / h, (w - 1) / w) / math.sqrt(2)
    assert_close(center_shift(hot((0, 0), grid), 3 * hot((h - 1, w - 1), grid)), torch.tensor([expected]))
    assert_close(center_shift(hot((h - 1, 0), grid), hot((0, w - 1), grid)), torch.tensor([expected]))


@pytest.mark.parametrize(("cell", "expected"), [((1, 0), 1 / 2), ((0, 1), 1 / 4)])
def test_center_shift_measures_each_side_by_its_own_length(cell: tuple[int, int], expected: float) -> None:
    shift = center_shift(hot((0, 0), (2, 4)), hot(cell, (2, 4)))
    assert_close(shift, torch.tensor([expected / math.sqrt(2)]))


@given(SEEDS)
def test_center_of_mass_is_the_weighted_mean_of_cells(seed: int) -> None:
    a, b = random_maps(seed, 2, 1, 3, 5) + 0.01
    centers = []
    for map_ in (a[0].double(), b[0].double()):
        y = sum(map_[i, j] * (i + 0.5) / 3 for i, j in product(range(3), range(5))) / map_.sum()
        x = sum(map_[i, j] * (j + 0.5) / 5 for i, j in product(range(3), range(5))) / map_.sum()
        centers.append((float(y), float(x)))
    expected = torch.tensor([math.dist(*centers) / math.sqrt(2)])
    assert_close(center_shift(a, b), expected, atol=1e-6, rtol=1e-4)


@given(SEEDS, st.integers(1, 4), st.integers(1, 4))
def test_energy_inside_equals_that_of_a_loop_over_pixels(seed: int, tall: int, wide: int) -> None:
    maps = random_maps(seed, 2, 3, 5) + 0.01
    assume(is_valid(maps).all())  # one of 30,000 is constant
    masks = torch.rand(2, 3 * tall, 5 * wide, generator=torch.Generator().manual_seed(seed)) < 0.3
    expected = []
    for map_, mask in zip(maps, masks, strict=True):
        pixels = [(map_[y // tall, x // wide].item(), mask[y, x]) for y, x in np.ndindex(*mask.shape)]
        expected.append(sum(value for value, inside in pixels if inside) / sum(value for value, _ in pixels))
    assert_close(energy_inside(maps, masks), torch.tensor(expected))


@given(SEEDS, st.sampled_from([(64, 64), (30, 49), (7, 7), (5, 3), (224, 224)]))
def test_energy_inside_and_outside_add_up_for_masks_of_any_size(seed: int, size: tuple[int, int]) -> None:
    maps, masks = random_maps(seed, 3, 7, 7) + 0.01, torch.rand(3, *size) < 0.5
    assert_close(energy_inside(maps, masks) + energy_inside(maps, ~masks), torch.ones(3))


def test_energy_counts_only_positive_cells_and_is_0_without_any() -> None:
    maps = torch.tensor([[[3.0, 1.0, -8.0]], [[-1.0, -1.0, -1.0]]])
    inside = torch.tensor([[[True, False, False]]]).repeat(2, 1, 1)
    assert_close(energy_inside(maps, inside), torch.tensor([0.75, 0.0]))


@pytest.mark.parametrize("map_", [[0.0, 0.0], [2.0, 2.0], [-1.0, -2.0], [torch.nan, 1.0]], ids=str)
def test_a_degenerate_map_has_no_energy_and_points_nowhere(map_: list[float]) -> None:
    maps, inside = torch.tensor([[map_]]), torch.ones(1, 1, 2, dtype=torch.bool)
    assert energy_inside(maps, inside).tolist() == [0.0]
    assert pointing_hit(maps, inside).tolist() == [False]


@pytest.mark.parametrize("size", [(3, 5), (9, 15), (30, 50), (31, 47), (50, 30), (7, 11)], ids=str)
def test_pointing_hits_exactly_where_the_hot_cell_lies(size: tuple[int, int]) -> None:
    height, width = size
    cell_of_pixel = [(int((y + 0.5) * 3 / height), int((x + 0.5) * 5 / width)) for y, x in np.ndindex(*size)]
    for cell in product(range(3), range(5)):  # not square, or a swap would hide
        mask = torch.tensor([pixel == cell for pixel in cell_of_pixel]).view(1, *size)
        assert pointing_hit(hot(cell, (3, 5)), mask).all()
        assert not pointing_hit(hot(cell, (3, 5)), ~mask).any()


def test_a_blob_one_cell_away_is_similar_and_one_in_the_opposite_corner_is_not() -> None:
    """Measured before: CC .92, IoU .70, shift .05 for one cell; -.31, 0, .41 for the corner."""
    here, near, far = blob(3.5, 3.5), blob(3.5, 4.5), blob(10, 10)

    assert 0.8 < correlation(here, near) < 0.98
    assert 0.4 < top_iou(here, near) < 0.9
    assert 0.03 < center_shift(here, near) < 0.06
    assert -0.6 < correlation(here, far) < -0.1
    assert top_iou(here, far) == 0
    assert 0.3 < center_shift(here, far) < 0.5


def test_a_blob_with_noise_correlates_with_it_and_noise_alone_does_not() -> None:
    here, noise = blob(5, 5), torch.randn(1, 14, 14)
    assert correlation(here, here + 0.02 * noise) > 0.98
    assert correlation(here, here + 0.1 * noise) > 0.85
    assert abs(correlation(here, noise)) < 0.25


def test_one_outlier_moves_the_correlation_more_than_the_top_cells() -> None:
    here, spiked = blob(5, 5), blob(5, 5) + 3 * hot((13, 13), (14, 14))
    assert correlation(here, spiked) < 0.75
    assert top_iou(here, spiked) > 0.9


def test_maps_with_one_hot_cell_each_in_opposite_corners_do_not_overlap() -> None:
    assert top_iou(hot((0, 0), (7, 7)), hot((6, 6), (7, 7))) == 0


def shares(map_: Tensor) -> np.ndarray:
    mass = np.maximum(map_.double().numpy(), 0).flatten()
    return mass / mass.sum()


@given(SEEDS, st.integers(2, 6))
def test_shared_gain_equals_that_of_plain_loops(seed: int, count: int) -> None:
    a, b = random_maps(seed, 2, count, 7, 7) + 1e-3
    gains = [shares(now) - shares(before) for before, now in zip(a, b, strict=True)]
    expected = []
    for i, own in enumerate(gains):
        others = sum(gain for j, gain in enumerate(gains) if j != i)
        place = sorted(range(49), key=lambda cell: -others[cell])[:3]  # 5 % of 49 cells, rounded up
        expected.append(sum(own[cell] for cell in place))
    assert_close(shared_gain(a, b), torch.tensor(expected, dtype=torch.float32), atol=1e-6, rtol=0)


@given(SEEDS, GRIDS)
def test_concentration_equals_that_of_plain_loops(seed: int, grid: tuple[int, int]) -> None:
    a, b = random_maps(seed, 2, 3, *grid) + 1e-3
    count = math.ceil(grid[0] * grid[1] / 50)
    expected = [
        sum(sorted(np.maximum(shares(now) - shares(before), 0))[-count:]) for before, now in zip(a, b, strict=True)
    ]
    assert_close(concentration(a, b), torch.tensor(expected, dtype=torch.float32), atol=1e-6, rtol=0)


def test_maps_that_move_at_random_have_no_shared_gain_on_average_however_few_they_are() -> None:
    for count in (2, 4, 16):
        gains = torch.stack([shared_gain(*random_maps(seed, 2, count, 7, 7)) for seed in range(400)])
        assert abs(float(gains.mean())) < 0.01, count


def test_a_degenerate_map_has_no_gain_and_does_not_count_for_other_maps() -> None:
    before, now = hot((0, 0), (4, 5)).repeat(3, 1, 1), hot((3, 4), (4, 5)).repeat(3, 1, 1)
    now[0] = 0
    assert_close(shared_gain(before, now), torch.tensor([torch.nan, 1.0, 1.0]), equal_nan=True)
    assert_close(concentration(before, now), torch.tensor([torch.nan, 1.0, 1.0]), equal_nan=True)
    assert shared_gain(before[:2], now[:2]).isnan().all()  # a single valid map has no others


def test_maps_that_stay_where_they_were_gain_nothing() -> None:
    maps = random_maps(3, 4, 7, 7)
    assert shared_gain(maps, 5 * maps).abs().max() < 1e-6
    assert concentration(maps, 5 * maps).max() < 1e-6
