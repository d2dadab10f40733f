"""A damaged or forged file is refused in words, or what comes of it can be compared, drawn and reported."""

import json
import math
import struct
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save
from torch import Tensor

from clipcam_lightning.drift.compare import compare
from clipcam_lightning.drift.snapshot import Snapshot, SnapshotInfo
from clipcam_lightning.monitoring.history import HistoryEntry, relative_saliency
from clipcam_lightning.probes.probe import Probe
from clipcam_lightning.probes.probe_set import ProbeSet
from clipcam_lightning.storage.jpeg import as_jpeg
from clipcam_lightning.storage.tensorfile import HEADER, VERSION
from clipcam_lightning.visualization.contact_sheet import contact_sheet
from clipcam_lightning.visualization.panels import probe_panel
from clipcam_lightning.visualization.report import html_report, report_as_json
from tests.support.hostile import TEXTS, accepted, as_users_run, example_folder, examples, texts

PIXELS = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
PICTURE = as_jpeg(Image.fromarray(PIXELS), 90)
GREY = torch.full((2, 3, 16, 16), 128, dtype=torch.uint8)
GOOD = Snapshot(
    maps=torch.tensor([[[0.1, 0.0, 0.7], [0.2, 0.3, 0.0]], [[1.0, 0.0, 0.5], [0.0, 0.0, 3.0]]]),
    similarity=torch.tensor([0.25, -1.0]),
    energy_inside_mask=torch.tensor([torch.nan, 0.5]),
    pointing=torch.tensor([torch.nan, 1.0]),
    names=("a", "b"),
    prompts=("a cat", "a dog"),
    info=SnapshotInfo(
        digest="d", step=12, epoch=3, method="gradcam", target="similarity", scales=(1.0,), flip=False,
        fuse="mean", layers=("visual.a",), fingerprint="f", dtype="float32", versions={"torch": "2"},
    ),
    noise_floor=torch.tensor([0.1, torch.nan]),
    images=(PICTURE, PICTURE),
)  # fmt: skip
PROBES = ProbeSet(
    [
        Probe(PIXELS[:4, :6], "a cat", mask=np.eye(4, 6, dtype=bool), tokens=torch.tensor([1, 5, 9])),
        Probe(torch.rand(3, 4, 6), "a dog"),
    ]
)
KINDS: dict[str, Any] = {"snapshot": Snapshot, "probe set": ProbeSet}
FIGURES = ("maps", "similarity", "energy_inside_mask", "pointing", "noise_floor")


@cache
def good_file(kind: str) -> bytes:
    with example_folder() as folder:
        (GOOD if kind == "snapshot" else PROBES).save(folder / "f")
        return (folder / "f").read_bytes()


def loaded(kind: str, content: bytes) -> Any:
    """What a file of this content is taken for; ``None`` if it is refused."""
    with example_folder() as folder:
        (folder / "f").write_bytes(content)
        found = accepted(lambda: KINDS[kind].load(folder / "f"))
        assert (folder / "f").read_bytes() == content
        return found


def check(found: Any) -> None:
    """What was loaded is as good as any other of its kind."""
    if isinstance(found, ProbeSet):
        assert found.digest == PROBES.digest
        assert found.prompts == PROBES.prompts
    elif found is not None:
        use(found)


def use(snapshot: Snapshot) -> None:
    """All that is ever done with a snapshot."""
    column = HistoryEntry(
        0, relative_saliency(snapshot.maps).half(), (0.5,) * len(snapshot.names), (True,) * len(snapshot.names)
    )
    with as_users_run():
        other = GOOD if accepted(lambda: compare(GOOD, snapshot)) else snapshot
        for before, now in ((other, snapshot), (snapshot, other))[: 1 if other is snapshot else 2]:
            report = compare(before, now)
            assert str(report)
            assert math.isfinite(report.drift)
            json.dumps(report_as_json(report), allow_nan=False)
            accepted(lambda before=before, now=now, report=report: html_report(before, now, report))
            row, steps = report.probes[-1], (before.info.step, now.info.step)
            probe_panel(GREY[0], before.maps[-1], now.maps[-1], row, steps=steps)
        contact_sheet(
            GREY[:1].expand(len(snapshot.names), -1, -1, -1), snapshot.prompts, [column], range(len(snapshot.names))
        )
        with example_folder() as folder:
            snapshot.save(folder / "again")
            again = Snapshot.load(folder / "again")
    assert again.info == snapshot.info
    assert (again.names, again.prompts, again.images) == (snapshot.names, snapshot.prompts, snapshot.images)
    assert all(bits(getattr(again, figure)) == bits(getattr(snapshot, figure)) for figure in FIGURES)


