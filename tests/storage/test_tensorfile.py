"""Tensors and metadata come back from their file bit for bit, and any other file is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st
from safetensors.torch import save
from torch import Tensor

from clipcam_lightning.errors import SnapshotError
from clipcam_lightning.storage.tensorfile import HEADER, VERSION, load_tensors, save_tensors
from tests.support.hostile import examples

KIND = "cake"


def file_with(header: Any) -> bytes:
    return save({"x": torch.ones(3)}, {HEADER: json.dumps(header)})


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor([torch.nan, -0.0, torch.inf, 1e-45, 0.1]),
        torch.rand(3, 4).half(),
        torch.rand(3, 4).bfloat16(),
        torch.arange(24).view(2, 3, 4).permute(2, 0, 1),  # not contiguous
        torch.tensor([[True, False]]),
        torch.randint(0, 256, (2, 5), dtype=torch.uint8),
        torch.zeros(0, 3),
        torch.tensor(7),
    ],
    ids=lambda tensor: f"{tensor.dtype}{tuple(tensor.shape)}",
)
def test_a_tensor_comes_back_bit_for_bit(tmp_path: Path, tensor: Tensor) -> None:
    save_tensors(tmp_path / "f", KIND, {"x": tensor}, {})

    (loaded,) = load_tensors(tmp_path / "f", KIND)[0].values()

    assert (loaded.dtype, loaded.shape) == (tensor.dtype, tensor.shape)
    assert bits(loaded) == bits(tensor)


def bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def test_tensors_that_share_memory_come_back_each_whole(tmp_path: Path) -> None:
    whole = torch.arange(6)
    tensors = {"whole": whole, "again": whole, "part": whole[2:4]}
    save_tensors(tmp_path / "f", KIND, tensors, {})

    loaded = load_tensors(tmp_path / "f", KIND)[0]

    assert {name: value.tolist() for name, value in loaded.items()} == {
        name: value.tolist() for name, value in tensors.items()
    }


def test_metadata_with_any_text_come_back_unchanged(tmp_path: Path) -> None:
    metadata = {"text": ["日本", "a\0b\n", "\ud800", ""], "number": 1.5, "none": None}
    save_tensors(tmp_path / "new" / "folder" / "f", KIND, {}, metadata)

    loaded = load_tensors(tmp_path / "new" / "folder" / "f", KIND)[1]

    assert loaded == {"kind": KIND, "version": VERSION, **metadata}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read as a cake"),
        (b"", "cannot be read as a cake"),
        (b"\x80\x04K\x01.", "cannot be read as a cake"),  # a pickle of 1
        (file_with({"kind": KIND, "version": VERSION})[:-1], "cannot be read as a cake"),
        (save({"x": torch.ones(3)}), "not a cake .* another program"),
        (save({"x": torch.ones(3)}, {HEADER: "{"}), "cannot be read as a cake"),
        (file_with([1]), "not a cake .* another program"),
        (file_with({"kind": "soup", "version": VERSION}), "not a cake .it is soup"),
        (file_with({"version": VERSION}), "not a cake"),
        (
            file_with({"kind": KIND, "version": VERSION + 1}),
            f"version {VERSION + 1}, this package reads {VERSION}",
        ),
        (file_with({"kind": KIND}), "version None"),
    ],
    ids=[
        "missing",
        "empty",
        "pickle",
        "cut",
        "no header",
        "bad JSON",
        "list",
        "soup",
        "no kind",
        "future",
        "unversioned",
    ],
)
def test_a_file_of_another_kind_or_version_is_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "f").write_bytes(content)
    with pytest.raises(SnapshotError, match=message):
        load_tensors(tmp_path / "f", KIND)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SnapshotError, match="cannot be read as a cake"):
        load_tensors(tmp_path, KIND)


@given(st.data())
@examples(100)
def test_a_damaged_file_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    content = bytearray(file_with({"kind": KIND, "version": VERSION}))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    file = tmp_path_factory.getbasetemp() / "damaged"
    file.write_bytes(content[: data.draw(st.integers(0, len(content)))])

    try:
        tensors, metadata = load_tensors(file, KIND)
    except SnapshotError:
        return
    assert metadata["kind"] == KIND
    assert len(tensors) == 1


@pytest.mark.parametrize("is_folder", [False, True], ids=["missing", "folder"])
def test_a_missing_file_and_a_folder_are_reported_as_no_file(tmp_path: Path, is_folder: bool) -> None:
    if is_folder:
        (tmp_path / "x").mkdir()
    with pytest.raises(SnapshotError, match="No such file"):
        load_tensors(tmp_path / "x", "snapshot")
