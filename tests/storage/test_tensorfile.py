"""A file comes back bit for bit, appears whole or not at all, and anything else is refused in words."""

import json
import os
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save
from torch import Tensor

from clipcam_lightning.errors import SnapshotError
from clipcam_lightning.storage.tensorfile import (
    HEADER,
    VERSION,
    append_line,
    load_tensors,
    save_tensors,
    write_atomically,
)

KIND = "cake"


def file_of(header: Any) -> bytes:
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


def test_metadata_come_back_whatever_the_text(tmp_path: Path) -> None:
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
        (file_of({"kind": KIND, "version": VERSION})[:-1], "cannot be read as a cake"),
        (save({"x": torch.ones(3)}), "not a cake .* another program"),
        (save({"x": torch.ones(3)}, {HEADER: "{"}), "cannot be read as a cake"),
        (file_of([1]), "not a cake .* another program"),
        (file_of({"kind": "soup", "version": VERSION}), "not a cake .it is soup"),
        (file_of({"version": VERSION}), "not a cake"),
        (file_of({"kind": KIND, "version": VERSION + 1}), f"version {VERSION + 1}, this package reads {VERSION}"),
        (file_of({"kind": KIND}), "version None"),
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
def test_what_is_no_such_file_is_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "f").write_bytes(content)
    with pytest.raises(SnapshotError, match=message):
        load_tensors(tmp_path / "f", KIND)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SnapshotError, match="cannot be read as a cake"):
        load_tensors(tmp_path, KIND)


@given(st.data())
def test_a_damaged_file_is_read_or_refused_and_never_a_crash(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(file_of({"kind": KIND, "version": VERSION}))
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


def no_space(*_args: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("breaks", [(os, "fsync"), (Path, "chmod"), (Path, "replace")], ids=lambda b: b[1])
@pytest.mark.parametrize("old", [b"old", None])
def test_a_write_that_fails_leaves_what_was_there_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, breaks: tuple[Any, str], old: bytes | None
) -> None:
    if old is not None:
        (tmp_path / "f").write_bytes(old)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    with monkeypatch.context() as patch:
        patch.setattr(*breaks, no_space)
        with pytest.raises(OSError, match="No space"):
            write_atomically(tmp_path / "f", b"new")

    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_write_replaces_what_was_there_and_others_may_read_it(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"old and longer")

    write_atomically(tmp_path / "f", b"new")

    assert [path.name for path in tmp_path.iterdir()] == ["f"]
    assert (tmp_path / "f").read_bytes() == b"new"
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o644


def test_a_name_that_is_no_file_s_is_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(OSError, match="is not a file"):
        write_atomically(pipe, b"new")
    assert pipe.is_fifo()
    assert list(tmp_path.iterdir()) == [pipe]


def test_lines_are_appended_whole_and_what_a_killed_process_left_of_one_is_cut_off(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "history.jsonl"
    for left, kept in ((b"", ""), (b'{"a', ""), (b"first\nsecond\n", "first\nsecond\n"), (b'first\n{"se', "first\n")):
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(left)
        append_line(file, "last")
        assert file.read_text() == f"{kept}last\n"


@pytest.mark.parametrize("room", [0, 3, 8192, 20_000])
def test_a_line_that_does_not_fit_leaves_the_lines_before_it(tmp_path: Path, room: int) -> None:
    file = tmp_path / "history.jsonl"
    append_line(file, "first")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len("first\n") + room, hard))  # what fits is written, then it fails
    try:
        with pytest.raises(OSError, match="File too large"):
            append_line(file, 30_000 * "x")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert file.read_text() == "first\n"
    append_line(file, "second")
    assert file.read_text() == "first\nsecond\n"


@pytest.mark.parametrize("there", [False, True], ids=["nothing", "a folder"])
def test_what_is_no_file_is_said_to_be_none(tmp_path: Path, there: bool) -> None:
    if there:
        (tmp_path / "x").mkdir()
    with pytest.raises(SnapshotError, match="No such file"):
        load_tensors(tmp_path / "x", "snapshot")
