"""A place is a local path or the URL of a store, and never becomes a local folder named after a protocol."""

import os
from pathlib import Path

import pytest
from upath import UPath

from clipcam_lightning.cam.urls import is_url
from clipcam_lightning.cam.writing import write_atomically
from clipcam_lightning.errors import ConfigError
from clipcam_lightning.storage.atomic import append_line, write_new
from clipcam_lightning.storage.paths import as_path, is_remote, join


@pytest.mark.parametrize(
    "place", ["runs/1", "/tmp/x", "~/x", "C:/x", "a::b", "test_x.py::name", "x:/y", "nul\0", "\ud800", "x" * 5000]
)
def test_a_local_path_is_the_path_that_pathlib_makes(place: str) -> None:
    for given in (place, Path(place)):
        path = as_path(given)
        assert isinstance(path, Path)
        assert path == Path(place)
        assert os.fspath(path) == os.fspath(Path(place))
        assert not is_remote(path)


@pytest.mark.parametrize("url", ["s3://bucket/runs/1", "memory://runs/1", "simplecache::s3://bucket/runs/1"])
def test_a_url_stays_a_url(url: str) -> None:
    for place in (url, UPath(url)):
        path = as_path(place)
        assert str(path) == url
        assert str(path.parent / "2") == f"{url[:-1]}2"
        assert is_remote(path)
        assert is_url(path)
        assert is_url(url)


def test_a_file_url_is_a_local_path() -> None:
    assert as_path("file:///tmp/x") == Path("/tmp/x")
    assert not is_remote(as_path("local:///tmp/x"))


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (Path("s3://bucket/x"), r"s3:/bucket/x is not a URL.* give the URL as text: 's3://bucket/x'"),
        (Path("/runs") / "memory://x", r"give the URL as text: 'memory://x'"),
        ("s3:/bucket/x", r"give the URL as text: 's3://bucket/x'"),
        (Path("simplecache::s3://bucket/x"), r"give the URL as text: 'simplecache::s3://bucket/x'"),
        ("foo://bucket/x", r"foo://bucket/x: fsspec has no protocol 'foo'"),
        ("memry://x", r"Did you mean 'memory'\?"),
        ("dropbox://x", r"dropbox://x needs a package of dropbox:// that is not installed"),
        ("s3://", r"s3:// names no bucket; write s3://bucket/folder"),
        ("s3:///x", r"names no bucket"),
    ],
)
def test_a_place_that_cannot_be_opened_is_refused(place: str | Path, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        as_path(place)


def test_the_package_to_install_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_protocol: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("clipcam_lightning.cam.urls.get_filesystem_class", fail)
    with pytest.raises(ConfigError, match=r"needs a package of s3:// that is not installed: pip install s3fs\."):
        as_path("s3://bucket/x")


@pytest.mark.parametrize(
    ("folder", "place", "joined"),
    [
        ("s3://b/probes", "cat.png", "s3://b/probes/cat.png"),
        ("s3://b/probes", "../images/a b.png", "s3://b/images/a b.png"),
        ("s3://b/probes", "s3://c/cat.png", "s3://c/cat.png"),
        ("s3://b/probes", "memory://cat.png", "memory://cat.png"),
        ("/probes", "s3://c/cat.png", "s3://c/cat.png"),
        ("/probes", "/images/cat.png", "/images/cat.png"),
        ("/probes", "memory::cat.png", "/probes/memory::cat.png"),
    ],
)
def test_a_place_is_relative_to_the_folder_of_its_manifest(folder: str, place: str, joined: str) -> None:
    assert str(join(as_path(folder), place)) == joined


def test_a_manifest_in_a_store_names_no_files_of_the_local_disk() -> None:
    with pytest.raises(ConfigError, match="/etc/passwd is an absolute path, but s3://b/probes is no local folder"):
        join(as_path("s3://b/probes"), "/etc/passwd")


def test_writing_to_a_store_makes_no_local_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: str) -> None:
    monkeypatch.chdir(tmp_path)

    write_atomically(as_path(f"{store}/a/b"), b"1")
    write_new(as_path(f"{store}/a/c"), b"1")
    append_line(as_path(f"{store}/a/d"), "1")

    assert list(tmp_path.iterdir()) == []
