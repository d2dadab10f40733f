"""A file or line is written whole or not at all."""

import os
import resource
from pathlib import Path
from typing import Any

import pytest

from clipcam_lightning.storage.atomic import append_line, write_atomically


def fail_for_lack_of_space(*_args: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("failing", [(os, "fsync"), (Path, "chmod"), (Path, "replace")], ids=lambda call: call[1])
@pytest.mark.parametrize("old", [b"old", None], ids=["old file", "no file"])
def test_a_failed_write_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: tuple[Any, str], old: bytes | None
) -> None:
    if old is not None:
        (tmp_path / "f").write_bytes(old)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    with monkeypatch.context() as patch:
        patch.setattr(*failing, fail_for_lack_of_space)
        with pytest.raises(OSError, match="No space"):
            write_atomically(tmp_path / "f", b"new")

    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_write_replaces_the_old_file_and_other_users_can_read_the_new_one(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"old and longer")

    write_atomically(tmp_path / "f", b"new")

    assert [path.name for path in tmp_path.iterdir()] == ["f"]
    assert (tmp_path / "f").read_bytes() == b"new"
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o644


def test_a_pipe_is_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(OSError, match="is not a file"):
        write_atomically(pipe, b"new")
    assert pipe.is_fifo()
    assert list(tmp_path.iterdir()) == [pipe]


def test_a_line_is_appended_after_cutting_off_an_incomplete_last_line(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "history.jsonl"
    for before, kept in ((b"", ""), (b'{"a', ""), (b"first\nsecond\n", "first\nsecond\n"), (b'first\n{"se', "first\n")):
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(before)
        append_line(file, "last")
        assert file.read_text() == f"{kept}last\n"


@pytest.mark.parametrize("room", [0, 3, 8192, 20_000])
def test_a_line_that_does_not_fit_on_the_disk_leaves_the_lines_before_it(tmp_path: Path, room: int) -> None:
    file = tmp_path / "history.jsonl"
    append_line(file, "first")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len("first\n") + room, hard))  # writes a part, then fails
    try:
        with pytest.raises(OSError, match="File too large"):
            append_line(file, 30_000 * "x")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert file.read_text() == "first\n"
    append_line(file, "second")
    assert file.read_text() == "first\nsecond\n"
