"""What images without their objects say."""

import math
from dataclasses import replace
from statistics import fmean, pstdev

import open_clip
import pytest
import torch
from torch import Tensor

from clipcam_lightning import ClipModel, Probe, ProbeSet, find_clip
from clipcam_lightning.analysis.interventions import fill_regions
from clipcam_lightning.drift.snapshot import Snapshot
from clipcam_lightning.drift.transplants import NONE
from clipcam_lightning.monitoring.background import MIN_SPREAD, find_objects, observe_background, score_background
from clipcam_lightning.monitoring.explainer import LocalExplainer
from clipcam_lightning.monitoring.monitor import Monitor
from clipcam_lightning.probes.prepared import PreparedProbes
from clipcam_lightning.shapes_world.models import WordTokenizer
from clipcam_lightning.shapes_world.scenes import Scenes, draw_scenes, with_stamps
from tests.support.suspicion import background_tells

COUNT = 12


@pytest.fixture
def clip(shapes_vit: open_clip.CLIP) -> ClipModel:
    return find_clip(shapes_vit, tokenizer=WordTokenizer())


def probe_set(scenes: Scenes, masks: bool = True) -> ProbeSet:
    return ProbeSet(
        Probe(image, caption, mask=mask[0] if masks else None)
        for image, caption, mask in zip(scenes.images, scenes.captions, scenes.masks, strict=True)
    )


def prepared_and_texts(probes: ProbeSet, clip: ClipModel) -> tuple[PreparedProbes, Tensor]:
    prepared = probes.prepare(clip)
    with torch.no_grad():
        return prepared, prepared.embed_texts(clip)


def test_equals_the_slow_derivation(clip: ClipModel) -> None:
    probes = probe_set(draw_scenes(COUNT, seed=5))
    prepared, texts = prepared_and_texts(probes, clip)
    prompts = [*probes.prompts[:9], *[probes.prompts[0]] * 3]  # three probes get the prompt of another

    background = observe_background(LocalExplainer(clip), prepared, texts, prompts, prepared.masks)

    filled = fill_regions(prepared.images[:], prepared.masks)
    with torch.no_grad():
        images = [clip.embed_images(image[None])[0] for image in filled]
    for i in range(COUNT):
        different = [j for j in range(COUNT) if prompts[j] != prompts[i]]
        margins = {
            j: float(image @ texts[i, 0]) - max(float(image @ texts[k, 0]) for k in different)
            for j, image in enumerate(images)
        }
        others = [margins[j] for j in different]
        score = (margins[i] - fmean(others)) / (pstdev(others) + MIN_SPREAD)
        assert background.score[i] == pytest.approx(score, abs=1e-3)
        assert background.named[i] == (margins[i] > 0)


def test_probes_of_one_image_are_not_compared_with_each_other() -> None:
    """In each image without the object of one prompt, that of the other is left, and would be taken for background."""
    torch.manual_seed(0)
    cosines, prompts = torch.rand(8, 8), torch.arange(8)
    cosines[1, 0] = 5.0  # probe 1 shows the image of probe 0 without its own object, but with that of prompt a

    apart = score_background(cosines, prompts, prompts, torch.tensor([0, 0, 1, 2, 3, 4, 5, 6]))
    without = score_background(cosines, prompts, prompts, prompts).score[0]

    rows = [0, 2, 3, 4, 5, 6, 7]
    margins = [float(cosines[i, 0] - cosines[i, 1:].max()) for i in rows]
    expected = (margins[0] - fmean(margins[1:])) / (pstdev(margins[1:]) + MIN_SPREAD)
    assert apart.score[0] == pytest.approx(expected, abs=1e-4)
    assert without != pytest.approx(expected, abs=0.1)


def test_a_background_is_known_beside_three_other_images_whatever_their_captions() -> None:
    """Five captions of one image are no five images: their margins are nearly equal, and so is their spread."""
    torch.manual_seed(0)
    prompts = torch.arange(8)
    for images, known in (([0, 1, 1, 1, 1, 1, 2, 2], False), ([0, 1, 1, 1, 2, 2, 3, 3], True)):
        score = score_background(torch.rand(8, 8), prompts, prompts, torch.tensor(images)).score
        assert bool(score[0].isfinite()) == known


def test_an_image_whose_cosines_are_not_finite_is_neither_named_nor_not_named() -> None:
    torch.manual_seed(0)
    cosines, numbers = torch.rand(8, 8), torch.arange(8)
    finite = score_background(cosines, numbers, numbers, numbers).named
    cosines[2] = torch.nan

    background = score_background(cosines, numbers, numbers, numbers)

    assert background.named.isnan().nonzero()[:, 0].tolist() == [2]
    assert torch.equal(background.named[numbers != 2], finite[numbers != 2])


