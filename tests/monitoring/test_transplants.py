"""Objects of other probes on the ground of a probe."""

import open_clip
import pytest
import torch

from clipcam_lightning import ClipModel, Probe, ProbeSet, find_clip
from clipcam_lightning.analysis.interventions import fill_regions, transplant
from clipcam_lightning.drift.snapshot import Snapshot
from clipcam_lightning.drift.transplants import NONE
from clipcam_lightning.monitoring.explainer import LocalExplainer
from clipcam_lightning.monitoring.monitor import Monitor
from clipcam_lightning.monitoring.transplants import TRANSPLANTS, choose_donors, fill_donors, name_transplants
from clipcam_lightning.shapes_world.models import WordTokenizer
from clipcam_lightning.shapes_world.scenes import draw_scenes, with_stamps
from tests.support.counting_explainer import CountingExplainer
from tests.support.suspicion import background_tells

ALL = torch.ones(40, 4, 4, dtype=torch.bool)


@pytest.fixture
def clip(shapes_vit: open_clip.CLIP) -> ClipModel:
    return find_clip(shapes_vit, tokenizer=WordTokenizer())


def probe_set(count: int = 8) -> ProbeSet:
    scenes = draw_scenes(count, seed=5)
    return ProbeSet(
        Probe(image, caption, mask=mask[0])
        for image, caption, mask in zip(scenes.images, scenes.captions, scenes.masks, strict=True)
    )


