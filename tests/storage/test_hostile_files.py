"""A damaged or forged file is refused, or what it holds can be compared, drawn and reported."""

import json
import math
import struct
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, strategies as st
from PIL import Image
from safetensors.torch import save
from torch import Tensor

from clipcam_lightning.drift.compare import compare
from clipcam_lightning.drift.report_json import report_as_json
from clipcam_lightning.drift.snapshot import Snapshot, SnapshotInfo
from clipcam_lightning.monitoring.history import HistoryEntry, relative_saliency
from clipcam_lightning.probes.probe import Probe
from clipcam_lightning.probes.probe_set import ProbeSet
from clipcam_lightning.storage.jpeg import encode_jpeg
from clipcam_lightning.storage.tensorfile import HEADER, VERSION
from clipcam_lightning.visualization.contact_sheet import contact_sheet
from clipcam_lightning.visualization.panels import probe_panel
from clipcam_lightning.visualization.report import html_report
from tests.support.hostile import TEXTS, attempt, example_folder, examples, texts, without_test_checks

pytestmark = pytest.mark.slow

PIXELS = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
IMAGE = encode_jpeg(Image.fromarray(PIXELS), 90)
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
    images=(IMAGE, IMAGE),
)  # fmt: skip
PROBES = ProbeSet(
    [
        Probe(PIXELS[:4, :6], "a cat", mask=np.eye(4, 6, dtype=bool), tokens=torch.tensor([1, 5, 9])),
        Probe(torch.rand(3, 4, 6), "a dog"),
    ]
)
LOADERS: dict[str, Callable[[Path], Any]] = {"snapshot": Snapshot.load, "probe set": ProbeSet}
METRICS = ("maps", "similarity", "energy_inside_mask", "pointing", "noise_floor")


@cache
def good_file(kind: str) -> bytes:
    with example_folder() as folder:
        (GOOD if kind == "snapshot" else PROBES).save(folder / "f")
        return (folder / "f").read_bytes()


def loaded(kind: str, content: bytes) -> Any:
    """Load a file of this kind and content; return ``None`` if it is refused."""
    with example_folder() as folder:
        (folder / "f").write_bytes(content)
        value = attempt(lambda: LOADERS[kind](folder / "f"))
        assert (folder / "f").read_bytes() == content
        return value


def check(value: Any) -> None:
    """Check that a loaded value is as usable as any other of its kind."""
    if isinstance(value, ProbeSet):
        assert value.digest == PROBES.digest
        assert value.prompts == PROBES.prompts
    elif value is not None:
        use(value)


def use(snapshot: Snapshot) -> None:
    """Do everything that the package does with a snapshot."""
    count = len(snapshot.names)
    entry = HistoryEntry(
        0, relative_saliency(snapshot.maps).half(), (0.5,) * count, (True,) * count, tuple(snapshot.states)
    )
    with without_test_checks():
        other = GOOD if attempt(lambda: compare(GOOD, snapshot)) else snapshot
        for before, now in ((other, snapshot), (snapshot, other))[: 1 if other is snapshot else 2]:
            report = compare(before, now)
            assert str(report)
            assert math.isfinite(report.drift)
            json.dumps(report_as_json(report), allow_nan=False)
            attempt(lambda before=before, now=now, report=report: html_report(before, now, report))
            row, steps = report.probes[-1], (before.info.step, now.info.step)
            probe_panel(GREY[0], before.maps[-1], now.maps[-1], row, steps=steps)
        contact_sheet(GREY[:1].expand(len(snapshot.names), -1, -1, -1), snapshot.prompts, [entry], report.flagged_first)
        with example_folder() as folder:
            snapshot.save(folder / "again")
            again = Snapshot.load(folder / "again")
    assert again.info == snapshot.info
    assert (again.names, again.prompts, again.images) == (snapshot.names, snapshot.prompts, snapshot.images)
    assert all(bits(getattr(again, name)) == bits(getattr(snapshot, name)) for name in METRICS)


def bits(tensor: Tensor | None) -> bytes | None:
    return None if tensor is None else tensor.numpy().tobytes()


@pytest.mark.parametrize("kind", LOADERS)
def test_an_undamaged_file_is_accepted(kind: str) -> None:
    """Otherwise the refusals below might have any other reason."""
    value = loaded(kind, good_file(kind))
    assert value is not None
    check(value)


