"""Removed regions, and the search for objects."""

import math

import open_clip
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from clipcam_lightning import explain, find_clip
from clipcam_lightning.analysis.interventions import (
    choose_windows,
    fill_regions,
    in_pixels,
    object_regions,
    spread_drops,
    window_drops,
    window_saliency,
)
from clipcam_lightning.drift import metrics
from clipcam_lightning.monitoring.background import MIN_CORRELATION
from clipcam_lightning.monitoring.explainer import LocalExplainer
from clipcam_lightning.shapes_world.models import WordTokenizer
from clipcam_lightning.shapes_world.scenes import draw_scenes


def region(*box: int, size: int = 32) -> Tensor:
    """One region: the pixels from top to bottom and left to right."""
    top, bottom, left, right = box
    pixels = torch.zeros(1, size, size, dtype=torch.bool)
    pixels[:, top:bottom, left:right] = True
    return pixels


def test_outside_the_region_no_pixel_changes() -> None:
    images, inside = torch.rand(1, 3, 32, 32), region(5, 17, 9, 30)

    filled = fill_regions(images, inside)

    assert torch.equal(filled[:, :, ~inside[0]], images[:, :, ~inside[0]])
    assert not torch.equal(filled, images)


def test_a_region_of_a_plain_image_takes_its_colour() -> None:
    images = torch.tensor([0.3, -1.0, 2.0])[None, :, None, None].expand(1, 3, 32, 32).clone()
    images[:, :, 10:20, 10:20] = 9.0

    assert_close(fill_regions(images, region(10, 20, 10, 20)), images.where(images != 9, images[:, :, :1, :1]))


def test_a_filled_cell_is_the_weighted_mean_of_the_cells_around() -> None:
    """By loops, at the middle of a cell, where nothing is interpolated."""
    torch.manual_seed(0)
    images, inside = torch.rand(1, 3, 48, 48), region(12, 27, 18, 36, size=48)

    filled = fill_regions(images, inside)

    for row, column in ((4, 6), (6, 9), (8, 11)):
        total, weights = torch.zeros(3), 0.0
        for y in range(16):
            for x in range(16):
                nearness = math.exp(-math.hypot(y - row, x - column))
                for v in range(3 * y, 3 * y + 3):
                    for u in range(3 * x, 3 * x + 3):
                        if not inside[0, v, u]:
                            total, weights = total + nearness * images[0, :, v, u], weights + nearness
        assert_close(filled[0, :, 3 * row + 1, 3 * column + 1], total / weights)


def test_an_image_that_is_all_region_becomes_zero() -> None:
    assert torch.equal(fill_regions(torch.rand(1, 3, 32, 32), region(0, 32, 0, 32)), torch.zeros(1, 3, 32, 32))


def test_the_drop_is_that_of_the_windows_over_a_cell() -> None:
    """A similarity that reads one cell of a plain image drops where a window covers that cell, and nowhere else."""
    images = torch.zeros(1, 3, 64, 64)
    images[:, :, 24:32, 40:48] = 1.0  # cell 3, 5

    def embed(batch: Tensor) -> Tensor:
        return batch[:, :1, 24:32, 40:48].mean((1, 2, 3))[:, None]

    windows = torch.arange(49)[None]
    (drops,) = spread_drops(window_drops(images, torch.ones(1, 1), embed, windows), windows)

    covering = [(y, x) for y in range(2, 4) for x in range(4, 6)]  # windows over the cell, by their first cell
    for y in range(8):
        for x in range(8):
            over = [(v, u) for v in (y - 1, y) for u in (x - 1, x) if 0 <= v < 7 and 0 <= u < 7]
            share = sum(window in covering for window in over) / len(over)
            assert drops[y, x] == pytest.approx(share, abs=0.02)


