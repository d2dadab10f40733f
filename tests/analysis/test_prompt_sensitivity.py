"""Prompt sensitivity: wordings, spread and the absent-object control."""

from itertools import combinations

import numpy as np
import open_clip
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from clipcam_lightning import explain
from clipcam_lightning.analysis import prompt_sensitivity as prompts
from clipcam_lightning.cam.model import ClipModel, find_clip
from clipcam_lightning.errors import ConfigError
from clipcam_lightning.shapes_world.models import WordTokenizer, model_input
from clipcam_lightning.shapes_world.scenes import draw_scenes
from clipcam_lightning.visualization.panels import sensitivity_panel

TEMPLATES = ("{}", "one {}", "and {}")


@pytest.fixture(scope="module")
def trained(shapes_vit: open_clip.CLIP) -> ClipModel:
    return find_clip(shapes_vit, tokenizer=WordTokenizer())


@pytest.fixture(scope="module")
def scene() -> tuple[Tensor, str]:
    scenes = draw_scenes(1, objects=1, seed=3)
    return model_input(torch.from_numpy(scenes.images), 64)[0], scenes.captions[0]


def test_the_figures_are_means_over_all_pairs_of_paraphrases(trained: ClipModel, scene: tuple[Tensor, str]) -> None:
    image, caption = scene
    found = prompts.sensitivity(trained, image, caption, templates=TEMPLATES, absent=("a blue cross",), method="gae")

    maps = [
        explain(trained, image[None], [prompt], method="gae").maps[0, 0].flatten().double().numpy()
        for prompt in found.prompts
    ]
    pairs = [np.corrcoef(a, b)[0, 1] for a, b in combinations(maps, 2)]
    hottest = [set(np.argsort(-m, kind="stable")[:13]) for m in maps]  # a fifth of 64 cells
    overlaps = [len(a & b) / len(a | b) for a, b in combinations(hottest, 2)]
    absent = explain(trained, image[None], ["a blue cross"], method="gae").maps[0, 0].flatten().double().numpy()

    assert found.prompts == tuple(dict.fromkeys(template.format(caption) for template in TEMPLATES))
    assert found.correlation == pytest.approx(np.mean(pairs), abs=1e-5)
    assert found.top_iou == pytest.approx(np.mean(overlaps), abs=1e-5)
    assert found.absent_correlation == pytest.approx(np.mean([np.corrcoef(m, absent)[0, 1] for m in maps]), abs=1e-5)
    assert_close(
        found.spread.flatten().double().numpy(), np.std([m / abs(m).max() for m in maps], axis=0), rtol=1e-4, atol=1e-6
    )


def test_a_map_that_reads_no_prompt_is_unmasked_by_the_control(trained: ClipModel, scene: tuple[Tensor, str]) -> None:
    blind = prompts.sensitivity(trained, *scene, method="rollout")

    assert blind.absent_correlation == pytest.approx(1.0, abs=1e-5)
    assert blind.correlation == pytest.approx(1.0, abs=1e-5)
    assert blind.spread.max() < 1e-6


def test_a_map_that_reads_the_prompt_differs_from_that_of_an_absent_object(trained: ClipModel) -> None:
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
def test_a_prompt_that_is_paraphrased_already_is_not_paraphrased_twice(prompt: str, thing: str) -> None:
    paraphrased = prompts.paraphrases(prompt, ("{}", "a photo of {}", "my {}, drawn"))

    assert paraphrased == (thing, f"a photo of {thing}", f"my {thing}, drawn")


def test_braces_in_a_prompt_are_text() -> None:
    assert prompts.paraphrases("a {0} {fox}", ("{}", "the {}")) == ("a {0} {fox}", "the a {0} {fox}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"templates": ("a photo of {}",)}, "at least two"),
        ({"templates": ("a photo", "{}")}, "one '{}'"),
        ({"templates": "{} {}"}, "at least two strings"),
        ({"prompt": " "}, "something in it"),
        ({"absent": ()}, "at least one prompt"),
        ({"absent": "a fox"}, "at least one prompt"),
        ({"image": torch.zeros(1, 3, 64, 64)}, r"one preprocessed image.*\(1, 3, 64, 64\)"),
    ],
)
def test_what_cannot_be_used_is_said(change: dict[str, object], message: str, clip: ClipModel, unchecked: None) -> None:
    arguments = {"image": torch.zeros(3, 64, 64), "prompt": "a fox", **change}
    with pytest.raises(ConfigError, match=message):
        prompts.sensitivity(clip, **arguments)  # type: ignore[arg-type]


def test_the_picture_shows_four_tiles(trained: ClipModel, scene: tuple[Tensor, str]) -> None:
    image, caption = scene
    pixels = trained.preprocessing.pixels(image[None])[0]

    panel = np.asarray(sensitivity_panel(pixels, prompts.sensitivity(trained, image, caption, templates=TEMPLATES)))

    tiles = [panel[58 + 10 : 58 + 198, 8 + 216 * i + 10 : 8 + 216 * i + 198] for i in range(4)]
    assert all(tile.std() > 5 for tile in tiles)
    assert abs(tiles[1].astype(int) - tiles[3]).mean() > 1, "present and absent things look alike"
