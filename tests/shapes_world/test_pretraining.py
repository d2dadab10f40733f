"""The small CLIPs know their world, and maps of them find what is asked for."""

from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from clipcam_lightning import explain, find_clip
from clipcam_lightning.drift import metrics
from clipcam_lightning.shapes_world import models, pretraining
from clipcam_lightning.shapes_world.models import (
    FILE_KIND,
    WEIGHTS,
    WordTokenizer,
    build_clip,
    model_input,
    trained_clip,
)
from clipcam_lightning.shapes_world.pretraining import contrastive_loss, pretrained_clip, recipe, retrieval_accuracy
from clipcam_lightning.shapes_world.scenes import CAPTIONS, draw_scenes
from clipcam_lightning.storage.tensorfile import load_tensors

pytestmark = pytest.mark.slow

HELD_OUT = 4242
RETRIEVAL_ACCURACY = {"vit": 0.923, "resnet": 0.987}  # of the shipped weights, before and after rounding to float16


@pytest.fixture(params=["vit", "resnet"])
def tower(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def trained(tower: str) -> open_clip.CLIP:
    return trained_clip(tower)


@pytest.fixture
def tiny_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretraining, "STEPS", {"vit": 2, "resnet": 2})
    monkeypatch.setattr(pretraining, "POOL", 64)


def test_captions_of_new_scenes_are_retrieved(trained: open_clip.CLIP, tower: str) -> None:
    """Chance is 1/30."""
    accuracy = retrieval_accuracy(trained, draw_scenes(300, seed=HELD_OUT))
    assert accuracy == pytest.approx(RETRIEVAL_ACCURACY[tower], abs=0.01)


def test_the_shipped_weights_are_small_and_describe_their_training(tower: str) -> None:
    file = WEIGHTS / f"{tower}.safetensors"
    tensors, metadata = load_tensors(file, FILE_KIND)

    assert file.stat().st_size <= 2_000_000
    assert {value.dtype for value in tensors.values() if value.is_floating_point()} == {torch.float16}
    assert (metadata["tower"], metadata["seed"], metadata["recipe"]) == (tower, 0, recipe(tower))


def test_loading_the_shipped_weights_trains_nothing_and_draws_no_random_number(
    tower: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(pretraining, "_trained", None)
    state = torch.get_rng_state()

    model = pretrained_clip(tower)

    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_the_weights_that_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_training: None
) -> None:
    for module in (models, pretraining):
        monkeypatch.setattr(module, "WEIGHTS", tmp_path)

    pretraining.main()

    expected = pretraining._trained("vit", seed=0).state_dict()
    for name, value in trained_clip("vit").state_dict().items():
        assert_close(value, expected[name], rtol=1e-3, atol=1e-7)  # float16 has 11 bits
    assert sorted(file.name for file in tmp_path.iterdir()) == ["resnet.safetensors", "vit.safetensors"]


def test_a_contrast_map_points_at_the_object_that_was_asked_for(trained: open_clip.CLIP) -> None:
    """Two objects a scene; a point at random hits the right one in 6 % of the scenes."""
    scenes, clip = draw_scenes(200, objects=2, seed=HELD_OUT), find_clip(trained, tokenizer=WordTokenizer())
    images = torch.stack([clip.preprocessing.image(image) for image in scenes.images])
    prompts = [[CAPTIONS[kind] for kind in row] for row in scenes.objects]

    maps = explain(clip, images, prompts, method="hirescam", target="contrast").maps

    for k in range(2):
        masks = torch.stack([clip.preprocessing.mask(mask) for mask in scenes.masks[:, k]])
        assert metrics.pointing_hit(maps[:, k], masks).float().mean() > 0.65


def test_weights_are_trained_once_and_then_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_training: None
) -> None:
    state = torch.get_rng_state()
    first = pretrained_clip("vit", seed=1, cache=tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    monkeypatch.setattr(pretraining, "_trained", None)

    again = pretrained_clip("vit", seed=1, cache=tmp_path)

    assert all(torch.equal(value, again.state_dict()[name]) for name, value in first.state_dict().items())
    assert not again.training


def test_a_damaged_cache_is_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretraining, "_trained", lambda tower, seed: build_clip(tower))
    pretrained_clip("vit", seed=1, cache=tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:1000])

    pretrained_clip("vit", seed=1, cache=tmp_path)

    assert file.stat().st_size > 1000


def test_the_loss_with_one_match_each_is_clips() -> None:
    logits = torch.randn(5, 5)
    expected = (F.cross_entropy(logits, torch.arange(5)) + F.cross_entropy(logits.T, torch.arange(5))) / 2
    assert_close(contrastive_loss(logits, torch.eye(5, dtype=torch.bool)), expected)


@pytest.mark.parametrize("tower", ["vit", "resnet"])
def test_batches_are_preprocessed_as_single_pictures_are(tower: str) -> None:
    clip = find_clip(build_clip(tower))
    images = draw_scenes(3).images

    together = model_input(torch.from_numpy(images), clip.preprocessing.size[0])

    alone = torch.stack([clip.preprocessing.image(image) for image in images])
    assert_close(together, alone, atol=0.02, rtol=0)  # PIL rounds to whole grey values


def test_the_tokenizer_ends_where_open_clip_reads() -> None:
    tokenizer = WordTokenizer()
    tokens = tokenizer(["a red circle", "an unheard star and " * 9])

    assert tokenizer.decode(tokens[0].tolist()) == "<start> a red circle <end>"
    assert "<unknown>" in tokenizer.decode(tokens[1].tolist())
    assert np.array_equal(tokens.argmax(1), [4, tokenizer.context_length - 1])
