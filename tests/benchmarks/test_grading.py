"""The metrics of the localisation benchmark, compared with numpy, loops over pixels, and values computed by hand."""

import json
import math
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from benchmarks.grading import (
    edges,
    mean_and_error,
    randomize_parameters,
    relative_area,
)
from benchmarks.localisation import STAGES
from benchmarks.localisation_maps import (
    LAST_THREE,
    LAYERS,
    Inputs,
    Setting,
    cheap_maps,
    layer_maps,
    score_maps,
    targets_for,
)
from benchmarks.localisation_report import Results, Row, worst_shares, write
from benchmarks.worlds.towers import build_clip
from benchmarks.worlds.world import WORLDS
from clipcam_lightning import METHODS, ClipModel, explain
from clipcam_lightning.analysis.map_quality import (
    LIKE_BEFORE,
    Grades,
    grade,
    likeness,
    mask_iou,
    perturbation_curves,
)
from clipcam_lightning.shapes_world.scenes import CAPTIONS
from tests.support.tolerances import MAP, UNSTABLE, assert_equal_up_to_rounding, float32_tolerance

pytestmark = pytest.mark.slow


def blob(top: int, left: int, side: int = 3, size: int = 8) -> Tensor:
    mask = torch.zeros(size, size, dtype=torch.bool)
    mask[top : top + side, left : left + side] = True
    return mask


def test_iou_is_intersection_over_union_of_sets_of_pixels() -> None:
    maps, masks = torch.randn(3, 8, 8), torch.stack([blob(0, 0), blob(2, 3, 4), blob(5, 1, 2)])

    ious = mask_iou(maps, masks)

    for map_, mask, iou in zip(maps, masks, ious.tolist(), strict=True):
        inside = set(np.flatnonzero(mask))
        hottest = set(np.argsort(-map_.flatten().numpy())[: len(inside)])
        share = len(hottest & inside) / len(inside)
        assert iou == pytest.approx(len(hottest & inside) / len(hottest | inside))
        assert iou == pytest.approx(share / (2 - share)), "computed from the relevance rank accuracy"


def test_the_coldest_pixels_are_never_among_the_hottest() -> None:
    map_ = torch.zeros(1, 8, 8)
    map_[0, 1, 1] = 1

    assert mask_iou(map_, blob(0, 0)[None]).item() == pytest.approx(1 / 9)


def test_a_degenerate_map_misses_every_object() -> None:
    everywhere = torch.ones(1, 1, 8, 8, dtype=torch.bool)

    grades = grade(torch.full((1, 1, 4, 4), 2.0), everywhere)

    assert (grades.pointing.item(), grades.degenerate.item()) == (0, 1)


def test_grades_belong_to_their_scene_and_object() -> None:
    masks = torch.stack([torch.stack([blob(0, 0), blob(5, 5)]), torch.stack([blob(0, 5), blob(5, 0)])])
    maps = masks.float()
    maps[1, 0] = masks[1, 1].float()  # one object of one scene is mistaken for the other

    grades = grade(maps, masks)

    for metric in grades[:3]:
        assert_close(metric, torch.tensor([[1.0, 1.0], [0.0, 1.0]]))


def test_deletion_and_insertion_change_the_hottest_pixels_first() -> None:
    images, maps, weights = torch.rand(2, 3, 4, 5), torch.rand(2, 4, 5), torch.rand(3, 4, 5)

    deletion, insertion = perturbation_curves(lambda x: (x * weights).sum((1, 2, 3)), images, maps, steps=4)

    for i in range(2):
        order = np.argsort(-maps[i].flatten().numpy())
        scores = (images[i] * weights).sum(0).flatten().numpy()[order]  # of each pixel, the hottest first
        changed = np.concatenate([[0], scores.cumsum()[4::5]])
        tolerance = float32_tolerance(len(scores)) * abs(scores).max()  # the scores are summed one after the other
        assert np.allclose(insertion[i], changed, atol=tolerance, rtol=0)
        assert np.allclose(deletion[i], scores.sum() - changed, atol=tolerance, rtol=0)