@pytest.mark.parametrize("kind", LOADERS)
@given(data=st.data())
@examples(60)
def test_a_file_with_flipped_bits_is_refused_or_usable(kind: str, data: st.DataObject) -> None:
    content = bytearray(good_file(kind))
    for place in data.draw(st.lists(st.integers(0, 8 * len(content) - 1), min_size=1, max_size=4)):
        content[place // 8] ^= 1 << place % 8
    check(loaded(kind, bytes(content)))


@pytest.mark.parametrize("kind", LOADERS)
@given(data=st.data())
@examples(60)
def test_a_file_of_another_length_is_refused(kind: str, data: st.DataObject) -> None:
    content = good_file(kind)
    kept = data.draw(st.integers(0, len(content)))
    content = content[:kept] + data.draw(st.binary(min_size=kept == len(content), max_size=20))
    assume(len(content) != len(good_file(kind)))
    assert loaded(kind, content) is None


NUMBERS = st.one_of(
    st.integers(-1, 40), st.sampled_from([2**31, 2**62, 2**63 - 1, 2**63, 2**64, 10**30, -(2**63), 0.5])
)
DTYPES = ["F32", "F64", "F16", "BF16", "I64", "I32", "U8", "BOOL", "F8_E4M3", "F8_E8M0", "F4", "C64", "U64", "X", "", 5]


@pytest.mark.parametrize("kind", LOADERS)
@given(
    tensors=st.dictionaries(
        st.sampled_from([*METRICS, "images", "image_sizes", "image.0", "mask.0", "tokens.0", "__metadata__", ""]),
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


@pytest.mark.parametrize("kind", LOADERS)
@given(data=st.data())
@examples(150)
def test_a_file_with_parts_of_another_type_is_refused_or_usable(kind: str, data: st.DataObject) -> None:
    tensors, metadata = GOOD.to_tensors() if kind == "snapshot" else file_parts()
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
    tensors, rows = PROBES.to_tensors()
    return dict(tensors), {"probes": rows, "digest": PROBES.digest}


@given(
    values=st.lists(st.floats(width=32, allow_nan=True), min_size=20, max_size=20), height=st.sampled_from([1, 2, 3, 6])
)
@examples(80)
def test_maps_and_metrics_of_any_values_are_usable(values: list[float], height: int) -> None:
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
def test_a_report_with_a_damaged_image_is_written_or_names_the_image(data: st.DataObject) -> None:
    image = bytearray(IMAGE)
    for place in data.draw(st.lists(st.integers(0, 8 * len(image) - 1), min_size=1, max_size=6)):
        image[place // 8] ^= 1 << place % 8
    cut = bytes(image)[: data.draw(st.integers(0, len(image)))]
    damaged = replace(GOOD, images=(IMAGE, cut))
    page = attempt(lambda: html_report(damaged, GOOD, compare(damaged, GOOD)))
    assert page is None or page.count('alt="Input of') == 2


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (4000, 1)], ids=str)
def test_maps_and_images_of_any_proportions_are_drawn(size: tuple[int, int]) -> None:
    image = encode_jpeg(Image.new("RGB", size), 90)
    for images in ((), (image, image)):
        use(replace(GOOD, maps=torch.rand(2, *size), images=images))


@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize(
    "nested", [DEEP, DEEP.replace("[", '{"a":').replace("]", "}").replace(":}", ":0}")], ids=["lists", "objects"]
)
def test_deeply_nested_metadata_are_refused(kind: str, nested: str) -> None:
    header = json.dumps({"kind": kind, "version": VERSION, "info": 0, "probes": 0}).replace(": 0", f": {nested}")
    assert loaded(kind, save({}, {HEADER: header})) is None


@pytest.mark.parametrize("kind", LOADERS)
def test_an_old_file_stays_when_the_new_one_cannot_be_written(kind: str, tmp_path: Path) -> None:
    good = GOOD if kind == "snapshot" else PROBES
    good.save(tmp_path / "f")
    with without_test_checks():
        bad: Any = replace(GOOD, names=({1},)) if kind == "snapshot" else ProbeSet(PROBES)
        if kind == "probe set":
            bad.digest = {1}  # JSON cannot represent it
        with pytest.raises(TypeError, match="not JSON serializable"):
            bad.save(tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == good_file(kind)
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_file_with_any_text_as_its_kind_or_version_is_refused(text: str) -> None:
    for header in ({"kind": text, "version": VERSION}, {"kind": "snapshot", "version": text}):
        assert loaded("snapshot", save({}, {HEADER: json.dumps(header)})) is None
