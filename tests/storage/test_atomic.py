"""A file or line is written whole or not at all."""

import os
import resource
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from clipcam_lightning.cam.encoding import write_image
from clipcam_lightning.cam.writing import write_atomically
from clipcam_lightning.storage.atomic import append_line, write_new


def fail_for_lack_of_space(*_args: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("failing", ["fsync", "replace"])
@pytest.mark.parametrize("old", [b"old", None], ids=["old file", "no file"])
def test_a_failed_write_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str, old: bytes | None
) -> None:
    if old is not None:
        (tmp_path / "f").write_bytes(old)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    with monkeypatch.context() as patch:
        patch.setattr(os, failing, fail_for_lack_of_space)
        with pytest.raises(OSError, match="No space"):
            write_atomically(tmp_path / "f", b"new")

    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_write_replaces_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"old and longer")

    write_atomically(tmp_path / "f", b"new")

    assert [path.name for path in tmp_path.iterdir()] == ["f"]
    assert (tmp_path / "f").read_bytes() == b"new"


@pytest.fixture(params=[0o022, 0o077, 0o002], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_a_new_file_has_the_mode_that_the_umask_allows(tmp_path: Path, umask: int) -> None:
    write_atomically(tmp_path / "replaced", b"new")
    write_new(tmp_path / "created", b"new")
    write_image(Image.new("RGB", (1, 1)), tmp_path / "image.png")

    assert {path.name: mode_of(path) for path in tmp_path.iterdir()} == dict.fromkeys(
        ("replaced", "created", "image.png"), 0o666 & ~umask
    )


@pytest.mark.parametrize("mode", [0o600, 0o664, 0o444])
def test_a_replaced_file_keeps_its_mode(tmp_path: Path, umask: int, mode: int) -> None:
    file = tmp_path / "f"
    file.write_bytes(b"old")
    file.chmod(mode)

    write_atomically(file, b"new")

    assert file.read_bytes() == b"new"
    assert mode_of(file) == mode


def mode_of(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.mark.parametrize("target", ["present", "missing"])
def test_a_link_is_kept_and_its_target_replaced(tmp_path: Path, target: str) -> None:
    """As data versioning lays them out: the link in the project, the file in a cache."""
    (tmp_path / "cache").mkdir()
    (tmp_path / "project").mkdir()
    file, link = tmp_path / "cache" / "f", tmp_path / "project" / "f"
    if target == "present":
        file.write_bytes(b"old")
    link.symlink_to(Path("..", "cache", "f"))

    write_atomically(link, b"new")

    assert link.is_symlink()
    assert file.read_bytes() == b"new"
    assert [path.name for path in (*file.parent.iterdir(), *link.parent.iterdir())] == ["f", "f"]


def test_a_link_to_no_regular_file_is_refused(tmp_path: Path) -> None:
    pipe, link, loop = (tmp_path / name for name in ("pipe", "link", "loop"))
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    loop.symlink_to(loop)

    with pytest.raises(OSError, match="is not a file"):
        write_atomically(link, b"new")
    with pytest.raises(OSError, match="symbolic links"):
        write_atomically(loop, b"new")
    assert sorted(tmp_path.iterdir()) == [link, loop, pipe]
    assert pipe.is_fifo()


def test_threads_that_write_one_image_leave_a_whole_one(tmp_path: Path) -> None:
    file, images = tmp_path / "maps.png", [Image.new("RGB", (64, 64), (i, 0, 0)) for i in range(64)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda image: write_image(image, file), images))

    with Image.open(file) as image:
        image.load()
    assert [path.name for path in tmp_path.iterdir()] == ["maps.png"]


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