def test_an_area_is_relative_to_whole_image_and_mean_colour() -> None:
    straight, early = torch.linspace(0.1, 0.5, 5), torch.tensor([0.1, 0.5, 0.5, 0.5, 0.5])
    whole, blank = torch.tensor([0.5, 0.5]), torch.tensor([0.1, 0.1])
    tolerance = float32_tolerance(5)  # the mean of a curve of five points

    assert relative_area(torch.stack([straight, straight]), whole, blank) == pytest.approx(0.5, rel=tolerance)
    mean = (0.875 + 0.5) / 2
    assert relative_area(torch.stack([early, straight]), whole, blank) == pytest.approx(mean, rel=tolerance)


def test_an_image_that_scores_like_the_mean_colour_has_little_weight() -> None:
    curves = torch.stack([torch.linspace(0, 1, 5), torch.full((5,), 0.01)])

    assert relative_area(curves, torch.tensor([1.0, 1e-9]), torch.zeros(2)) == pytest.approx(0.51)


def test_edges_are_where_brightness_changes() -> None:
    image = torch.zeros(1, 3, 8, 8)
    image[..., 4:] = 1

    strength = edges(image, (8, 8))

    expected = torch.zeros(8)
    expected[3:5] = 4  # 1 + 2 + 1 of the Sobel kernel
    assert_close(strength[0], expected.expand(8, 8))


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))


def test_parameters_are_randomized_from_the_top_down_for_good() -> None:
    trained, untrained = network(), network()
    nn.init.ones_(untrained[1].running_mean)
    before = deepcopy(trained.state_dict())

    replaced = {}
    for stage in randomize_parameters(trained, untrained, ("2", "1", "")):
        now = trained.state_dict()
        replaced[stage] = {name.split(".")[0] for name in now if not torch.equal(now[name], before[name])}

    assert replaced == {"2": {"2"}, "1": {"1", "2"}, "": {"0", "1", "2"}}
    assert all(torch.equal(value, untrained.state_dict()[name]) for name, value in trained.state_dict().items())


@pytest.mark.parametrize("tower", STAGES)
def test_the_last_stage_replaces_every_parameter_of_the_tower(tower: str) -> None:
    trained, untrained = (build_clip(tower, WORLDS["shapes"]).visual for _ in range(2))

    assert [*randomize_parameters(trained, untrained, STAGES[tower])] == [*STAGES[tower]]
    assert all(torch.equal(value, untrained.state_dict()[name]) for name, value in trained.state_dict().items())


def test_a_stage_without_weights_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"no weights begin with 'head'; remaining: 0\.weight"):
        next(randomize_parameters(network(), network(), ("head",)))


def test_likeness_is_the_correlation_and_0_for_a_degenerate_map() -> None:
    before, after = torch.randn(3, 4, 4), torch.randn(3, 4, 4)
    after[1] = 0
    pearson = [np.corrcoef(a.flatten(), b.flatten())[0, 1] for a, b in zip(before[::2], after[::2], strict=True)]

    assert likeness(before, after) == pytest.approx(sum(pearson) / 3, abs=1e-6)


def test_the_control_fails_parameter_randomization_and_gradcam_does_not(clip: ClipModel) -> None:
    inputs = Inputs(torch.randn(2, 3, 64, 64), [CAPTIONS[:2]] * 2, targets_for(2, CAPTIONS)).only("similarity")
    before = dict(cheap_maps(clip, inputs))
    for parameter in clip.module.parameters():
        nn.init.normal_(parameter)

    after = dict(cheap_maps(clip, inputs))

    likenesses = {
        setting.method: likeness(before[setting].flatten(0, 1), after[setting].flatten(0, 1)) for setting in before
    }
    assert likenesses["edges"] == pytest.approx(1)
    assert likenesses["gradcam"] < LIKE_BEFORE < likenesses["edges"]


def test_the_standard_error_is_that_of_a_mean_of_independent_values() -> None:
    values = np.random.default_rng(0).random(50)

    mean, error = mean_and_error([*values, math.nan])

    assert mean == pytest.approx(values.mean())
    assert error == pytest.approx(values.std(ddof=1) / math.sqrt(50))
    assert math.isnan(mean_and_error([0.5])[1]), "one value has no standard error"


