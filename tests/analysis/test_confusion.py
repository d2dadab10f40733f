"""Confusions: probes for which the model prefers another prompt."""

import copy
from dataclasses import replace

import open_clip
import pytest
import torch
from torch.testing import assert_close

from clipcam_lightning import Probe, ProbeSet, confusions, explain
from clipcam_lightning.cam.finding import find_clip
from clipcam_lightning.cam.model import ClipModel
from clipcam_lightning.errors import ConfigError, ModelError
from clipcam_lightning.shapes_world.models import WordTokenizer
from clipcam_lightning.shapes_world.scenes import CAPTIONS, draw_scenes

CANDIDATES = list(CAPTIONS)


@pytest.fixture(scope="module")
def trained(shapes_vit: open_clip.CLIP) -> ClipModel:
    return find_clip(shapes_vit, tokenizer=WordTokenizer())


@pytest.fixture(scope="module")
def probes() -> ProbeSet:
    """Two objects in each image; the prompts of the last 12 name something that is not there."""
    scenes = draw_scenes(24, objects=2, seed=8)
    absent = [(kinds[0] + 11) % len(CAPTIONS) for kinds in scenes.objects]
    assert not any(kind in kinds for kind, kinds in zip(absent, scenes.objects, strict=True))
    prompts = [CAPTIONS[kind] for kind in (*scenes.objects[:12, 0], *absent[12:])]
    return ProbeSet([Probe(image, prompt) for image, prompt in zip(scenes.images, prompts, strict=True)])


def test_the_preferred_prompt_is_the_one_with_the_highest_similarity(trained: ClipModel, probes: ProbeSet) -> None:
    images, tokenizer = probes.prepare(trained).images[:], WordTokenizer()
    with torch.no_grad():
        features = trained.module.encode_image(images, normalize=True)
        cosines = (features @ trained.module.encode_text(tokenizer(CANDIDATES), normalize=True).T).numpy()
    expected = {
        i: CANDIDATES[row.argmax()] for i, row in enumerate(cosines) if CANDIDATES[row.argmax()] != probes.prompts[i]
    }

    confused = confusions(trained, probes, CANDIDATES)

    assert {each.index: each.preferred for each in confused} == expected
    assert sum(each.index >= 12 for each in confused) >= 9, "absent objects lose"  # 12 were measured
    assert sum(each.index < 12 for each in confused) < 12, "but not every prompt does"  # 6
    for each in confused:
        assert each.name == probes.names[each.index]
        assert each.similarity == pytest.approx(cosines[each.index, CANDIDATES.index(each.prompt)], abs=1e-5)
        assert each.preferred_similarity == pytest.approx(cosines[each.index].max(), abs=1e-5)
    margins = [each.preferred_similarity - each.similarity for each in confused]
    assert margins == sorted(margins, reverse=True), "the largest difference comes first"


def test_both_prompts_are_explained(trained: ClipModel, probes: ProbeSet) -> None:
    images = probes.prepare(trained).images

    for each in confusions(trained, probes, CANDIDATES, method="hirescam", batch_size=2):
        pair = explain(trained, images[each.index][None], [each.prompt, each.preferred], method="hirescam").maps[0]
        assert_close(torch.stack([each.map, each.preferred_map]), pair, atol=1e-6, rtol=1e-4)


def test_a_probe_whose_own_prompt_is_preferred_is_not_confused(trained: ClipModel, probes: ProbeSet) -> None:
    assert confusions(trained, probes, probes.prompts[:1])[0].index != 0
    one = ProbeSet([probes[0]])
    assert confusions(trained, one, [one.prompts[0]]) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_prompt_in_another_spelling_with_the_same_tokens_is_not_preferred_to_itself(
    dtype: torch.dtype, trained: ClipModel
) -> None:
    scenes = draw_scenes(8)
    probes = ProbeSet(list(zip(scenes.images, scenes.captions, strict=True)))
    clip = find_clip(copy.deepcopy(trained.module).to(dtype), tokenizer=WordTokenizer())
    confused = [each.index for each in confusions(clip, probes, CANDIDATES)]

    for spell in (str.upper, str.title, "{} ".format):
        assert [each.index for each in confusions(clip, probes, list(map(spell, CANDIDATES)))] == confused


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        ("visual.proj", r"24 of 24 embeddings of the images are not finite, the first of them that of 'an-"),
        (
            "text_projection",
            r"24 of 24 embeddings of the probes' prompts are not finite, the first of them that of 'an ",
        ),
    ],
)
def test_a_model_whose_embeddings_are_not_finite_is_refused(
    weight: str, message: str, trained: ClipModel, probes: ProbeSet
) -> None:
    """It would prefer no prompt, as a model without confusions."""
    module = copy.deepcopy(trained.module)
    module.get_parameter(weight).data.fill_(torch.nan)

    with pytest.raises(ModelError, match=message):
        confusions(find_clip(module, tokenizer=WordTokenizer()), probes, CANDIDATES)


def test_a_candidate_whose_embedding_is_not_finite_is_refused(trained: ClipModel) -> None:
    module, one = copy.deepcopy(trained.module), ProbeSet([(draw_scenes(1).images[0], "a red circle")])
    module.token_embedding.weight.data[WordTokenizer()(["star"])[0, 1]] = torch.nan

    with pytest.raises(ModelError, match=r"1 of 2 embeddings of the candidates are not finite, .* 'a red star'"):
        confusions(find_clip(module, tokenizer=WordTokenizer()), one, ["a red circle", "a red star"])


@pytest.mark.parametrize("candidates", [[], "a fox", ["a fox", ""], [1]])
def test_candidates_that_are_not_prompts_are_refused(
    candidates: list[str], trained: ClipModel, probes: ProbeSet, unchecked: None
) -> None:
    with pytest.raises(ConfigError, match="candidates must be a list of prompts"):
        confusions(trained, probes, candidates)


def test_a_confusion_is_printed_on_one_line_and_compared_by_identity(trained: ClipModel, probes: ProbeSet) -> None:
    confused = confusions(trained, probes, CANDIDATES)[0]

    assert repr(confused).startswith(f"Confusion(index={confused.index}, name={confused.name!r}, ")
    assert repr(confused).endswith("map=float32[8, 8], preferred_map=float32[8, 8])")
    assert confused != replace(confused)
