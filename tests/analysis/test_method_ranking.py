"""Ranking methods: what is measured, and which method comes first."""

import math
import re
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace

import numpy as np
import open_clip
import pytest
import torch
from torch import Tensor, nn

from clipcam_lightning import explain
from clipcam_lightning.analysis.interventions import fill_regions
from clipcam_lightning.analysis.map_quality import hottest_discs
from clipcam_lightning.analysis.method_measurement import MethodBench, RankedMethod, shuffle_weights
from clipcam_lightning.analysis.method_ranking import MethodRanking, order_methods, rank_methods
from clipcam_lightning.cam.capture import Capture
from clipcam_lightning.cam.finding import find_clip
from clipcam_lightning.cam.methods import METHODS
from clipcam_lightning.cam.model import ClipModel
from clipcam_lightning.errors import ConfigError
from clipcam_lightning.probes.probe import Probe
from clipcam_lightning.probes.probe_set import ProbeSet
from clipcam_lightning.shapes_world.models import WordTokenizer, trained_clip
from clipcam_lightning.shapes_world.scenes import draw_scenes
from clipcam_lightning.visualization.ranking_report import ranking_report

pytestmark = pytest.mark.slow

COUNT = 4
METHOD_NAMES = ["occlusion", "decomposition", "gradcam", "rollout", "eigencam", "xgradcam"]


@pytest.fixture(scope="module")
def trained(shapes_vit: open_clip.CLIP) -> ClipModel:
    return find_clip(shapes_vit, tokenizer=WordTokenizer())


@pytest.fixture(scope="module")
def probes() -> ProbeSet:
    """Four probes, of which two have a mask."""
    scenes = draw_scenes(COUNT, seed=5)
    masks = [scenes.masks[0, 0], scenes.masks[1, 0], None, None]
    return ProbeSet(
        Probe(image, prompt, mask=mask)
        for image, prompt, mask in zip(scenes.images, scenes.captions, masks, strict=True)
    )


@pytest.fixture(scope="module")
def ranking(trained: ClipModel, probes: ProbeSet) -> MethodRanking:
    return rank_methods(trained, probes, methods=METHOD_NAMES)


def rows_of(ranking: MethodRanking) -> Mapping[str, RankedMethod]:
    return {row.method: row for row in ranking.rows}


def make_row(method: str, necessity: float, sufficiency: float, **others: float) -> RankedMethod:
    return RankedMethod(
        method, ("layer",), "mean", 3, necessity=necessity, sufficiency=sufficiency, maps=torch.ones(1, 2, 2), **others
    )


def correlate(a: Tensor, b: Tensor) -> float:
    return float(np.corrcoef(a.flatten().double(), b.flatten().double())[0, 1])


def test_correlations_are_means_over_the_probes(ranking: MethodRanking, trained: ClipModel, probes: ProbeSet) -> None:
    """Recomputed map by map with numpy, each prompt and each image alone."""
    images, row = probes.prepare(trained).images[:], rows_of(ranking)["gradcam"]
    shuffled = deepcopy(trained)
    shuffle_weights(shuffled.module.visual)
    used = sorted(set(probes.prompts), key=lambda prompt: trained.embed_texts([prompt])[0].tolist())
    others = [used[(used.index(prompt) + 1) % len(used)] for prompt in probes.prompts]

    def explain_one_by_one(clip: ClipModel, prompts: list[str], method: str) -> list[Tensor]:
        pairs = zip(images, prompts, strict=True)
        return [explain(clip, image[None], [prompt], method=method).maps[0, 0] for image, prompt in pairs]

    maps = explain_one_by_one(trained, probes.prompts, "gradcam")
    for expected, other in (
        (row.agreement, explain_one_by_one(trained, probes.prompts, "occlusion")),
        (row.randomization, explain_one_by_one(shuffled, probes.prompts, "gradcam")),
        (row.other_prompt, explain_one_by_one(trained, others, "gradcam")),
    ):
        assert expected == pytest.approx(
            np.mean([correlate(*pair) for pair in zip(maps, other, strict=True)]), abs=1e-4
        )