def test_the_windows_are_the_hottest_and_four_among_the_others() -> None:
    heat = torch.zeros(1, 8, 8)
    heat[:, 6, 6] = 1.0  # in the four windows that begin at rows and columns 5 and 6

    (windows,) = choose_windows(heat)

    assert {40, 41, 47, 48} <= set(windows[:8].tolist())
    assert len(set(windows.tolist())) == 12


def test_a_map_that_knows_nothing_agrees_with_occlusion_only_by_chance() -> None:
    """The windows lie where the map is hot, which alone must not make the map agree."""
    torch.manual_seed(0)
    maps = torch.zeros(500, 8, 8)
    for i, (y, x) in enumerate(torch.randint(0, 6, (500, 2)).tolist()):
        maps[i, y : y + 2, x : x + 2] = 1.0
    windows, drops = choose_windows(maps), torch.rand(500, 12)

    correlation = metrics.correlation(window_saliency(maps, windows)[:, None], drops[:, None])

    assert (correlation > MIN_CORRELATION).float().mean() < 0.4  # half of the maps must agree to be trusted


def test_a_few_windows_find_the_regions_that_all_windows_find(shapes_vit: open_clip.CLIP) -> None:
    clip, scenes = find_clip(shapes_vit, tokenizer=WordTokenizer()), draw_scenes(16, seed=77)
    images = torch.stack([clip.preprocessing.image(image) for image in scenes.images])
    texts = clip.embed_texts(list(scenes.captions)).detach()
    maps = explain(clip, images, texts[:, None]).maps[:, 0]

    few, all_ = (
        object_regions(
            maps, spread_drops(window_drops(images, texts, LocalExplainer(clip).embed_images, windows), windows)
        )
        for windows in (choose_windows(maps), torch.arange(49).expand(16, -1))
    )

    overlap = (few & all_).sum((1, 2)) / (few | all_).sum((1, 2))
    assert overlap.mean() > 0.9  # 0.98


def blob(y: int, x: int, height: float, cells: int = 8) -> Tensor:
    map_ = torch.zeros(1, cells, cells)
    map_[:, y : y + 2, x : x + 2] = height
    return map_


def test_the_region_is_what_is_connected_with_the_hottest_cell() -> None:
    both = blob(1, 1, 1.0) + blob(6, 6, 0.8)

    found = object_regions(both, both)

    assert found[0, 1:3, 1:3].all()
    assert not found[0, 5:, 5:].any()


def test_a_place_that_only_one_of_the_maps_knows_is_no_object() -> None:
    found = object_regions(blob(1, 1, 1.0) + blob(5, 5, 0.6), blob(5, 5, 1.0))

    assert found[0, 5:7, 5:7].all()
    assert not found[0, :4, :4].any()


@pytest.mark.parametrize("cells", [5, 7, 24])
def test_a_map_of_any_grid_finds_the_object(cells: int) -> None:
    map_ = F.interpolate(blob(2, 4, 1.0)[:, None], size=(cells, cells), mode="area")[:, 0]

    found = object_regions(map_, blob(2, 4, 1.0))

    assert found[0, 2:4, 4:6].all()
    assert found.float().mean() < 0.4


@pytest.mark.parametrize("map_", [torch.zeros(1, 8, 8), -torch.ones(1, 8, 8), torch.full((1, 8, 8), torch.nan)])
def test_a_degenerate_map_finds_no_object(map_: Tensor) -> None:
    assert not object_regions(map_, blob(1, 1, 1.0)).any()


def test_cells_cover_whole_images_of_any_size() -> None:
    cells = torch.zeros(1, 8, 8, dtype=torch.bool)
    cells[:, 3] = True

    for size in (64, 224, 100):
        rows = in_pixels(cells, torch.zeros(1, 3, size, size))[0].all(1).nonzero()[:, 0]
        assert (rows[0] / size, (rows[-1] + 1) / size) == (
            pytest.approx(3 / 8, abs=0.006),
            pytest.approx(4 / 8, abs=0.006),
        )
