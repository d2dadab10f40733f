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
from clipcam_lightning.shapes_world import pretraining
from clipcam_lightning.shapes_world.models import WordTokenizer, build_clip, model_input
from clipcam_lightning.shapes_world.pretraining import contrastive_loss, pretrained_clip, retrieval_accuracy
from clipcam_lightning.shapes_world.scenes import CAPTIONS, draw_scenes

HELD_OUT = 4242


@pytest.fixture(params=["vit", "resnet"])
def trained(request: pytest.FixtureRequest) -> open_clip.CLIP:
    return request.getfixturevalue(f"shapes_{request.param}")


def test_captions_of_new_scenes_are_retrieved(trained: open_clip.CLIP) -> None:
    """Chance is 1/30."""
    assert retrieval_accuracy(trained, draw_scenes(300, seed=HELD_OUT)) > 0.8


def test_a_contrast_map_points_at_the_object_that_was_asked_for(trained: open_clip.CLIP) -> None:
    """Two objects a scene; a point at random hits the right one in 6 % of the scenes."""
    scenes, clip = draw_scenes(200, objects=2, seed=HELD_OUT), find_clip(trained, tokenizer=WordTokenizer())
    images = torch.stack([clip.preprocessing.image(image) for image in scenes.images])
    prompts = [[CAPTIONS[kind] for kind in row] for row in scenes.objects]

    maps = explain(clip, images, prompts, method="hirescam", target="contrast").maps

    for k in range(2):
        masks = torch.stack([clip.preprocessing.mask(mask) for mask in scenes.masks[:, k]])
        assert metrics.pointing_hit(maps[:, k], masks).float().mean() > 0.65


def test_weights_are_trained_once_and_then_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretraining, "STEPS", {"vit": 2})
    monkeypatch.setattr(pretraining, "POOL", 64)
    state = torch.get_rng_state()
    first = pretrained_clip("vit", cache=tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    monkeypatch.setattr(pretraining, "_trained", None)

    again = pretrained_clip("vit", cache=tmp_path)

    assert all(torch.equal(value, again.state_dict()[name]) for name, value in first.state_dict().items())
    assert not again.training


def test_a_damaged_cache_is_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretraining, "_trained", lambda tower, seed: build_clip(tower))
    pretrained_clip("vit", cache=tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:1000])

    pretrained_clip("vit", cache=tmp_path)

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