def test_margins_are_integrated_over_the_whole_curve(
    ranking: MethodRanking, trained: ClipModel, probes: ProbeSet
) -> None:
    """Recomputed for one probe after the other, with the hottest pixels as a sorted list."""
    images, row = probes.prepare(trained).images[:], rows_of(ranking)["decomposition"]
    texts = {prompt: trained.embed_texts([prompt])[0].detach() for prompt in probes.prompts}
    insertions, deletions = [], []
    for image, prompt, map_ in zip(images, probes.prompts, row.maps, strict=True):
        heat = nn.functional.interpolate(map_[None, None], (64, 64), mode="bilinear", align_corners=False).flatten()
        hottest = np.argsort(-heat.numpy(), kind="stable")
        margins: dict[str, list[float]] = {"insert": [], "delete": []}
        for step in range(11):
            chosen = torch.zeros(64 * 64, dtype=torch.bool)
            chosen[hottest[: math.ceil(step / 10 * 64 * 64)]] = True
            for kind, kept in (("insert", chosen), ("delete", ~chosen)):
                with torch.no_grad():
                    embedding = trained.embed_images((image * kept.view(64, 64))[None])[0]
                others = [float(embedding @ texts[other]) for other in texts if other != prompt]
                margins[kind].append(float(embedding @ texts[prompt]) - float(np.mean(others)))
        insertions.append(np.trapezoid(margins["insert"], dx=0.1))
        deletions.append(np.trapezoid(margins["delete"], dx=0.1))

    assert row.insertion == pytest.approx(np.mean(insertions), abs=1e-4)
    assert row.deletion == pytest.approx(np.mean(deletions), abs=1e-4)


def test_changed_images_are_scored_without_a_graph(trained: ClipModel, probes: ProbeSet) -> None:
    kept: list[bool] = []
    hook = trained.tower.clip.visual.register_forward_hook(lambda *call: kept.append(call[-1].requires_grad))

    rank_methods(trained, probes, methods=["occlusion"])
    hook.remove()

    assert kept
    assert not any(kept)


def test_effects_are_those_of_a_disc_around_the_hottest_pixel(
    ranking: MethodRanking, trained: ClipModel, probes: ProbeSet
) -> None:
    """Recomputed for one probe after the other, pixel by pixel; a fifth of 64 pixels is 12.8. All prompts differ."""
    assert len(set(probes.prompts)) == COUNT == 4
    images, row = probes.prepare(trained).images[:], rows_of(ranking)["decomposition"]
    texts = {prompt: trained.embed_texts([prompt])[0].detach() for prompt in probes.prompts}

    def margin(image: Tensor, prompt: str) -> float:
        with torch.no_grad():
            embedding = trained.embed_images(image[None])[0]
        return float(embedding @ texts[prompt]) - np.mean([float(embedding @ texts[o]) for o in texts if o != prompt])

    losses, gains = [], []
    for i, (prompt, map_) in enumerate(zip(probes.prompts, row.maps, strict=True)):
        heat = nn.functional.interpolate(map_[None, None], (64, 64), mode="bilinear", align_corners=False)[0, 0]
        top, left = np.unravel_index(int(heat.argmax()), (64, 64))
        disc = torch.tensor([[(y - top) ** 2 + (x - left) ** 2 <= 12.8**2 for x in range(64)] for y in range(64)])
        losses.append(margin(images[i], prompt) - margin(fill_regions(images[i][None], disc[None])[0], prompt))
        for ground in images[torch.arange(COUNT) != i]:
            changed = ground.clone()
            changed[:, disc] = images[i][:, disc]
            gains.append(margin(changed, prompt) - margin(fill_regions(ground[None], disc[None])[0], prompt))

    assert row.necessity == pytest.approx(np.mean(losses), abs=1e-4)
    assert row.sufficiency == pytest.approx(np.mean(gains), abs=1e-4)
    assert row.effect == row.necessity + row.sufficiency


def test_a_disc_is_put_on_other_images_of_other_prompts_which_are_spread_over_the_probes(trained: ClipModel) -> None:
    scenes = draw_scenes(12, seed=5)
    probes = [(image, f"a {'red' if i % 3 else 'blue'} circle") for i, image in enumerate(scenes.images)]
    bench = MethodBench(trained, ProbeSet([*probes, (scenes.images[3], "a red circle")]))  # image 3 has both prompts

    grounds = bench.grounds.tolist()

    assert all(bench.own[ground] != bench.own[i] for i, row in enumerate(grounds) for ground in row)
    assert all(len({*row}) == 3 for row in grounds)
    assert grounds[3] == [4, 7, 11]  # of 4, 5, 7, 8, 10, 11, 1, 2: not of 12, which is the same image
    assert 3 not in grounds[12]


