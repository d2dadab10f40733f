"""The place that a map turned to is covered, and another one for comparison."""

from dataclasses import replace
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from clipcam_lightning import ClipModel, Probe, ProbeSet, find_clip
from clipcam_lightning.analysis.interventions import fill_regions
from clipcam_lightning.cam import compact_images
from clipcam_lightning.cam.settings import MapSettings
from clipcam_lightning.drift import metrics
from clipcam_lightning.drift.rule import MIN_DRIFT
from clipcam_lightning.monitoring.covering import choose_places, measure_losses
from clipcam_lightning.monitoring.monitor import Monitor
from clipcam_lightning.shapes_world import WordTokenizer, draw_scenes
from tests.support.counting_explainer import CountingExplainer

SIDE = 10  # of the images; the radius of a disc is 2 pixels
AXIS = torch.arange(SIDE)


@pytest.fixture
def clip(shapes_vit: open_clip.CLIP) -> ClipModel:
    return find_clip(shapes_vit, tokenizer=WordTokenizer())


def peak(row: int, column: int) -> Tensor:
    """A map with one hot pixel."""
    map_ = torch.zeros(1, SIDE, SIDE)
    map_[0, row, column] = 1.0
    return map_


def disc(row: int, column: int) -> Tensor:
    return (AXIS[:, None] - row) ** 2 + (AXIS - column) ** 2 <= 4


def rectangle(rows: slice, columns: slice) -> Tensor:
    pixels = torch.zeros(1, SIDE, SIDE, dtype=torch.bool)
    pixels[0, rows, columns] = True
    return pixels


def mirrored(pixels: Tensor, *axes: int) -> Tensor:
    return pixels.flip(axes)


@pytest.mark.parametrize(
    ("objects", "axes"),
    [
        (rectangle(slice(6, 10), slice(0, 4)) | rectangle(slice(0, 4), slice(0, 4)), (0,)),
        (rectangle(slice(0, 4), slice(0, 10)), (1,)),
        (rectangle(slice(0, 4), slice(4, 10)) | rectangle(slice(4, 10), slice(0, 4)), (0, 1)),
        (rectangle(slice(0, 8), slice(3, 10)), (1,)),  # it cuts the disc, and so its mirror image
    ],
)
def test_the_place_that_gained_most_is_covered_and_its_mirror_image(objects: Tensor, axes: tuple[int, ...]) -> None:
    covered, control = choose_places(peak(3, 3), peak(8, 8), objects)

    assert torch.equal(covered[0], disc(8, 8) & ~objects[0])
    assert torch.equal(control[0], mirrored(covered[0], *axes))


def test_the_object_is_not_covered_even_if_its_map_gained_most() -> None:
    objects = rectangle(slice(0, 5), slice(0, 10))
    now = peak(2, 2) + 0.5 * peak(7, 2)

    covered, control = choose_places(peak(9, 9), now, objects)

    assert torch.equal(covered[0], disc(7, 2) & ~objects[0])
    assert torch.equal(control[0], mirrored(covered[0], 1))


def test_an_image_that_is_not_square_is_mirrored_at_its_own_middle() -> None:
    objects, now = torch.zeros(1, 20, 40, dtype=torch.bool), torch.zeros(1, 20, 40)
    objects[0, 8:12, 18:22], now[0, 3, 30] = True, 1.0

    covered, control = choose_places(torch.zeros(1, 20, 40), now, objects)

    rows, columns = torch.arange(20)[:, None], torch.arange(40)
    assert torch.equal(covered[0], (rows - 3) ** 2 + (columns - 30) ** 2 <= 16)
    assert torch.equal(control[0], mirrored(covered[0], 1))


CORNER = rectangle(slice(0, 2), slice(0, 2))


@pytest.mark.parametrize(
    ("before", "now", "objects"),
    [
        (peak(8, 8), peak(8, 8), CORNER),
        (peak(8, 8), peak(1, 1), CORNER),
        (peak(0, 0), peak(5, 5), CORNER),
        (peak(0, 0), peak(8, 8), ~rectangle(slice(6, 10), slice(6, 10))),
        (peak(0, 0), peak(8, 8), torch.zeros(1, SIDE, SIDE, dtype=torch.bool)),
        (peak(0, 0), torch.zeros(1, SIDE, SIDE), CORNER),
    ],
    ids=["no gain", "a gain of the object", "the middle", "an object all around", "no known object", "no map"],
)
def test_nothing_is_covered_without_a_gain_outside_an_object_or_a_place_to_compare_with(
    before: Tensor, now: Tensor, objects: Tensor
) -> None:
    assert not choose_places(before, now, objects).any()


@pytest.mark.parametrize("views", [{}, {"flip": True}, {"scales": (1.0, 1.5)}], ids=["one view", "flip", "scales"])
def test_losses_of_the_probes_whose_map_moved_are_those_of_a_slow_loop(
    views: dict[str, Any], clip: ClipModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compact_images, "PART", 2 * 64**2)  # two images at once
    scenes = draw_scenes(6, seed=5)
    probes = ProbeSet(
        Probe(image, caption, mask=mask[0])
        for image, caption, mask in zip(scenes.images, scenes.captions, scenes.masks, strict=True)
    )
    explainer, monitor = CountingExplainer(clip, MapSettings(**views)), Monitor(probes)
    monitor.evaluate(explainer, step=0, epoch=0)
    assert monitor.baseline is not None
    baseline, prepared = monitor.baseline, probes.prepare(clip)
    turned, nearly = [0, 2, 3, 5], baseline.maps[4] + 0.1 * baseline.maps[4].max() * torch.rand_like(baseline.maps[4])
    maps = baseline.maps.index_copy(0, torch.tensor(turned), baseline.maps[turned].flip(1))
    maps[4] = nearly
    assert 0 < 1 - metrics.correlation(baseline.maps[4:5], maps[4:5]) < MIN_DRIFT
    texts = torch.cat([clip.embed_texts([prompt]) for prompt in probes.prompts])[:, None].detach()
    objects, CountingExplainer.embedded = prepared.masks.clone(), 0
    objects[5] = False  # unknown
    moved = turned[:3]

    covered, control = measure_losses(explainer, prepared, texts, baseline, replace(baseline, maps=maps), objects)

    assert CountingExplainer.embedded == (3 if views else 2) * len(moved)
    for i in range(len(probes)):
        if i not in moved:
            assert covered[i].isnan()
            assert control[i].isnan()
            continue
        image, places = prepared.images[[i]], choose_places(baseline.maps[[i]], maps[[i]], prepared.masks[[i]])
        for loss, place in zip((covered[i], control[i]), places, strict=True):
            whole, changed = (
                clip.embed_images(each).detach() @ texts[i, 0] for each in (image, fill_regions(image, place))
            )
            assert_close(loss, (whole - changed)[0], atol=1e-5, rtol=0)