def bits(tensor: Tensor | None) -> bytes | None:
    return None if tensor is None else tensor.numpy().tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_the_good_files_are_good(kind: str) -> None:
    """Else whatever is refused below might be refused for any reason."""
    found = loaded(kind, good_file(kind))
    assert found is not None
    check(found)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@examples(60)
def test_a_file_with_flipped_bits_is_refused_or_usable(kind: str, data: st.DataObject) -> None:
    content = bytearray(good_file(kind))
    for place in data.draw(st.lists(st.integers(0, 8 * len(content) - 1), min_size=1, max_size=4)):
        content[place // 8] ^= 1 << place % 8
    check(loaded(kind, bytes(content)))


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@examples(60)
def test_a_file_of_another_length_is_refused(kind: str, data: st.DataObject) -> None:
    content = good_file(kind)
    kept = data.draw(st.integers(0, len(content)))
    content = content[:kept] + data.draw(st.binary(min_size=kept == len(content), max_size=20))
    assert content == good_file(kind) or loaded(kind, content) is None


NUMBERS = st.one_of(
    st.integers(-1, 40), st.sampled_from([2**31, 2**62, 2**63 - 1, 2**63, 2**64, 10**30, -(2**63), 0.5])
)
DTYPES = ["F32", "F64", "F16", "BF16", "I64", "I32", "U8", "BOOL", "F8_E4M3", "F8_E8M0", "F4", "C64", "U64", "X", "", 5]


@pytest.mark.parametrize("kind", KINDS)
@given(
    tensors=st.dictionaries(
        st.sampled_from([*FIGURES, "images", "image_sizes", "image.0", "mask.0", "tokens.0", "__metadata__", ""]),
        st.fixed_dictionaries(
            {
                "dtype": st.sampled_from(DTYPES),
                "shape": st.lists(NUMBERS, max_size=4),
                "data_offsets": st.lists(NUMBERS, min_size=2, max_size=2),
            }
        ),
        max_size=4,
    ),
    metadata=st.one_of(
        st.none(),
        st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2),
        st.fixed_dictionaries({HEADER: st.one_of(st.text(max_size=10), NUMBERS, st.just("[" * 100_000))}),
        st.just({HEADER: json.dumps({"kind": "snapshot", "version": VERSION})}),
    ),
    length=st.one_of(st.none(), st.integers(0, 2**64 - 1)),
    body=st.binary(max_size=40),
)
@examples(100)
def test_a_forged_header_is_refused(
    kind: str, tensors: dict[str, Any], metadata: Any, length: int | None, body: bytes
) -> None:
    header = json.dumps({**tensors, **({} if metadata is None else {"__metadata__": metadata})}).encode()
    size = struct.pack("<Q", len(header) if length is None else length)
    assert loaded(kind, size + header + body) is None


DEEP = "[" * 100_000 + "]" * 100_000
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), texts, st.just(10**400)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
OTHER_KINDS = (torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.int64, torch.bool)
OTHER_SHAPES = ((), (2,), (1,), (0,), (3,), (2, 0, 0), (0, 2, 3), (2, 2), (2, 1, 1), (1, 2, 1, 3))
OTHER_SIZES = ([2**63 - 1, 2**63 - 1], [-1, 1], [0, 0], [0.0, 0.0], [[0, 0]], [1], 0)
TENSORS = st.sampled_from(
    [
        *(torch.zeros(2, 2, 3, dtype=kind) for kind in OTHER_KINDS),
        *(torch.zeros(shape) for shape in OTHER_SHAPES),
        *(torch.tensor(sizes) for sizes in OTHER_SIZES),
        torch.zeros(2, dtype=torch.uint8),
        torch.zeros(2, dtype=torch.complex64),
        torch.full((2, 2, 3), torch.nan),
        torch.full((2, 2, 3), 3e38).cumprod(2),
    ]
)


