"""Files in stores: whole objects, current content, and errors of the operating system's kinds."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest

from clipcam_lightning.cam.writing import write_atomically
from clipcam_lightning.errors import SnapshotError
from clipcam_lightning.storage.atomic import append_line, write_new
from clipcam_lightning.storage.paths import as_path
from clipcam_lightning.storage.reading import exists, is_file, is_folder, read_bytes
from clipcam_lightning.storage.tensorfile import load_tensors
from tests.support.stores import BrokenStore

WRITE = "import sys, fsspec; fsspec.filesystem('s3').pipe_file(sys.argv[1], sys.argv[2].encode())"


def write_elsewhere(url: str, content: str) -> None:
    """Write an object in a process of its own, of which the caches of this one hold nothing."""
    subprocess.run([sys.executable, "-c", WRITE, url, content], check=True)


def test_a_write_replaces_the_old_object(store: str) -> None:
    file = as_path(f"{store}/a/f")
    for content in (b"old and longer", b"new", b""):
        write_atomically(file, content)
        assert read_bytes(file) == content


def test_lookups_tell_files_from_folders(store: str) -> None:
    folder = as_path(store) / "a"
    assert not exists(folder)
    write_atomically(folder / "f", b"1")

    assert (exists(folder), is_folder(folder), is_file(folder)) == (True, True, False)
    assert (exists(folder / "f"), is_folder(folder / "f"), is_file(folder / "f")) == (True, False, True)
    assert not exists(folder / "g")
    assert is_folder(as_path(store))


def test_a_line_is_appended_after_cutting_off_an_incomplete_last_line(store: str) -> None:
    file = as_path(f"{store}/history.jsonl")
    append_line(file, "only")
    assert read_bytes(file) == b"only\n"
    for before, kept in ((b"", b""), (b'{"a', b""), (b"first\nsecond\n", b"first\nsecond\n"), (b"1\n{2", b"1\n")):
        write_atomically(file, before)
        append_line(file, "last")
        assert read_bytes(file) == kept + b"last\n"


def test_what_another_process_wrote_is_seen_although_listings_are_cached(s3: str) -> None:
    folder, store = as_path(f"{s3}/a"), fsspec.filesystem("s3")
    write_atomically(folder / "f", b"1")
    assert len(store.ls(folder.path)) == 1  # fills the cache

    write_elsewhere(f"{s3}/a/new", "2")
    write_elsewhere(f"{s3}/a/f", "longer than before")

    assert len(store.ls(folder.path)) == 1  # the cache is as it was
    assert exists(folder / "new")
    store.ls(folder.path)
    write_elsewhere(f"{s3}/a/newer", "2")
    assert read_bytes(folder / "newer") == b"2"
    assert read_bytes(folder / "f") == b"longer than before"
    append_line(folder / "new", "line")
    assert read_bytes(folder / "new") == b"line\n"


def test_a_new_file_is_written_once(store: str, tmp_path: Path) -> None:
    for file in (as_path(f"{store}/runs/claim"), tmp_path / "runs" / "claim"):
        assert write_new(file, b"mine")
        assert not write_new(file, b"yours")
        assert read_bytes(file) == b"mine"
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["claim"]


def test_of_many_writers_of_a_new_file_one_succeeds(s3: str, tmp_path: Path) -> None:
    for file in (as_path(f"{s3}/claim"), tmp_path / "claim"):
        with ThreadPoolExecutor(8) as pool:
            written = list(pool.map(lambda i, file=file: write_new(file, b"%d" % i), range(8)))
        assert sum(written) == 1
        assert read_bytes(file) == b"%d" % written.index(True)


def test_a_new_file_is_written_on_a_disk_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", refuse)
    assert write_new(tmp_path / "claim", b"mine")
    assert not write_new(tmp_path / "claim", b"yours")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("claim", b"mine")]


def test_a_file_in_the_way_of_a_folder_is_an_error_and_not_a_claim_of_another(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"")
    with pytest.raises(OSError, match="f"):
        write_new(tmp_path / "f" / "claim", b"mine")


def test_a_failed_write_leaves_the_old_object(broken: str) -> None:
    file = as_path(f"{broken}/history.jsonl")
    write_atomically(file, b"old\n")
    for failing in ("pipe_file", "cat_file"):
        BrokenStore.failing = {failing}
        with pytest.raises(OSError, match=r"RuntimeError: the connection was lost: 'broken:///tests/history.jsonl'"):
            append_line(file, "new")
    BrokenStore.failing = {"pipe_file"}
    with pytest.raises(OSError, match="the connection was lost"):
        write_atomically(file, b"new")
    with pytest.raises(OSError, match="the connection was lost"):
        write_new(as_path(f"{broken}/claim"), b"new")
    BrokenStore.failing = set()

    assert read_bytes(file) == b"old\n"
    assert not exists(as_path(f"{broken}/claim"))
    append_line(file, "new")  # the next attempt succeeds
    assert read_bytes(file) == b"old\nnew\n"


def test_a_missing_object_and_a_missing_bucket_are_files_not_found(s3: str) -> None:
    for url, reason in ((f"{s3}/none", "No such file"), ("s3://no-such-bucket/none", "bucket does not exist")):
        with pytest.raises(FileNotFoundError, match=reason) as raised:
            read_bytes(as_path(url))
        assert raised.value.filename == url
    with pytest.raises(FileNotFoundError, match="bucket does not exist"):
        write_atomically(as_path("s3://no-such-bucket/f"), b"1")
    assert not exists(as_path("s3://no-such-bucket"))


def test_a_store_that_forbids_reading_is_a_permission_error(broken: str) -> None:
    BrokenStore.failing = {"info"}
    with pytest.raises(PermissionError, match="broken:///tests/f"):
        exists(as_path(f"{broken}/f"))


def test_a_server_that_does_not_answer_is_an_error_in_bounded_time(unreachable: str) -> None:
    with pytest.raises(OSError, match="Could not connect to the endpoint URL") as raised:
        read_bytes(as_path(f"{unreachable}/f"))
    assert raised.value.filename == f"{unreachable}/f"
    with pytest.raises(SnapshotError, match=r"s3://bucket/f cannot be read as a snapshot: .*Could not connect"):
        load_tensors(as_path(f"{unreachable}/f"), "snapshot")
