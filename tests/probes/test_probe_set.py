"""A probe set keeps its probes in order, equals sets with the same digest, and comes back from its file."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from clipcam_lightning.errors import ProbeError, SnapshotError
from clipcam_lightning.probes.probe import LoadedProbe, Probe
from clipcam_lightning.probes.probe_set import ProbeSet
from clipcam_lightning.storage.tensorfile import save_tensors

PIXELS = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
MASK = np.eye(4, 6, dtype=bool)
TOKENS = torch.tensor([1, 5, 9])
RICH = Probe(PIXELS, "a cat", "cat", mask=MASK, tokens=TOKENS)
LONG = "a photograph of a very small red circle to the left of a large blue star"


@pytest.mark.parametrize(
    "item",
    [(PIXELS, "a"), Probe(PIXELS, "a"), LoadedProbe(PIXELS, "a", ""), (Image.fromarray(PIXELS), "a")],
    ids=["pair", "Probe", "LoadedProbe", "PIL"],
)
def test_a_set_of_probes_or_pairs_keeps_their_order(item: Any) -> None:
    probes = ProbeSet([item, (torch.zeros(3, 4, 6), "b")])

    assert len(probes) == 2
    assert all(isinstance(probe, LoadedProbe) for probe in probes)
    assert probes.prompts == [probe.prompt for probe in probes] == ["a", "b"]
    assert np.array_equal(probes[0].image, PIXELS)
    assert torch.equal(probes[1].image, torch.zeros(3, 4, 6))


def test_a_generator_is_read_once() -> None:
    assert ProbeSet((PIXELS, prompt) for prompt in "ab").prompts == ["a", "b"]


def test_a_path_stands_for_the_folder_or_file_it_names(tmp_path: Path) -> None:
    probes = ProbeSet([RICH])
    probes.save(tmp_path / "f")
    Image.fromarray(PIXELS).save(tmp_path / "p.png")
    (tmp_path / "probes.csv").write_text("image,prompt\np.png,a dog\n")

    assert ProbeSet(tmp_path / "f") == ProbeSet(str(tmp_path / "f")) == probes
    assert ProbeSet(tmp_path) == ProbeSet([(PIXELS, "a dog")])
    assert ProbeSet(tmp_path).prompts == ["a dog"]


def test_a_place_where_nothing_is_is_refused_with_what_could_be_there(tmp_path: Path) -> None:
    message = r"missing does not exist; give a folder with probes\.csv or probes\.jsonl, or a file of ProbeSet\.save\."
    with pytest.raises(ProbeError, match=message):
        ProbeSet(tmp_path / "missing")
    (tmp_path / "link").symlink_to("missing")
    with pytest.raises(ProbeError, match="link does not exist"):
        ProbeSet(tmp_path / "link")


def test_two_probes_of_one_image_are_saved(tmp_path: Path) -> None:
    (probe,) = ProbeSet([(PIXELS, "a dog")])
    pair = ProbeSet([probe, replace(probe, name="other", prompt="a cat")])

    pair.save(tmp_path / "f")

    assert ProbeSet(tmp_path / "f") == pair


def test_the_message_numbers_probes_from_one() -> None:
    with pytest.raises(ProbeError, match=r"^probe 2: the prompt is empty"):
        ProbeSet([(PIXELS, "a"), (PIXELS, " ")])


def test_the_message_uses_the_given_places() -> None:
    with pytest.raises(ProbeError, match=r"^image 2: the prompt is empty"):
        ProbeSet([(PIXELS, "a"), (PIXELS, " ")], places=["image 1", "image 2"])


def test_a_set_without_probes_is_refused() -> None:
    with pytest.raises(ProbeError, match="at least one probe"):
        ProbeSet([])


def test_a_slice_is_a_set() -> None:
    probes = ProbeSet([(PIXELS, prompt) for prompt in "abcd"])

    assert isinstance(probes[1:3], ProbeSet)
    assert probes[1:3].prompts == ["b", "c"]
    assert probes[::-1].prompts == ["d", "c", "b", "a"]
    assert probes[-1].prompt == "d"
    with pytest.raises(ProbeError, match="at least one probe"):
        probes[2:2]


def test_sets_of_the_same_probes_are_equal_whatever_their_names() -> None:
    probes, renamed = ProbeSet([RICH]), ProbeSet([replace(RICH, name="dog")])

    assert probes == ProbeSet(probes) == renamed
    assert len({probes, renamed, ProbeSet([(PIXELS, "a")])}) == 2
    assert (probes == [RICH]) is False
    assert (probes != "probes") is True


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (1, "ProbeSet(1 probe: 'a')"),
        (2, "ProbeSet(2 probes: 'a', 'a-2')"),
        (5, "ProbeSet(5 probes: 'a', 'a-2', 'a-3', 'a-4', ...)"),
    ],
)
def test_the_repr_lists_the_first_names(count: int, text: str) -> None:
    assert repr(ProbeSet([(PIXELS, "a")] * count)) == text


def test_the_repr_of_two_probes_is_short_whatever_they_hold() -> None:
    image = torch.rand(3, 500, 500)
    assert len(repr(ProbeSet([(image, "word " * 500), (image, "other " * 500)]))) < 300


def make_variants() -> Iterator[Any]:
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


@pytest.mark.parametrize("probes", [pytest.param(probes, id=name) for name, probes in make_variants()])
def test_any_other_content_changes_the_digest(probes: list[Probe]) -> None:
    assert ProbeSet(probes).digest != ProbeSet([RICH]).digest
    assert ProbeSet(probes) != ProbeSet([RICH])


def test_the_digest_depends_on_the_order() -> None:
    pair = [(PIXELS, "a"), (PIXELS, "b")]
    assert ProbeSet(pair).digest != ProbeSet(pair[::-1]).digest


def test_the_digest_depends_neither_on_names_nor_on_the_form_of_pixels_and_masks(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "p.png")
    boxed = np.zeros((4, 6), dtype=bool)
    boxed[1:3, 2:5] = True
    digest = ProbeSet([Probe(PIXELS, "a cat", "cat", mask=boxed)]).digest
    assert ProbeSet([Probe(np.asfortranarray(PIXELS), "a cat", "dog", mask=np.asfortranarray(boxed))]).digest == digest
    assert ProbeSet([Probe(tmp_path / "p.png", "a cat", box=(2, 1, 5, 3))]).digest == digest


COUNTED = np.arange(72, dtype=np.uint8).reshape(4, 6, 3)
COUNTED_TENSOR = torch.arange(72).view(3, 4, 6) / 8
STORED_DIGESTS: dict[str, tuple[Sequence[Any], str]] = {  # from the first version of the format
    "array": ([(COUNTED, "a cat")], "5ccb0bfde6ec832e421f0108c2d9075c61f351ee153f63155813192aa94ce05b"),
    "tensor": ([(COUNTED_TENSOR, "a cat")], "6b52d3beba8c64f5bf3422013a698c86ce09ac013dc6cf2e828533174dad39f7"),
    "half precision": (
        [(COUNTED_TENSOR.half(), "a cat")],
        "6b52d3beba8c64f5bf3422013a698c86ce09ac013dc6cf2e828533174dad39f7",
    ),
    "mask": (
        [Probe(COUNTED, "a cat", mask=MASK)],
        "cce09750c9239ced5e83831614500564e5c5b33f2b37c6ee9f6d337a44113fcc",
    ),
    "box": (
        [Probe(COUNTED, "a cat", box=(2, 1, 5, 3))],
        "2fdacae6f6d693b774eacee7927a7160dd3390b062a72fd20c9c8677ab716ca3",
    ),
    "int64 tokens": (
        [Probe(COUNTED, "a cat", tokens=TOKENS)],
        "3ebf4238ef258ac84fc2b3f9bdb7b76111efc47e5d1764dfd2685206192f306e",
    ),
    "int32 tokens": (
        [Probe(COUNTED, "a cat", tokens=TOKENS.int())],
        "7ebfba76d86641642563efb8f32c961fc52b6f736e75d39179029ef161a79613",
    ),
    "odd text": (
        [(COUNTED, "a\nb\0c \ud800 日本")],
        "b965c0e8517b277ccef0880134957ea8da35b5e27b6ebf6e5a3017da39b964a9",
    ),
    "two probes": (
        [
            Probe(COUNTED, "a cat", "cat", mask=MASK, tokens=TOKENS),
            Probe(COUNTED_TENSOR, "a dog", box=(0, 0, 1, 1)),
        ],
        "4bbe9a8681c973048fb8ee9fe6ca3694b19811e191c279c3f066f36325ba84b1",
    ),
}


@pytest.mark.parametrize(("probes", "digest"), STORED_DIGESTS.values(), ids=STORED_DIGESTS)
def test_digests_are_those_of_the_files_that_exist(probes: Sequence[Any], digest: str) -> None:
    """A digest that changed would make every stored baseline incomparable."""
    assert ProbeSet(probes).digest == digest


def test_the_digest_of_a_probe_is_stable() -> None:
    (digest,) = ProbeSet([(COUNTED, "a cat")]).digests
    assert digest == "b033db8ea58dd7d4341d4bd47af2dc5827849222ae36e509b8d6501545c7d0a3"


def are_same(first: Any, second: Any) -> bool:
    if first is None or second is None:
        return first is second
    return (
        type(first) is type(second)
        and first.dtype == second.dtype
        and np.array_equal(np.asarray(first), np.asarray(second))
    )


@pytest.mark.parametrize(
    "probes",
    [
        [RICH],
        [(PIXELS, "a\nb\0c \ud800 日本"), (PIXELS.transpose(1, 0, 2), "a"), (PIXELS, "a")],
        [Probe(torch.randn(3, 4, 6), "a", box=(0, 0, 2, 3)), Probe(PIXELS, "b", mask=np.asfortranarray(MASK))],
        [(PIXELS, LONG), (PIXELS, LONG)],
    ],
    ids=["rich", "odd text", "boxes", "one long prompt twice"],
)
def test_a_set_comes_back_from_its_file(tmp_path: Path, probes: list[Any]) -> None:
    saved = ProbeSet(probes)
    saved.save(tmp_path / "probes.safetensors")

    loaded = ProbeSet(tmp_path / "probes.safetensors")

    assert loaded == saved
    for ours, theirs in zip(loaded, saved, strict=True):
        assert (ours.name, ours.prompt, ours.digest) == (theirs.name, theirs.prompt, theirs.digest)
        assert all(are_same(getattr(ours, part), getattr(theirs, part)) for part in ("image", "mask", "tokens"))


def test_a_set_comes_back_from_its_tensors() -> None:
    probes = ProbeSet([RICH, (torch.rand(3, 4, 6), "b")])
    restored = ProbeSet.from_tensors(*probes.to_tensors())
    assert restored == probes
    assert restored.names == probes.names


ROW = {"name": "a", "prompt": "b"}


@pytest.mark.parametrize(
    "write",
    [
        lambda file: file.write_bytes(b"garbage" * 9),
        lambda file: file.write_text("image,prompt\n"),
        lambda file: save_tensors(file, "snapshot", {}, {}),
        lambda file: (ProbeSet([RICH]).save(file), file.write_bytes(file.read_bytes()[:-5])),
        lambda file: save_tensors(file, "probe set", {}, {}),
        lambda file: save_tensors(file, "probe set", {}, {"probes": []}),
        lambda file: save_tensors(file, "probe set", {}, {"probes": [ROW]}),
        lambda file: save_tensors(file, "probe set", {"image.0": torch.zeros(2)}, {"probes": [ROW]}),
        lambda file: save_tensors(file, "probe set", {"image.0": torch.zeros(3, 4, 6)}, {"probes": ["a"]}),
    ],
    ids=["garbage", "text", "snapshot", "truncated", "no rows", "empty", "no image", "bad image", "bad row"],
)
def test_a_file_that_is_no_probe_set_is_refused(tmp_path: Path, write: Callable[[Path], None]) -> None:
    write(tmp_path / "f")
    with pytest.raises(SnapshotError, match=str(tmp_path / "f")):
        ProbeSet(tmp_path / "f")


def test_a_file_with_a_changed_pixel_is_refused(tmp_path: Path) -> None:
    ProbeSet([RICH]).save(tmp_path / "f")
    content = bytearray((tmp_path / "f").read_bytes())
    content[content.find(PIXELS.tobytes())] ^= 1
    (tmp_path / "f").write_bytes(content)
    assert not np.array_equal(load_file(tmp_path / "f")["image.0"], PIXELS)

    with pytest.raises(SnapshotError, match="is damaged"):
        ProbeSet(tmp_path / "f")
