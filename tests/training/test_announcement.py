"""What a user is told when the first evaluation is done."""

from dataclasses import replace

import pytest
import torch

from clipcam_lightning.cam.finding import find_clip
from clipcam_lightning.monitoring.evaluate import evaluate
from clipcam_lightning.monitoring.evaluation import Evaluation
from clipcam_lightning.shapes_world.models import WordTokenizer, build_clip
from clipcam_lightning.shapes_world.scenes import draw_scenes
from clipcam_lightning.training.announcement import announce

FOUR = ["a red circle", "a blue star", "a green square", "a yellow cross"]
CLIP = find_clip(build_clip("vit"), tokenizer=WordTokenizer())


def evaluation_of(prompts: list[str], max_drift: float | None = None) -> Evaluation:
    probes = list(zip(draw_scenes(len(prompts), seed=9).images, prompts, strict=True))
    return evaluate(CLIP, probes, max_drift=max_drift)


def announced(evaluation: Evaluation) -> str:
    return "\n".join(announce(evaluation, CLIP, [], directory=None, are_probes_given=True, is_baseline_given=False))


@pytest.mark.parametrize("prompts", [FOUR[:1], FOUR[:2], FOUR[:2] * 2, FOUR[:1] * 8])
def test_with_too_few_prompts_it_is_said_that_backgrounds_are_not_tested(prompts: list[str]) -> None:
    assert "\nbackgrounds are not tested, so that" in announced(evaluation_of(prompts))


def test_backgrounds_of_a_prompt_that_is_nearly_alone_are_counted() -> None:
    said = announced(evaluation_of([*FOUR[:1] * 3, *FOUR[1:3]]))
    assert "\nthe backgrounds of 3 of 5 probes are not tested. Each needs three other images with another" in said


def test_with_four_prompts_or_a_limit_on_the_drift_nothing_is_said_of_backgrounds() -> None:
    assert "background" not in announced(evaluation_of(FOUR))
    assert "background" not in announced(evaluation_of(FOUR[:1], max_drift=0.5))


def test_it_is_said_if_the_drift_of_maps_is_not_used() -> None:
    evaluation = evaluation_of(FOUR)
    baseline = replace(evaluation.baseline, map_agrees=torch.tensor([1.0, 0.0, 0.0, 0.0]))
    said = announced(replace(evaluation, baseline=baseline))
    assert "1 of 4 maps agree with occlusion, so that their drift raises no alarm." in said


def test_where_no_map_of_the_baseline_is_valid_it_is_said_that_none_can_be_compared_with() -> None:
    evaluation = evaluation_of(FOUR)
    baseline = replace(evaluation.baseline, maps=torch.zeros(4, 8, 8), map_agrees=torch.zeros(4))
    said = announced(replace(evaluation, baseline=baseline))
    assert "all maps of the baseline are degenerate, so that there is no map to compare with." in said
    assert "occlusion" not in said
    assert "clipcam rank" not in said
