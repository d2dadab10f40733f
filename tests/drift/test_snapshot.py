"""Snapshots are loaded bit for bit as they were saved, and damaged files are refused."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from upath import UPath

from clipcam_lightning.cam.writing import write_atomically
from clipcam_lightning.drift.snapshot import Snapshot, SnapshotInfo
from clipcam_lightning.errors import SnapshotError
from clipcam_lightning.probes.probe_set import ProbeSet
from clipcam_lightning.storage.paths import as_path
from clipcam_lightning.storage.reading import read_bytes
from clipcam_lightning.storage.tensorfile import save_tensors

INFO = SnapshotInfo(
    digest="d", step=12, epoch=3, method="gradcam", target="similarity", scales=(1.0, 1.25), flip=True, fuse="max",
    layers=("visual.a", "visual.b"), fingerprint="f", dtype="float32", versions={"torch": "2"}, score_scale=100.0,
    shift=True, precision="bfloat16",
)  # fmt: skip
SNAPSHOT = Snapshot(
    maps=torch.tensor([[[0.1, -0.0, torch.nan]], [[1e-45, torch.inf, 3.0]]]),
    similarity=torch.tensor([0.25, -1.0]),
    energy_inside_mask=torch.tensor([torch.nan, 0.5]),
    pointing=torch.tensor([torch.nan, 1.0]),
    names=("a", "b"),
    prompts=("日本\n\0", "\ud800"),
    info=INFO,
)
TENSORS = ("maps", "similarity", "energy_inside_mask", "pointing")


def test_a_snapshot_is_loaded_bit_for_bit_as_it_was_saved(tmp_path: Path) -> None:
    SNAPSHOT.save(tmp_path / "s")

    loaded = Snapshot.load(tmp_path / "s")

    for name in TENSORS:
        assert getattr(loaded, name).numpy().tobytes() == getattr(SNAPSHOT, name).numpy().tobytes(), name
    assert (loaded.names, loaded.prompts, loaded.info) == (SNAPSHOT.names, SNAPSHOT.prompts, INFO)


def test_noise_floor_and_images_are_loaded_as_they_were_saved(tmp_path: Path) -> None:
    images, floor = (b"one", b""), torch.tensor([0.5, torch.nan])
    replace(SNAPSHOT, noise_floor=floor, images=images).save(tmp_path / "s")

    loaded = Snapshot.load(tmp_path / "s")

    assert loaded.images == images
    torch.testing.assert_close(loaded.noise_floor, floor, equal_nan=True)


def test_whole_numbers_among_the_scales_are_loaded_as_floats(tmp_path: Path) -> None:
    save_tensors(tmp_path / "s", "snapshot", *damaged(scales=[1, 2]))
    assert repr(Snapshot.load(tmp_path / "s").info.scales) == "(1.0, 2.0)"


def test_a_snapshot_is_printed_on_one_line_and_compared_by_identity() -> None:
    """A generated ``__repr__`` would print every number, and a generated ``__eq__`` would raise."""
    shown = repr(replace(SNAPSHOT, images=(b"one", b"two")))

    assert shown.startswith("Snapshot(maps=float32[2, 1, 3], similarity=float32[2], ")
    assert "images=(<3 bytes>, <3 bytes>)" in shown
    assert "\n" not in shown
    assert replace(SNAPSHOT) != SNAPSHOT


def test_a_snapshot_of_tensors_that_share_memory_can_be_saved(tmp_path: Path) -> None:
    unknown = torch.full((2,), torch.nan)
    replace(SNAPSHOT, energy_inside_mask=unknown, pointing=unknown).save(tmp_path / "s")
    assert Snapshot.load(tmp_path / "s").pointing.isnan().all()
    big = torch.rand(4, 2, 3, 5)
    replace(SNAPSHOT, maps=big[:2, 0], similarity=big[0, 0, 0, :2]).save(tmp_path / "s")
    assert torch.equal(Snapshot.load(tmp_path / "s").maps, big[:2, 0])


def damaged(**changes: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of SNAPSHOT with parts replaced; ``None`` removes a part."""
    tensors, metadata = SNAPSHOT.to_tensors()
    for name, value in changes.items():
        part = metadata if name in metadata else metadata["info"] if name in metadata["info"] else tensors
        part[name] = value
        if value is None:
            del part[name]
    return tensors, metadata


@pytest.mark.parametrize(
    "changes",
    [
        {"names": ["a"]},
        {"names": ["a", "b", "c"]},
        {"prompts": ["a"]},
        {"maps": torch.zeros(3, 1, 3)},
        {"similarity": torch.zeros(1)},
        {"energy_inside_mask": torch.zeros(3)},
        {"pointing": torch.zeros(3)},
        {"maps": torch.zeros(2, 3)},
        {"maps": None},
        {"pointing": None},
        {"extra": torch.zeros(2)},
        {"info": None},
        {"info": 5},
        {"layers": None},
        {"scales": None},
        {"scales": 1.0},
        {"scales": []},
        {"scales": ["1"]},
        {"scales": [0.0]},
        {"scales": [float("inf")]},
        {"scales": [float("nan")]},
        {"scales": [True]},
        {"scales": [10**400]},
        {"score_scale": 0.0},
        {"score_scale": "1"},
        {"score_scale": True},
        {"score_scale": float("nan")},
        {"score_scale": 10**400},
        {"flip": None},
        {"flip": 1},
        {"shift": 1},
        {"precision": 16},
        {"fuse": None},
        {"fuse": 1},
        {"images": torch.zeros(3, dtype=torch.uint8), "image_sizes": torch.tensor([1, 1])},
        {"images": torch.zeros(3, dtype=torch.uint8), "image_sizes": torch.tensor([3])},
        {"images": torch.zeros(3), "image_sizes": torch.tensor([1, 2])},
        {"images": torch.zeros(3, dtype=torch.uint8)},
        {"noise_floor": torch.zeros(3)},
        {"digest": None},
        {"names": None},
        {"names": 5},
    ],
    ids=str,
)
def test_a_snapshot_with_parts_that_do_not_match_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    save_tensors(tmp_path / "s", "snapshot", *damaged(**changes))
    with pytest.raises(SnapshotError, match="not a whole snapshot"):
        Snapshot.load(tmp_path / "s")