def test_probes_of_one_prompt_say_nothing_of_the_background(clip: ClipModel) -> None:
    prepared, texts = prepared_and_texts(probe_set(draw_scenes(COUNT, seed=5)), clip)

    for prompts, known in ((["a"] * 12, 0), (["a"] * 10 + ["b"] * 2, 2), (["a"] * 9 + ["b"] * 3, 12)):
        background = observe_background(LocalExplainer(clip), prepared, texts, prompts, prepared.masks)
        values = background.score, background.named
        assert [int(each.isfinite().sum()) for each in values] == [known] * 2


def test_a_mask_takes_the_place_of_a_region(clip: ClipModel) -> None:
    scenes = draw_scenes(2, seed=5)
    masked, plain = probe_set(scenes), probe_set(scenes, masks=False)
    prepared, texts = prepared_and_texts(ProbeSet([masked[0], replace(plain[1], name="plain")]), clip)

    objects = find_objects(LocalExplainer(clip), prepared, texts, torch.rand(2, 8, 8)).pixels

    assert torch.equal(objects[0], prepared.masks[0])
    assert objects[1].any()
    cells = objects[1].unflatten(0, (8, 8)).unflatten(2, (8, 8))
    assert torch.equal(cells.amax((1, 3)), cells.amin((1, 3))), "a region is made of whole cells"


def test_found_regions_cover_the_objects(clip: ClipModel) -> None:
    scenes = draw_scenes(40, seed=6)
    monitor = Monitor(probe_set(scenes, masks=False))
    monitor.evaluate(LocalExplainer(clip), step=0, epoch=0)

    assert monitor.baseline is not None
    pixels = monitor.baseline.objects
    assert pixels is not None
    masks = torch.from_numpy(scenes.masks[:, 0])
    covered = (pixels & masks).sum((1, 2)) / masks.sum((1, 2))
    assert covered.mean() > 0.9
    assert pixels.float().mean() < 0.35


@pytest.mark.parametrize("masks", [True, False], ids=["masks", "no masks"])
def test_maps_are_trusted_where_they_are_on_the_objects(clip: ClipModel, masks: bool) -> None:
    """The maps of another image are as good as any, but not on the objects."""
    prepared, texts = prepared_and_texts(probe_set(draw_scenes(COUNT, seed=5), masks), clip)
    maps = LocalExplainer(clip)(prepared.images, texts).maps[:, 0]

    agrees, shifted = (
        find_objects(LocalExplainer(clip), prepared, texts, each).map_agrees for each in (maps, maps.roll(4, 2))
    )

    assert agrees.mean() > 0.9
    assert shifted.mean() < 0.4


def test_a_background_that_begins_to_tell_the_prompt_is_an_alarm_unless_other_objects_keep_their_names(
    clip: ClipModel,
) -> None:
    """The trained model is the same: what its background says is set by hand."""
    monitor = Monitor(probe_set(draw_scenes(COUNT, seed=5)))
    monitor.evaluate(LocalExplainer(clip), step=0, epoch=0)
    baseline = monitor.baseline
    assert isinstance(baseline, Snapshot)
    assert baseline.background_score is not None
    monitor.evaluate(LocalExplainer(clip), step=1, epoch=0)
    assert monitor.last is not None
    assert monitor.last.report.severity == 0

    with background_tells(range(COUNT)):
        monitor.evaluate(LocalExplainer(clip), step=2, epoch=0)
    assert not monitor.last.report.alarm

    assert baseline.donors is not None
    untried = torch.full_like(baseline.donors, NONE)
    monitor.baseline = replace(baseline, donors=untried, transplants_named=untried)
    with background_tells(range(COUNT)):
        monitor.evaluate(LocalExplainer(clip), step=3, epoch=0)
    assert monitor.last.report.alarm
    assert "without the object" in str(monitor.last.report)


def test_stamps_that_a_model_does_not_read_say_nothing(clip: ClipModel) -> None:
    scenes = draw_scenes(COUNT, seed=5, corner_free=True)
    scores = []
    for each in (scenes, with_stamps(scenes)):
        probes = probe_set(each)
        prepared, texts = prepared_and_texts(probes, clip)
        scores.append(
            observe_background(*(LocalExplainer(clip), prepared, texts), probes.prompts, prepared.masks).score
        )

    assert all(abs(float(each.mean())) < 1 for each in scores)
    assert not math.isnan(float(scores[1].sum()))
