"""Images, masks and prompts of a probe set become the input of one model."""

from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from open_clip.model import set_model_preprocess_cfg
from torch.testing import assert_close

from clipcam_lightning.cam.finding import find_clip
from clipcam_lightning.cam.model import ClipModel
from clipcam_lightning.errors import ProbeError
from clipcam_lightning.probes.probe import Probe
from clipcam_lightning.probes.probe_set import ProbeSet
from clipcam_lightning.shapes_world.models import WordTokenizer, build_clip

PIXELS = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)


def clip_with(**preprocessing: Any) -> ClipModel:
    model = build_clip()
    set_model_preprocess_cfg(model, {**open_clip.model.get_model_preprocess_cfg(model), **preprocessing})
    return find_clip(model, tokenizer=WordTokenizer())


@pytest.mark.parametrize("size", [(100, 150), (300, 90), (40, 50)], ids=str)
@pytest.mark.parametrize("resize_mode", ["squash", "shortest", "longest"])
def test_a_mask_is_resized_and_cropped_like_its_image(size: tuple[int, int], resize_mode: str) -> None:
    """A white square on black equals its mask before and after the model's resize, crop and padding."""
    mask = np.zeros(size, dtype=bool)
    mask[size[0] // 4 : size[0] // 2, size[1] // 3 : 3 * size[1] // 4] = True  # off center in both directions
    image = np.repeat(mask[..., None].astype(np.uint8) * 255, 3, axis=2)

    prepared = ProbeSet([Probe(image, "a", mask=mask), (image, "b")]).prepare(clip_with(resize_mode=resize_mode))

    assert prepared.images.shape == (2, 3, 64, 64)
    white = prepared.images[0].mean(0) > 0
    assert 100 < white.sum() < 3000, "otherwise nothing is compared"
    assert torch.equal(prepared.masks[0], white)
    assert prepared.has_mask.tolist() == [True, False]
    assert not prepared.masks[1].any()


def test_a_squashed_mask_is_in_the_right_place(clip: ClipModel) -> None:
    mask = np.zeros((128, 192), dtype=bool)
    mask[32:64, 96:144] = True  # second of four rows, third of four columns; 16 of 64 pixels each

    squashed = ProbeSet([Probe(np.zeros((128, 192, 3), np.uint8), "a", mask=mask)]).prepare(clip).masks[0]

    expected = torch.zeros(64, 64, dtype=torch.bool)
    expected[16:32, 32:48] = True
    assert (squashed ^ expected).sum() <= 64  # the border, one pixel wide at most
    assert squashed[17:31, 33:47].all()


def test_preprocessed_pixels_and_their_mask_are_not_changed(clip: ClipModel) -> None:
    pixels, mask = torch.randn(3, 64, 64), np.random.default_rng(0).random((64, 64)) < 0.1
    prepared = ProbeSet([Probe(pixels, "a", mask=mask)]).prepare(clip)
    assert torch.equal(prepared.images[0], pixels)
    assert np.array_equal(prepared.masks[0], mask)


def test_preprocessed_pixels_may_have_another_size_in_whole_cells(clip: ClipModel) -> None:
    mask = np.zeros((96, 72), dtype=bool)
    mask[8:16] = True
    probes = ProbeSet([Probe(torch.ones(3, 96, 72), "a", mask=mask), (torch.zeros(3, 96, 72), "b")])

    prepared = probes.prepare(clip)

    assert prepared.images.shape == (2, 3, 96, 72)
    assert np.array_equal(prepared.masks[0], mask)
    assert not prepared.masks[1].any()


def test_probes_of_a_size_that_the_model_does_not_take_are_refused_by_name(clip: ClipModel) -> None:
    with pytest.raises(ProbeError, match=r"'b' holds preprocessed pixels of 64x30: .*whole cells.* to 64x32"):
        ProbeSet([(torch.zeros(3, 64, 64), "a"), (torch.zeros(3, 64, 30), "b")]).prepare(clip)


def test_probes_of_several_sizes_are_refused_with_all_sizes(clip: ClipModel) -> None:
    with pytest.raises(ProbeError, match=r"one size after preprocessing \(got \{'a': '64x64', 'b': '64x32'\}\)"):
        ProbeSet([(torch.zeros(3, 64, 64), "a"), (torch.zeros(3, 64, 32), "b")]).prepare(clip)


def test_prompts_and_token_ids_are_embedded_in_the_order_of_the_probes(clip: ClipModel) -> None:
    """The embeddings of an untrained model differ, so that a swap shows."""
    texts = ["a red circle", "a blue star", "a green cross", "a blue star"]
    rows = clip.tokenize(texts)
    has_tokens = [False, True, False, True]
    probes = ProbeSet(
        Probe(PIXELS, "unused" if given_as_tokens else text, tokens=row if given_as_tokens else None)
        for text, row, given_as_tokens in zip(texts, rows, has_tokens, strict=True)
    )
    with torch.no_grad():
        embedded = probes.prepare(clip).embed_texts(clip)
        expected = torch.cat([clip.embed_tokens(row[None]) for row in rows])
    assert_close(embedded[:, 0], expected)
    assert (expected[0] - expected[1]).abs().max() > 1e-3


def test_a_mask_that_vanishes_at_the_size_of_the_model_is_refused(clip: ClipModel) -> None:
    speck = Probe(np.zeros((640, 640, 3), np.uint8), "a", box=(3, 3, 4, 4))
    with pytest.raises(ProbeError, match=r"mask of probe 'a' vanishes .* 64x64"):
        ProbeSet([speck]).prepare(clip)


def test_token_ids_of_several_lengths_are_refused(clip: ClipModel) -> None:
    probes = ProbeSet(Probe(PIXELS, f"p{n}", tokens=torch.ones(n, dtype=torch.long)) for n in (5, 6))
    with pytest.raises(ProbeError, match=r"the same length \(got \{'p5': 5, 'p6': 6\}\)"):
        probes.prepare(clip)