def test_a_probe_without_another_image_of_another_prompt_has_no_ground(trained: ClipModel) -> None:
    first, second, third = draw_scenes(3, seed=5).images
    probes = [(first, "a red circle"), (first, "a blue circle"), (second, "a red circle"), (third, "a red circle")]
    bench = MethodBench(trained, ProbeSet(probes))

    assert bench.grounds.tolist() == [[-1, -1, -1], [2, 3, -1], [1, -1, -1], [1, -1, -1]]
    (row,) = rank_methods(trained, probes, methods=["gradcam"]).rows
    assert math.isfinite(row.sufficiency)


def test_discs_are_round_and_cut_off_at_the_border_of_an_image_that_is_not_square() -> None:
    map_ = torch.zeros(1, 4, 8)
    map_[0, 0, 6] = 1  # enlarged to 20 x 40 pixels, the hottest is (0, 32)

    (disc,) = hottest_discs(map_, (20, 40))

    rows, columns = disc.nonzero().T
    assert (int(rows.min()), int(rows.max())) == (0, 4)
    assert (int(columns.min()), int(columns.max())) == (28, 36)


def test_probes_of_one_prompt_are_ranked_by_necessity_alone(trained: ClipModel) -> None:
    probes = ProbeSet((image, "a red circle") for image in draw_scenes(3, seed=5).images)

    ranking = rank_methods(trained, probes, methods=["gradcam", "decomposition"])

    assert all(math.isnan(row.sufficiency) and row.effect == row.necessity for row in ranking.rows)
    assert ranking.rows[0].necessity >= ranking.rows[1].necessity


def test_pointing_and_energy_are_those_of_the_probes_with_masks(
    ranking: MethodRanking, trained: ClipModel, probes: ProbeSet
) -> None:
    row, masks = rows_of(ranking)["decomposition"], probes.prepare(trained).masks
    heat = nn.functional.interpolate(row.maps[:, None], (64, 64), mode="bilinear", align_corners=False)[:, 0]
    hits = [bool(mask.flatten()[map_.argmax()]) for map_, mask in zip(heat[:2], masks[:2], strict=True)]

    assert ranking.masked == 2
    assert row.pointing == np.mean(hits)
    assert 0 < row.energy < 1


def test_methods_that_ignore_the_prompt_come_last(ranking: MethodRanking) -> None:
    rows = rows_of(ranking)

    assert {row.method for row in ranking.rows[-2:]} == {"rollout", "eigencam"}
    assert rows["rollout"].other_prompt == pytest.approx(1)
    assert all("does not depend on the prompt" in row.problems for row in ranking.rows[-2:])
    assert rows["occlusion"].agreement == pytest.approx(1)
    assert not any(row.problems for row in ranking.rows[:4])


def test_the_setting_of_the_best_method_makes_its_maps_again(
    ranking: MethodRanking, trained: ClipModel, probes: ProbeSet
) -> None:
    images = probes.prepare(trained).images[:]
    for row in ranking.rows:
        settings = eval(f"dict({row.setting})")
        again = explain(trained, images, [[prompt] for prompt in probes.prompts], **settings)
        torch.testing.assert_close(again.maps[:, 0], row.maps, rtol=1e-4, atol=1e-6)