def test_donors_have_another_prompt_and_another_image_and_are_used_equally_often() -> None:
    prompts = [f"prompt {i % 10}" for i in range(40)]
    images = [i // 2 for i in range(40)]

    donors = choose_donors(prompts, images, ALL)

    assert donors.shape == (40, TRANSPLANTS)
    for i, row in enumerate(donors.tolist()):
        assert len(set(row)) == TRANSPLANTS
        assert all(prompts[j] != prompts[i] and images[j] != images[i] for j in row)
    uses = torch.bincount(donors.flatten(), minlength=40)
    assert uses.max() <= 2 * TRANSPLANTS
    assert (uses > 0).float().mean() > 0.9


def test_a_ground_gets_fewer_objects_if_many_probes_share_its_prompt() -> None:
    prompts = ["often"] * 13 + ["seldom"] * 7 + ["once"]

    counts = choose_donors(prompts, range(21), ALL[:21]).ne(NONE).sum(1)

    assert counts.tolist() == [2] * 13 + [4] * 7 + [6]


@pytest.mark.parametrize("per_class", [4, 25])
def test_the_grounds_of_a_prompt_get_objects_of_all_other_prompts(per_class: int) -> None:
    """Probes are often listed class by class."""
    prompts = [f"prompt {i // per_class}" for i in range(8 * per_class)]
    objects = torch.ones(len(prompts), 4, 4, dtype=torch.bool)

    donors = choose_donors(prompts, range(len(prompts)), objects)

    for start in range(0, len(prompts), per_class):
        given = [prompts[j] for j in donors[start : start + per_class].flatten().tolist() if j != NONE]
        assert len(set(given)) == 7
        assert max(map(given.count, given)) <= 2 * min(map(given.count, given))


def test_there_are_no_donors_where_an_object_is_unknown_and_fewer_where_there_are_few() -> None:
    objects = ALL[:4].clone()
    objects[3] = False

    donors = choose_donors(list("abca"), range(4), objects)

    assert sorted(donors[0].tolist()) == [NONE] * (TRANSPLANTS - 2) + [1, 2]
    assert donors[3].eq(NONE).all()
    assert (donors != 3).all(), "what has no known object gives none"


def test_chosen_grounds_are_filled_with_donors_of_other_prompts_and_images_that_they_do_not_have_yet() -> None:
    prompts = [f"prompt {i % 4}" for i in range(40)]
    images = [i // 2 for i in range(40)]
    objects = ALL.clone()
    objects[7] = False
    donors = choose_donors(prompts, images, objects)

    filled = fill_donors(donors, [5, 6, 7], prompts, images, objects)

    kept = donors != NONE
    assert torch.equal(filled[kept], donors[kept])
    others = [i for i in range(40) if i not in (5, 6)]
    assert torch.equal(filled[others], donors[others]), "not chosen, or its own object is unknown"
    for i in (5, 6):
        row = filled[i].tolist()
        assert len(set(row)) == TRANSPLANTS
        assert 7 not in row
        assert all(prompts[j] != prompts[i] and images[j] != images[i] for j in row)
    assert filled[5].tolist() != filled[6].tolist()


def test_a_ground_is_filled_with_as_many_donors_as_there_are() -> None:
    donors = torch.full((4, TRANSPLANTS), NONE)

    filled = fill_donors(donors, [0], list("aabc"), range(4), ALL[:4])

    assert sorted(filled[0].tolist()) == [NONE] * (TRANSPLANTS - 2) + [2, 3]


def test_without_donors_nothing_is_embedded(clip: ClipModel) -> None:
    probes = ProbeSet([(scene, "a red circle") for scene in draw_scenes(4).images])
    prepared, counting = probes.prepare(clip), CountingExplainer(clip)
    donors = choose_donors(probes.prompts, range(4), torch.ones(4, *clip.preprocessing.size, dtype=torch.bool))
    before = CountingExplainer.embedded
    named = name_transplants(counting, prepared, torch.ones(4, 1, 64), prepared.masks, donors)
    assert named.eq(NONE).all()
    assert CountingExplainer.embedded == before


def test_transplants_are_named_as_by_a_slow_loop(clip: ClipModel) -> None:
    probes = probe_set()
    prepared = probes.prepare(clip)
    with torch.no_grad():
        texts = prepared.embed_texts(clip)
    donors = choose_donors(probes.prompts, prepared.images.keys, prepared.masks)

    named = name_transplants(LocalExplainer(clip), prepared, texts, prepared.masks, donors)

    for i, row in enumerate(donors.tolist()):
        ground = fill_regions(prepared.images[i : i + 1], prepared.masks[i : i + 1])[0]
        for column, j in enumerate(row):
            if j == NONE:
                assert named[i, column] == NONE
                continue
            image = torch.where(prepared.masks[j], prepared.images[j], ground)
            with torch.no_grad():
                closest = int((clip.embed_images(image[None])[0] @ texts[:, 0].T).argmax())
            assert probes.prompts[int(named[i, column])] == probes.prompts[closest]


def test_an_object_lies_at_its_own_place_on_the_ground() -> None:
    objects = torch.zeros(1, 4, 4, dtype=torch.bool)
    objects[0, :2, 2:] = True

    image = transplant(torch.zeros(1, 3, 4, 4), torch.ones(1, 3, 4, 4), objects)

    assert torch.equal(image[:, 0] > 0, objects)


def test_transplants_are_made_at_the_baseline_and_then_only_on_suspicion(clip: ClipModel) -> None:
    monitor, explainer = Monitor(probe_set()), CountingExplainer(clip)
    CountingExplainer.embedded = 0
    monitor.evaluate(explainer, step=0, epoch=0)
    assert CountingExplainer.embedded == 8 + 8 * TRANSPLANTS  # without object, and with others'

    CountingExplainer.embedded = 0
    monitor.evaluate(explainer, step=1, epoch=0)
    assert CountingExplainer.embedded == 8
    assert monitor.last is not None
    assert monitor.last.snapshot.transplants_named is None

    CountingExplainer.embedded = 0
    with background_tells(range(8)):
        monitor.evaluate(explainer, step=2, epoch=0)
    assert CountingExplainer.embedded == 8 + 8 * TRANSPLANTS
    assert monitor.last.snapshot.transplants_named is not None


def test_on_suspicion_the_grounds_that_stand_out_get_more_objects(clip: ClipModel) -> None:
    scenes = draw_scenes(32, seed=5)
    probes = [
        Probe(image, ["a red circle", "a blue square"][i % 2], mask=mask[0])
        for i, (image, mask) in enumerate(zip(scenes.images, scenes.masks, strict=True))
    ]
    monitor, explainer = Monitor(ProbeSet(probes)), LocalExplainer(clip)
    monitor.evaluate(explainer, step=0, epoch=0)
    baseline = monitor.baseline
    assert baseline is not None
    assert baseline.donors is not None
    assert baseline.donors.ne(NONE).sum(1).tolist() == [2] * 32

    with background_tells([3, 4, 17]):
        donors = evaluate_again(monitor, explainer).donors

    assert donors is not None
    assert donors.ne(NONE).sum(1).tolist() == [TRANSPLANTS if i in (3, 4, 17) else 2 for i in range(32)]
    assert monitor.last is not None
    evidence = [probe.transplants.count for probe in monitor.last.report.probes]
    assert evidence == donors.ne(NONE).sum(1).tolist()
    assert monitor.last.report.probes[0].transplants_before.count == 2


def evaluate_again(monitor: Monitor, explainer: LocalExplainer) -> Snapshot:
    monitor.evaluate(explainer, step=1, epoch=0)
    assert monitor.last is not None
    return monitor.last.snapshot


def test_a_trained_model_calls_an_object_by_its_name_on_any_ground(clip: ClipModel) -> None:
    scenes = draw_scenes(16, seed=5, corner_free=True)
    stamped = with_stamps(scenes)
    probes = ProbeSet(
        Probe(image, caption, mask=mask[0])
        for image, caption, mask in zip(stamped.images, stamped.captions, stamped.masks, strict=True)
    )
    monitor = Monitor(probes)
    monitor.evaluate(LocalExplainer(clip), step=0, epoch=0)

    assert monitor.baseline is not None
    named, donors = monitor.baseline.transplants_named, monitor.baseline.donors
    assert named is not None
    assert donors is not None
    pairs = [(i, j) for i, j in zip(donors.flatten().tolist(), named.flatten().tolist(), strict=True) if i != NONE]
    assert sum(probes.prompts[i] == probes.prompts[j] for i, j in pairs) / len(pairs) > 0.7
