"""Prompt sensitivity: paraphrases, their spread, and absent things as a control."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import open_clip
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from clipcam_lightning import explain
from clipcam_lightning.analysis import prompt_sensitivity as prompts
from clipcam_lightning.cam.finding import find_clip
from clipcam_lightning.cam.model import ClipModel
from clipcam_lightning.errors import ConfigError
from clipcam_lightning.shapes_world.models import WordTokenizer, model_input
from clipcam_lightning.shapes_world.scenes import draw_scenes

TEMPLATES = ("{}", "one {}", "and {}")


@pytest.fixture(scope="module")
def trained(shapes_vit: open_clip.CLIP) -> ClipModel:
    return find_clip(shapes_vit, tokenizer=WordTokenizer())


@pytest.fixture(scope="module")
def scene() -> tuple[Tensor, str]:
    scenes = draw_scenes(1, objects=1, seed=3)
    return model_input(torch.from_numpy(scenes.images), 64)[0], scenes.captions[0]


def test_the_metrics_are_means_over_all_pairs_of_paraphrases(trained: ClipModel, scene: tuple[Tensor, str]) -> None:
    image, caption = scene
    result = prompts.sensitivity(
        trained, image, caption, templates=TEMPLATES, absent=("a blue cross",), method="legrad"
    )

    maps = [
        explain(trained, image[None], [prompt], method="legrad").maps[0, 0].flatten().double().numpy()
        for prompt in result.prompts
    ]
    pairs = [np.corrcoef(a, b)[0, 1] for a, b in combinations(maps, 2)]
    hottest = [set(np.argsort(-m, kind="stable")[:13]) for m in maps]  # 20 % of 64 cells
    overlaps = [len(a & b) / len(a | b) for a, b in combinations(hottest, 2)]
    absent = explain(trained, image[None], ["a blue cross"], method="legrad").maps[0, 0].flatten().double().numpy()

    assert result.prompts == tuple(dict.fromkeys(template.format(caption) for template in TEMPLATES))
    assert result.correlation == pytest.approx(np.mean(pairs), abs=1e-5)
    assert result.top_iou == pytest.approx(np.mean(overlaps), abs=1e-5)
    assert result.absent_correlation == pytest.approx(np.mean([np.corrcoef(m, absent)[0, 1] for m in maps]), abs=1e-5)
    assert_close(
        result.spread.flatten().double().numpy(), np.std([m / abs(m).max() for m in maps], axis=0), rtol=1e-4, atol=1e-6
    )


def test_absent_things_reveal_a_map_that_does_not_depend_on_the_prompt(
    trained: ClipModel, scene: tuple[Tensor, str]
) -> None:
    independent = prompts.sensitivity(trained, *scene, method="rollout")

    assert independent.absent_correlation == pytest.approx(1.0, abs=1e-5)
    assert independent.correlation == pytest.approx(1.0, abs=1e-5)
    assert independent.spread.max() < 1e-6


def test_a_map_that_depends_on_the_prompt_differs_from_that_of_an_absent_object(trained: ClipModel) -> None:
    """On average over 30 scenes, none of which shows a blue cross."""
    scenes = draw_scenes(30, seed=3)
    assert "a blue cross" not in scenes.captions
    results = [
        prompts.sensitivity(
            trained, image, caption, templates=TEMPLATES, absent=("a blue cross",), method="decomposition"
        )
        for image, caption in zip(model_input(torch.from_numpy(scenes.images), 64), scenes.captions, strict=True)
    ]

    assert np.mean([each.correlation - each.absent_correlation for each in results]) > 0.5  # 1.08 was measured
    assert np.mean([each.similarity.mean() - each.absent_similarity.mean() for each in results]) > 0.15  # 0.37


@pytest.mark.parametrize(
    ("prompt", "thing"),
    [("a fox", "a fox"), ("a photo of a fox", "a fox"), ("my fox, drawn", "fox"), ("a photo of", "a photo of")],
)
def test_a_prompt_made_from_a_template_is_reduced_to_the_thing_first(prompt: str, thing: str) -> None:
    paraphrased = prompts.paraphrases(prompt, ("{}", "a photo of {}", "my {}, drawn"))

    assert paraphrased == (thing, f"a photo of {thing}", f"my {thing}, drawn")


def test_braces_in_a_prompt_are_kept_as_text() -> None:
    assert prompts.paraphrases("a {0} {fox}", ("{}", "the {}")) == ("a {0} {fox}", "the a {0} {fox}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"templates": ("a photo of {}",)}, "at least two"),
        ({"templates": ("a photo", "{}")}, "one '{}'"),
        ({"templates": "{} {}"}, "at least two strings"),
        ({"prompt": " "}, "not blank"),
        ({"absent": ()}, "absent must be a list of prompts"),
        ({"absent": "a fox"}, "absent must be a list of prompts"),
        ({"image": torch.zeros(1, 3, 64, 64)}, r"\[3, height, width\].*\(1, 3, 64, 64\)"),
    ],
)
def test_an_argument_that_cannot_be_used_is_refused(
    change: dict[str, object], message: str, clip: ClipModel, unchecked: None
) -> None:
    arguments = {"image": torch.zeros(3, 64, 64), "prompt": "a fox", **change}
    with pytest.raises(ConfigError, match=message):
        prompts.sensitivity(clip, **arguments)  # type: ignore[arg-type]


def test_paraphrases_are_never_contrasted_with_each_other(clip: ClipModel) -> None:
    for settings in ({"method": "finercam"}, {"target": "contrast"}):
        with pytest.raises(ConfigError, match="paraphrases of one thing must not be contrasted"):
            prompts.sensitivity(clip, torch.zeros(3, 64, 64), "a red circle", **settings)  # type: ignore[arg-type]


def test_a_sensitivity_is_printed_on_one_line_and_compared_by_identity(
    trained: ClipModel, scene: tuple[Tensor, str]
) -> None:
    result = prompts.sensitivity(trained, *scene, templates=TEMPLATES, method="gae")

    assert repr(result).startswith("Sensitivity(prompts=(")
    assert "maps=float32[3, 8, 8], absent_maps=float32[4, 8, 8]" in repr(result)
    assert "\n" not in repr(result)
    assert result != replace(result)