def test_a_scene_counts_once_however_many_models_and_objects() -> None:
    pointing = torch.rand(3, 50, 2)
    results = Results([Grades(each, each, each, each) for each in pointing])
    scenes = pointing.double().numpy().mean(axis=(0, 2))

    assert results.over_scenes("pointing") == pytest.approx((scenes.mean(), scenes.std(ddof=1) / math.sqrt(50)))
    assert results.by_model("pointing") == pytest.approx(pointing.mean((1, 2)).tolist())


def test_a_file_of_results_has_the_rows_that_were_written(tmp_path: Path) -> None:
    ones, file = torch.ones(1, 2, 1), tmp_path / "results.json"
    results = Results([Grades(ones[0], torch.nan * ones[0], ones[0] / 3, 0 * ones[0])], areas=[(0.25, 0.75)])

    write(
        file,
        {"counts": {"scenes": 2}},
        [results.row("shapes", "class token", "report", 1, Setting("gae", (-2, -1), None))],
    )

    read = json.loads(file.read_text())
    columns, *rows = read["rows"]
    (row,) = (dict(zip(columns, row, strict=True)) for row in rows)
    assert read["counts"] == {"scenes": 2}
    assert (row["method"], row["layers"], row["target"], row["scenes"]) == ("gae", [-2, -1], None, 2)
    assert (row["pointing"], row["iou"], row["by_seed"]) == (1, 0.3333, [1])
    assert (row["deletion"], row["insertion"], row["parameter_randomization"]) == (0.25, 0.75, None)
    assert row["energy"] is None, "JSON has no NaN"


def test_a_setting_is_as_good_as_in_the_world_where_it_is_worst() -> None:
    def row(world: str, method: str, pointing: float, part: str = "choice") -> Row:
        grades = Grades(*(torch.full((2, 1), value) for value in (pointing, 0.5, 0.5, 0.0)))
        return Results([grades]).row(world, "resnet", part, 1, Setting(method, None, "similarity"))

    rows = [
        *(row("shapes", *each) for each in (("occlusion", 0.8), ("gae", 0.6), ("gem", 0.8))),
        *(row("cutouts", *each) for each in (("occlusion", 0.5), ("gae", 0.5))),
        *(row("shapes", *each, "report") for each in (("occlusion", 1.0), ("gae", 0.1))),
    ]

    shares = worst_shares(rows, "resnet", "choice")

    assert {setting.method: share for setting, share in shares.items()} == pytest.approx({"occlusion": 1, "gae": 0.75})


@pytest.mark.parametrize("objects", [1, 2])
def test_maps_of_one_shared_pass_are_those_of_explain(clip: ClipModel, objects: int) -> None:
    # XGrad-CAM divides by sums over the patches, which are close to 0 after a norm without bias.
    for block in clip.tower.blocks:
        nn.init.ones_(block.get_submodule("ln_1").bias)
    inputs = Inputs(
        torch.randn(3, 3, 64, 64), [CAPTIONS[i : i + objects] for i in range(3)], targets_for(objects, CAPTIONS)
    )
    maps_by_setting = dict(layer_maps(clip, inputs))
    for name in ("occlusion", "cluster_occlusion"):
        maps_by_setting |= dict(score_maps(clip, inputs, METHODS[name]))

    for layers in (*LAYERS, LAST_THREE):
        assert Setting("shapleycam", layers, "contrast") in maps_by_setting
        assert Setting("fem", layers, None) in maps_by_setting
    for setting, maps in maps_by_setting.items():
        target = inputs.targets[setting.target or "similarity"]
        expected = explain(
            clip, inputs.images, inputs.prompts, method=setting.method, layers=setting.layers, target=target
        ).maps
        tolerance = UNSTABLE if setting.method == "xgradcam" else MAP
        assert_equal_up_to_rounding(maps, expected, tolerance, message=str(setting))


def test_a_single_object_is_contrasted_with_all_other_captions(clip: ClipModel) -> None:
    """Its own caption is among the negatives, which only changes the length of the gradient."""
    images, own = torch.randn(2, 3, 64, 64), CAPTIONS[4]
    together = explain(clip, images, [own, *(each for each in CAPTIONS if each != own)], target="contrast").maps[:, :1]

    alone = explain(clip, images, [own], target=targets_for(1, CAPTIONS)["contrast"]).maps

    assert_close(alone * len(CAPTIONS) / (len(CAPTIONS) - 1), together, atol=1e-7, rtol=1e-3)