def forged(kind: str, tensors: dict[str, Tensor], metadata: Any) -> bytes:
    header = json.dumps({"kind": kind, "version": VERSION, **metadata})
    return save({name: value.clone() for name, value in tensors.items()}, {HEADER: header})


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@examples(150)
def test_a_file_with_parts_of_another_kind_is_refused_or_usable(kind: str, data: st.DataObject) -> None:
    tensors, metadata = GOOD.tensors() if kind == "snapshot" else file_parts()
    places: list[Any] = [
        metadata,
        metadata,
        metadata.get("info", metadata["probes"][0] if "probes" in metadata else {}),
    ]
    for _ in range(data.draw(st.integers(1, 2))):
        if data.draw(st.booleans()):
            name = data.draw(st.sampled_from([*tensors, "extra", "names"]))
            tensors[name] = data.draw(TENSORS)
        else:
            place = data.draw(st.sampled_from(places))
            name = data.draw(st.sampled_from([*place, "extra"]))
            place[name] = data.draw(VALUES)
            if data.draw(st.booleans()) and data.draw(st.booleans()):
                del place[name]
    check(loaded(kind, forged(kind, tensors, metadata)))


def file_parts() -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors, rows = PROBES.tensors()
    return dict(tensors), {"probes": rows, "digest": PROBES.digest}


@given(
    values=st.lists(st.floats(width=32, allow_nan=True), min_size=20, max_size=20), height=st.sampled_from([1, 2, 3, 6])
)
@examples(80)
def test_maps_and_figures_of_any_values_are_usable(values: list[float], height: int) -> None:
    numbers = torch.tensor(values)
    snapshot = replace(
        GOOD,
        maps=numbers[:12].view(2, height, -1),
        similarity=numbers[12:14],
        energy_inside_mask=numbers[14:16],
        pointing=numbers[16:18],
        noise_floor=numbers[18:20],
    )
    use(snapshot)


@given(data=st.data())
@examples(25)
def test_a_page_with_a_damaged_picture_is_made_or_says_which_is_damaged(data: st.DataObject) -> None:
    picture = bytearray(PICTURE)
    for place in data.draw(st.lists(st.integers(0, 8 * len(picture) - 1), min_size=1, max_size=6)):
        picture[place // 8] ^= 1 << place % 8
    cut = bytes(picture)[: data.draw(st.integers(0, len(picture)))]
    damaged = replace(GOOD, images=(PICTURE, cut))
    page = accepted(lambda: html_report(damaged, GOOD, compare(damaged, GOOD)))
    assert page is None or page.count('alt="Input of') == 2


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (4000, 1)], ids=str)
def test_maps_and_pictures_of_any_proportions_are_drawn(size: tuple[int, int]) -> None:
    picture = as_jpeg(Image.new("RGB", size), 90)
    for pictures in ((), (picture, picture)):
        use(replace(GOOD, maps=torch.rand(2, *size), images=pictures))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "nested", [DEEP, DEEP.replace("[", '{"a":').replace("]", "}").replace(":}", ":0}")], ids=["lists", "objects"]
)
def test_deeply_nested_metadata_are_refused(kind: str, nested: str) -> None:
    header = json.dumps({"kind": kind, "version": VERSION, "info": 0, "probes": 0}).replace(": 0", f": {nested}")
    assert loaded(kind, save({}, {HEADER: header})) is None


@pytest.mark.parametrize("kind", KINDS)
def test_an_old_file_outlives_a_new_one_that_cannot_be_written(kind: str, tmp_path: Path) -> None:
    good = GOOD if kind == "snapshot" else PROBES
    good.save(tmp_path / "f")
    with as_users_run():
        bad: Any = replace(GOOD, names=({1},)) if kind == "snapshot" else ProbeSet(PROBES)
        if kind == "probe set":
            bad.digest = {1}  # no JSON
        with pytest.raises(TypeError, match="not JSON serializable"):
            bad.save(tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == good_file(kind)
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_file_that_says_odd_things_of_itself_is_refused_in_few_words(text: str) -> None:
    for header in ({"kind": text, "version": VERSION}, {"kind": "snapshot", "version": text}):
        assert loaded("snapshot", save({}, {HEADER: json.dumps(header)})) is None
