"""A probe set: names, digest, file, and what a model is fed with."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from open_clip.model import set_model_preprocess_cfg
from PIL import Image
from safetensors.torch import load_file
from torch.testing import assert_close

from clipcam_lightning.cam.model import ClipModel, find_clip
from clipcam_lightning.errors import ProbeError, SnapshotError
from clipcam_lightning.probes.probe import Probe
from clipcam_lightning.probes.probe_set import NAME_LENGTH, ProbeSet
from clipcam_lightning.shapes_world.models import WordTokenizer, build_clip
from clipcam_lightning.storage.tensorfile import save_tensors

PIXELS = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
MASK = np.eye(4, 6, dtype=bool)
TOKENS = torch.tensor([1, 5, 9])
RICH = Probe(PIXELS, "a cat", "cat", mask=MASK, tokens=TOKENS)
LONG = "a photograph of a very small red circle to the left of a large blue star"


def variants() -> Iterator[Any]:
    yield "other pixel", [replace(RICH, image=PIXELS ^ np.eye(4, 6, dtype=np.uint8)[..., None])]
    yield "same bytes, other shape", [replace(RICH, image=PIXELS.reshape(6, 4, 3), mask=MASK.reshape(6, 4))]
    yield "pixels as floats", [replace(RICH, image=torch.from_numpy(PIXELS).permute(2, 0, 1).float())]
    yield "other prompt", [replace(RICH, prompt="a cat ")]
    yield "a lone surrogate", [replace(RICH, prompt="a cat\ud800")]
    yield "other mask", [replace(RICH, mask=~MASK)]
    yield "no mask", [replace(RICH, mask=None)]
    yield "other tokens", [replace(RICH, tokens=TOKENS + 1)]
    yield "no tokens", [replace(RICH, tokens=None)]
    yield "twice", [RICH, replace(RICH, name="again")]


@pytest.mark.parametrize(
    "given",
    [(PIXELS, "a"), Probe(PIXELS, "a"), (Image.fromarray(PIXELS), "a")],
    ids=["tuple", "Probe", "PIL"],
)
def test_a_set_is_made_of_probes_or_pairs_and_keeps_their_order(given: Any) -> None:
    probes = ProbeSet([given, (torch.zeros(3, 4, 6), "b")])

    assert len(probes) == 2
    assert probes.prompts == [probe.prompt for probe in probes] == ["a", "b"]
    assert np.array_equal(probes[0].image, PIXELS)
    assert torch.equal(probes[1].image, torch.zeros(3, 4, 6))


def test_a_generator_is_read_once() -> None:
    assert ProbeSet((PIXELS, prompt) for prompt in "ab").prompts == ["a", "b"]


def test_the_message_counts_the_probes_from_one() -> None:
    with pytest.raises(ProbeError, match=r"^probe 2: the prompt is empty"):
        ProbeSet([(PIXELS, "a"), (PIXELS, " ")])


def test_a_set_without_probes_is_refused() -> None:
    with pytest.raises(ProbeError, match="at least one probe"):
        ProbeSet([])


def test_names_are_slugs_of_the_file_or_the_prompt_and_unique(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "My Cat (1).png")
    probes = ProbeSet(
        [
            (tmp_path / "My Cat (1).png", "whatever"),
            (PIXELS, "A red circle!"),
            (PIXELS, "a red circle"),
            Probe(PIXELS, "x", "a-red-circle-2"),  # a given name goes before a made one
            (PIXELS, "日本"),
            (PIXELS, "../.."),
            (PIXELS, "word " * 40),
        ]
    )
    assert probes.names[:6] == ["my-cat-1", "a-red-circle", "a-red-circle-3", "a-red-circle-2", "probe", "probe-2"]
    assert len(probes.names[6]) <= NAME_LENGTH


@given(st.lists(st.text(min_size=1).filter(str.strip), min_size=1, max_size=6))
def test_whatever_the_prompts_names_are_unique_and_safe_in_a_path(prompts: list[str]) -> None:
    names = ProbeSet([(PIXELS, prompt) for prompt in prompts]).names
    assert len(set(names)) == len(prompts)
    assert all(name and set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_.") for name in names)
    assert not any(name.startswith(".") for name in names)


def test_a_name_given_twice_is_refused() -> None:
    with pytest.raises(ProbeError, match=r"probe 2: .*named 'cat' too"):
        ProbeSet([RICH, replace(RICH, prompt="another")])


@pytest.mark.parametrize(("name", "slug"), [("My Cat", "my-cat"), ("../cat", "cat"), ("a/b", "a-b"), ("-", "probe")])
def test_a_name_that_is_no_slug_is_refused_with_one_that_is(name: str, slug: str) -> None:
    with pytest.raises(ProbeError, match=f"is not a slug; write '{slug}'"):
        ProbeSet([replace(RICH, name=name)])


@pytest.mark.parametrize("probes", [pytest.param(v, id=name) for name, v in variants()])
def test_the_digest_changes_with(probes: list[Probe]) -> None:
    assert ProbeSet(probes).digest != ProbeSet([RICH]).digest


def test_the_digest_depends_on_the_order() -> None:
    pair = [(PIXELS, "a"), (PIXELS, "b")]
    assert ProbeSet(pair).digest != ProbeSet(pair[::-1]).digest


def test_the_digest_depends_neither_on_names_nor_on_how_pixels_and_masks_were_given(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "p.png")
    boxed = np.zeros((4, 6), dtype=bool)
    boxed[1:3, 2:5] = True
    digest = ProbeSet([Probe(PIXELS, "a cat", "cat", mask=boxed)]).digest
    assert ProbeSet([Probe(np.asfortranarray(PIXELS), "a cat", "dog", mask=np.asfortranarray(boxed))]).digest == digest
    assert ProbeSet([Probe(tmp_path / "p.png", "a cat", box=(2, 1, 5, 3))]).digest == digest


def same(a: Any, b: Any) -> bool:
    if a is None or b is None:
        return a is b
    return type(a) is type(b) and a.dtype == b.dtype and np.array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize(
    "probes",
    [
        [RICH],
        [(PIXELS, "a\nb\0c \ud800 日本"), (PIXELS.transpose(1, 0, 2), "a"), (PIXELS, "a")],
        [Probe(torch.randn(3, 4, 6), "a", box=(0, 0, 2, 3)), Probe(PIXELS, "b", mask=np.asfortranarray(MASK))],
        pytest.param(
            [(PIXELS, LONG), (PIXELS, LONG)],
        ),
    ],
    ids=["rich", "odd text", "boxes", "one long prompt twice"],
)
def test_a_set_comes_back_from_its_file(tmp_path: Path, probes: list[Any]) -> None:
    saved = ProbeSet(probes)
    saved.save(tmp_path / "probes.safetensors")

    loaded = ProbeSet.load(tmp_path / "probes.safetensors")

    assert loaded.digest == saved.digest
    for ours, theirs in zip(loaded, saved, strict=True):
        assert (ours.name, ours.prompt) == (theirs.name, theirs.prompt)
        assert all(same(getattr(ours, part), getattr(theirs, part)) for part in ("image", "mask", "tokens"))


ROW = {"name": "a", "prompt": "b"}


@pytest.mark.parametrize(
    "write",
    [
        lambda file: None,
        lambda file: file.write_bytes(b"garbage" * 9),
        lambda file: file.write_text("image,prompt\n"),
        lambda file: save_tensors(file, "snapshot", {}, {}),
        lambda file: (ProbeSet([RICH]).save(file), file.write_bytes(file.read_bytes()[:-5])),
        *(
            write
            for write in (
                lambda file: save_tensors(file, "probe set", {}, {}),
                lambda file: save_tensors(file, "probe set", {}, {"probes": []}),
                lambda file: save_tensors(file, "probe set", {}, {"probes": [ROW]}),
                lambda file: save_tensors(file, "probe set", {"image.0": torch.zeros(2)}, {"probes": [ROW]}),
                lambda file: save_tensors(file, "probe set", {"image.0": torch.zeros(3, 4, 6)}, {"probes": ["a"]}),
            )
        ),
    ],
    ids=["missing", "garbage", "text", "snapshot", "cut", "no rows", "empty", "no image", "bad image", "bad row"],
)
def test_a_file_that_is_no_probe_set_is_refused(tmp_path: Path, write: Callable[[Path], None]) -> None:
    write(tmp_path / "f")
    with pytest.raises(SnapshotError, match=str(tmp_path / "f")):
        ProbeSet.load(tmp_path / "f")


def test_a_file_with_a_changed_pixel_is_refused(tmp_path: Path) -> None:
    ProbeSet([RICH]).save(tmp_path / "f")
    content = bytearray((tmp_path / "f").read_bytes())
    at = content.find(PIXELS.tobytes())
    content[at] ^= 1
    (tmp_path / "f").write_bytes(content)
    assert not np.array_equal(load_file(tmp_path / "f")["image.0"], PIXELS)

    with pytest.raises(SnapshotError):
        ProbeSet.load(tmp_path / "f")


def test_a_set_stands_for_itself_a_file_a_folder_or_pairs(tmp_path: Path) -> None:
    probes = ProbeSet([RICH])
    probes.save(tmp_path / "f")
    Image.fromarray(PIXELS).save(tmp_path / "p.png")
    (tmp_path / "probes.csv").write_text("image,prompt\np.png,a dog\n")

    assert ProbeSet.of(probes) is probes
    assert ProbeSet.of(tmp_path / "f").digest == ProbeSet.of(str(tmp_path / "f")).digest == probes.digest
    assert ProbeSet.of(tmp_path).prompts == ProbeSet.of([(PIXELS, "a dog")]).prompts == ["a dog"]
    with pytest.raises(SnapshotError):
        ProbeSet.of(tmp_path / "missing")


def clip_with(**preprocessing: Any) -> ClipModel:
    model = build_clip()
    set_model_preprocess_cfg(model, {**open_clip.model.get_model_preprocess_cfg(model), **preprocessing})
    return find_clip(model, tokenizer=WordTokenizer())


@pytest.mark.parametrize("size", [(100, 150), (300, 90), (40, 50)], ids=str)
@pytest.mark.parametrize("resize_mode", ["squash", "shortest", "longest"])
def test_a_mask_goes_the_way_of_its_image(size: tuple[int, int], resize_mode: str) -> None:
    """A white square on black is its own mask, before and after the model's resize, crop and padding."""
    mask = np.zeros(size, dtype=bool)
    mask[size[0] // 4 : size[0] // 2, size[1] // 3 : 3 * size[1] // 4] = True  # off the middle in both directions
    image = np.repeat(mask[..., None].astype(np.uint8) * 255, 3, axis=2)

    prepared = ProbeSet([Probe(image, "a", mask=mask), (image, "b")]).prepared(clip_with(resize_mode=resize_mode))

    assert prepared.images.shape == (2, 3, 64, 64)
    white = prepared.images[0].mean(0) > 0
    assert 100 < white.sum() < 3000, "else nothing is compared"
    assert torch.equal(prepared.masks[0], white)
    assert prepared.has_mask.tolist() == [True, False]
    assert not prepared.masks[1].any()


def test_a_squashed_mask_lies_where_it_should(clip: ClipModel) -> None:
    mask = np.zeros((128, 192), dtype=bool)
    mask[32:64, 96:144] = True  # second of four rows, third of four columns; 16 of 64 pixels each

    squashed = ProbeSet([Probe(np.zeros((128, 192, 3), np.uint8), "a", mask=mask)]).prepared(clip).masks[0]

    expected = torch.zeros(64, 64, dtype=torch.bool)
    expected[16:32, 32:48] = True
    assert (squashed ^ expected).sum() <= 64  # the border, one pixel wide at most
    assert squashed[17:31, 33:47].all()


def test_preprocessed_pixels_and_their_mask_are_fed_as_they_are(clip: ClipModel) -> None:
    pixels, mask = torch.randn(3, 64, 64), np.random.default_rng(0).random((64, 64)) < 0.1
    prepared = ProbeSet([Probe(pixels, "a", mask=mask)]).prepared(clip)
    assert torch.equal(prepared.images[0], pixels)
    assert np.array_equal(prepared.masks[0], mask)


def test_preprocessed_pixels_of_another_size_are_refused_with_both_sizes(clip: ClipModel) -> None:
    with pytest.raises(ProbeError, match="'b' holds preprocessed pixels of 64x32, the model expects 64x64"):
        ProbeSet([(torch.zeros(3, 64, 64), "a"), (torch.zeros(3, 64, 32), "b")]).prepared(clip)


def test_prompts_and_token_ids_are_embedded_in_the_order_of_the_probes(clip: ClipModel) -> None:
    """An untrained model tells captions apart, so a swap would show."""
    texts = ["a red circle", "a blue star", "a green cross", "a blue star"]
    rows = clip.tokenize(texts)
    as_tokens = [False, True, False, True]
    probes = ProbeSet(
        Probe(PIXELS, "in other words" if ids else text, tokens=row if ids else None)
        for text, row, ids in zip(texts, rows, as_tokens, strict=True)
    )
    with torch.no_grad():
        embedded = probes.prepared(clip).embedded(clip)
        expected = torch.cat([clip.embed_tokens(row[None]) for row in rows])
    assert_close(embedded[:, 0], expected)
    assert (expected[0] - expected[1]).abs().max() > 1e-3


def test_a_mask_of_which_the_model_sees_nothing_is_refused(clip: ClipModel) -> None:
    speck = Probe(np.zeros((640, 640, 3), np.uint8), "a", box=(3, 3, 4, 4))
    with pytest.raises(ProbeError, match=r"mask of probe 'a' vanishes .* 64x64"):
        ProbeSet([speck]).prepared(clip)