def test_two_settings_of_one_method_are_told_apart_by_their_layers(probes: ProbeSet) -> None:
    deep, shallow = make_row("attnlrp", 0.3, 0.3), make_row("attnlrp", 0.2, 0.2)
    rows = (deep, make_row("gradcam", 0.2, 0.3), replace(shallow, layers=("block.0", "block.1"), fuse="max"))

    ranking = MethodRanking(rows, {}, ProbeSet(probes[:1]), 0)

    assert ranking.titles == ["attnlrp at layer", "gradcam", "attnlrp at block.0, block.1 (max)"]
    html = ranking_report(ranking, torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    assert re.findall(r'<th scope="row">(.+?)</th>', html) == ranking.titles


def test_without_masks_the_sum_of_necessity_and_sufficiency_decides() -> None:
    rows = [make_row("needed", 0.4, 0.1), make_row("both", 0.3, 0.3), make_row("neither", -0.2, 0.1)]
    assert [row.method for row in order_methods(rows, 0)] == ["both", "needed", "neither"]


def test_a_method_whose_effect_is_not_a_number_comes_after_the_others() -> None:
    rows = [make_row("low", 0.1, 0.0), make_row("none", math.nan, 0.3), make_row("high", 0.9, 0.0)]
    assert [row.method for row in order_methods(rows, 0)] == ["high", "low", "none"]


def test_with_masks_the_methods_close_to_the_best_pointing_come_first() -> None:
    """The best points at 90 % of 100 objects, so the standard error is 3 %."""
    rows = [
        make_row("far", 0.9, 0.9, pointing=0.86),
        make_row("best", 0.3, 0.3, pointing=0.90),
        make_row("near", 0.5, 0.5, pointing=0.88),
        make_row("farther", 0.9, 0.9, pointing=0.5),
    ]
    assert [row.method for row in order_methods(rows, 100)] == ["near", "best", "far", "farther"]


def test_a_method_with_problems_comes_last_however_good_it_looks() -> None:
    for problem in ({"randomization": 0.5}, {"other_prompt": 0.95}, {"degenerate": 0.6}):
        rows = [make_row("bad", 0.9, 0.9, pointing=1.0, **problem), make_row("good", 0.1, 0.1, pointing=0.1)]
        assert [row.method for row in order_methods(rows, 8)] == ["good", "bad"]
        assert len(order_methods(rows, 8)[1].problems) == 1


def test_a_degenerate_map_counts_as_a_miss_in_every_mean(trained: ClipModel, probes: ProbeSet) -> None:
    def nothing(capture: Capture) -> Tensor:
        return torch.zeros_like(capture.gradients[:, :, 0])

    (row,) = rank_methods(trained, probes, methods=[nothing]).rows

    assert (row.pointing, row.energy, row.agreement, row.randomization, row.other_prompt) == (0, 0, -1, 1, 1)
    assert row.degenerate == 1
    assert max(row.necessity, row.sufficiency) <= 0
    assert "most maps are degenerate" in row.problems
    assert row.setting.startswith("method=nothing, layers=[")


def test_methods_that_are_too_dear_are_left_out_and_named(trained: ClipModel, probes: ProbeSet) -> None:
    ranking = rank_methods(trained, probes, methods=["gradcam", "auto", "occlusion", "finercam"], budget=64)

    assert {row.method for row in ranking.rows} == {"gradcam", "decomposition"}
    assert ranking.left_out == {
        "occlusion": "costs 65 forwards per map, more than the budget of 64",
        "finercam": "compares the prompts of one image, and a probe has one prompt",
    }
    assert all(math.isnan(row.agreement) for row in ranking.rows)


def test_by_default_all_methods_that_fit_and_auto_compete(trained: ClipModel, probes: ProbeSet) -> None:
    candidates, left_out = MethodBench(trained, probes, budget=64).choose_candidates(None)

    names = [candidate.method.name for candidate in candidates]
    assert len(names) == len(set(names))  # "auto" is decomposition, which is measured once
    assert {*names, *left_out} == {name for name, method in METHODS.items() if not method.missing(trained.tower)}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"methods": ["gradcamm"]}, r"Did you mean 'gradcam'\?"),
        ({"methods": []}, "no method to rank: methods is empty"),
        ({"methods": ["occlusion"], "budget": 9}, "no method to rank: occlusion costs 65 forwards"),
        ({"budget": 0}, "budget must be at least 1"),
    ],
)
def test_arguments_that_cannot_be_used_are_refused(
    arguments: dict, message: str, trained: ClipModel, probes: ProbeSet
) -> None:
    with pytest.raises(ConfigError, match=message):
        rank_methods(trained, probes, **arguments)


def test_probes_with_one_prompt_are_compared_with_absent_things(trained: ClipModel, probes: ProbeSet) -> None:
    one = ProbeSet(Probe(probe.image, "a red star") for probe in probes)

    (row,) = rank_methods(trained, one, methods=["rollout"], budget=64).rows

    assert row.other_prompt == pytest.approx(1)


def test_the_model_comes_back_as_it_was(probes: ProbeSet) -> None:
    model = trained_clip("vit").train()
    before, random = deepcopy(model.state_dict()), torch.get_rng_state()

    rank_methods(model, probes, methods=["gradcam"], budget=64, tokenizer=WordTokenizer())

    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), random)


def test_shuffling_keeps_the_values_and_moves_them() -> None:
    layer = nn.BatchNorm2d(64)
    nn.init.normal_(layer.weight)
    before = {name: value.clone() for name, value in layer.state_dict().items()}

    shuffle_weights(layer)

    assert not torch.equal(layer.weight, before["weight"])
    for name, value in layer.state_dict().items():
        assert torch.equal(value.flatten().sort().values, before[name].flatten().sort().values)


def test_a_method_that_reads_no_layer_but_the_pool_is_ranked(probes: ProbeSet) -> None:
    clip = find_clip(trained_clip("resnet"), tokenizer=WordTokenizer())

    ranking = rank_methods(clip, probes, methods=["gae", "gradcam"], budget=3)

    assert {row.setting for row in ranking.rows} == {'method="gae"', 'method="gradcam", layers=["visual.layer4"]'}