def test_an_unchanged_snapshot_is_not_refused(tmp_path: Path) -> None:
    """Otherwise the test above would pass for any reason."""
    save_tensors(tmp_path / "s", "snapshot", *damaged())
    assert Snapshot.load(tmp_path / "s").info == INFO


@pytest.mark.parametrize("kind", ["missing", "probe set", "future", "cut"])
def test_a_file_that_is_not_a_snapshot_is_refused(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "s"
    if kind == "probe set":
        ProbeSet([(np.zeros((4, 6, 3), np.uint8), "a")]).save(file)
    elif kind != "missing":
        tensors, metadata = SNAPSHOT.to_tensors()
        save_tensors(file, "snapshot", tensors, {**metadata, **({"version": 99} if kind == "future" else {})})
        file.write_bytes(file.read_bytes()[: -5 if kind == "cut" else None])
    with pytest.raises(SnapshotError, match=str(file)):
        Snapshot.load(file)


def test_a_full_disk_leaves_the_previous_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_file: int) -> None:
        raise OSError(28, "No space left on device")

    SNAPSHOT.save(tmp_path / "s")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        replace(SNAPSHOT, maps=torch.zeros(2, 1, 3)).save(tmp_path / "s")

    assert [path.name for path in tmp_path.iterdir()] == ["s"]
    assert Snapshot.load(tmp_path / "s").maps[1, 0, 2] == 3


def test_the_metadata_are_json_and_hold_the_settings_of_the_maps(tmp_path: Path) -> None:
    SNAPSHOT.save(tmp_path / "s")
    content = (tmp_path / "s").read_bytes()
    header = json.loads(
        json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]["clipcam_lightning"]
    )
    assert header["info"] == {**vars(INFO), "layers": list(INFO.layers), "scales": list(INFO.scales)}


def test_states_are_one_per_probe_and_by_name_in_the_file(tmp_path: Path) -> None:
    maps = torch.stack([torch.zeros(2, 3), torch.ones(2, 3), torch.eye(2, 3), torch.full((2, 3), torch.nan)])
    snapshot = replace(
        SNAPSHOT, maps=maps, similarity=torch.zeros(4), energy_inside_mask=torch.zeros(4), pointing=torch.zeros(4)
    )
    names = ["all zero", "constant", "valid", "not finite"]
    assert [state.value for state in snapshot.states] == names
    snapshot = replace(snapshot, names=tuple("abcd"), prompts=tuple("abcd"))
    snapshot.save(tmp_path / "s")
    content = (tmp_path / "s").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert json.loads(header["__metadata__"]["clipcam_lightning"])["states"] == names


def test_a_file_without_states_is_read() -> None:
    tensors, metadata = SNAPSHOT.to_tensors()
    del metadata["states"]
    assert Snapshot.from_tensors(tensors, metadata).states == SNAPSHOT.states


def test_a_snapshot_in_a_store_is_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: str) -> None:
    monkeypatch.chdir(tmp_path)
    SNAPSHOT.save("local")
    SNAPSHOT.save(f"{store}/runs/s")

    loaded = Snapshot.load(UPath(f"{store}/runs/s"))

    assert read_bytes(as_path(f"{store}/runs/s")) == Path("local").read_bytes()
    for name in TENSORS:
        assert getattr(loaded, name).numpy().tobytes() == getattr(SNAPSHOT, name).numpy().tobytes(), name
    assert (loaded.names, loaded.prompts, loaded.info) == (SNAPSHOT.names, SNAPSHOT.prompts, INFO)
    assert [path.name for path in tmp_path.iterdir()] == ["local"]


def test_a_damaged_file_in_a_store_is_refused(store: str) -> None:
    SNAPSHOT.save(f"{store}/s")
    content = read_bytes(as_path(f"{store}/s"))
    save_tensors(as_path(f"{store}/other"), "probe set", *damaged())
    for damage in (b"", content[:-1], content[:100], b"\0" * 8, content.replace(b"version", b"versiom")):
        write_atomically(as_path(f"{store}/damaged"), damage)
        with pytest.raises(SnapshotError, match=f"{store}/damaged"):
            Snapshot.load(f"{store}/damaged")
    with pytest.raises(SnapshotError, match=f"{store}/other is not a snapshot"):
        Snapshot.load(f"{store}/other")
    with pytest.raises(SnapshotError, match=f"{store}/none cannot be read as a snapshot: No such file or directory"):
        Snapshot.load(f"{store}/none")
