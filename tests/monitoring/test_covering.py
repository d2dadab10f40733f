"""The place that a map turned to is covered, and another one for comparison."""

from dataclasses import replace

import open_clip
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from clipcam_lightning import ClipModel, Probe, ProbeSet, find_clip
from clipcam_lightning.analysis.interventions import fill_regions
from clipcam_lightning.drift import metrics
from clipcam_lightning.monitoring.covering import choose_places, measure_losses
from clipcam_lightning.monitoring.explainer import LocalExplainer, ModelInput
from clipcam_lightning.monitoring.monitor import Monitor
from clipcam_lightning.shapes_world import WordTokenizer, draw_scenes

SIDE = 10  # of the images; the radius of a disc is 2 pixels
AXIS = torch.arange(SIDE)


@pytest.fixture
def clip(shapes_vit: open_clip.CLIP) -> ClipModel:
    return find_clip(shapes_vit, tokenizer=WordTokenizer())


class Counting(LocalExplainer):
    """Counts the images that are embedded."""

    embedded = 0

    def embed_images(self, images: ModelInput) -> Tensor:
        type(self).embedded += len(images)
        return super().embed_images(images)


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


def test_the_place_that_gained_most_is_covered_and_one_as_far_from_the_middle() -> None:
    for objects, (row, column) in (
        (rectangle(slice(6, 10), slice(0, 4)) | rectangle(slice(0, 4), slice(0, 4)), (1, 8)),
        (rectangle(slice(0, 4), slice(0, 10)), (8, 1)),
        (rectangle(slice(0, 10), slice(3, 7)) | rectangle(slice(0, 2), slice(7, 10)), (8, 1)),
    ):
        covered, control = choose_places(peak(3, 3), peak(8, 8), objects)

        assert torch.equal(covered[0], disc(8, 8) & ~objects[0])
        assert torch.equal(control[0], disc(row, column) & ~objects[0])


def test_the_object_is_not_covered_even_if_its_map_gained_most() -> None:
    objects = rectangle(slice(0, 5), slice(0, 10))
    now = peak(2, 2) + 0.5 * peak(7, 2)

    covered, control = choose_places(peak(9, 9), now, objects)

    assert torch.equal(covered[0], disc(7, 2) & ~objects[0])
    assert not (control & objects).any()


@pytest.mark.parametrize(
    ("before", "now", "objects"),
    [
        (peak(8, 8), peak(8, 8), rectangle(slice(0, 2), slice(0, 2))),  # nothing gained
        (peak(8, 8), peak(1, 1), rectangle(slice(0, 2), slice(0, 2))),  # the object alone gained
        (peak(0, 0), peak(5, 5), rectangle(slice(0, 2), slice(0, 2))),  # the middle has no mirror image
        (peak(0, 0), peak(8, 8), ~rectangle(slice(6, 10), slice(6, 10))),  # all the rest is object
    ],
)
def test_nothing_is_covered_without_a_place_to_compare_with(before: Tensor, now: Tensor, objects: Tensor) -> None:
    assert not choose_places(before, now, objects).any()


def test_losses_of_the_probes_whose_map_moved_are_those_of_a_slow_loop(clip: ClipModel) -> None:
    scenes = draw_scenes(6, seed=5)
    probes = ProbeSet(
        Probe(image, caption, mask=mask[0])
        for image, caption, mask in zip(scenes.images, scenes.captions, scenes.masks, strict=True)
    )
    monitor = Monitor(probes)
    monitor.evaluate(LocalExplainer(clip), step=0, epoch=0)
    assert monitor.baseline is not None
    baseline, prepared = monitor.baseline, probes.prepare(clip)
    turned = [0, 2, 3]
    snapshot = replace(baseline, maps=baseline.maps.index_copy(0, torch.tensor(turned), baseline.maps[turned].flip(1)))
    texts = torch.cat([clip.embed_texts([prompt]) for prompt in probes.prompts])[:, None]
    explainer, Counting.embedded = Counting(clip), 0

    covered, control = measure_losses(explainer, prepared, texts, baseline, snapshot, prepared.masks)

    moved = (1 - metrics.correlation(baseline.maps, snapshot.maps)).nonzero()[:, 0].tolist()
    assert moved == turned
    assert Counting.embedded == 2 * len(turned)
    for i in range(len(probes)):
        if i not in turned:
            assert covered[i].isnan()
            assert control[i].isnan()
            continue
        places = choose_places(baseline.maps[[i]], snapshot.maps[[i]], prepared.masks[[i]])
        for loss, place in zip((covered[i], control[i]), places, strict=True):
            embedded = clip.embed_images(fill_regions(prepared.images[[i]], place)).detach()
            assert_close(loss, snapshot.similarity[i] - (embedded @ texts[i, 0].detach())[0], atol=1e-5, rtol=0)
