"""Write files so that a process killed at any moment leaves no file half written.

On the local disk, a file is written under another name and renamed. In a store, it is uploaded as one object, which
object stores such as S3 show to readers whole or not at all.
"""

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

from upath import UPath
from upath.implementations.cloud import CloudPath

from clipcam_lightning.cam.urls import read_url, store_errors
from clipcam_lightning.storage.reading import exists

WITHOUT_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)  # of disks such as FAT


def write_atomically(path: Path | UPath, content: bytes) -> None:
    """Write a file so that readers see either the old file or the new one. Missing folders are created.

    Args:
        path: the file to create or replace, on the local disk or in a store.
        content: all bytes of the file.

    Raises:
        OSError: the file cannot be written, or ``path`` is not a regular file, which the rename would replace.
    """
    if not isinstance(path, Path):
        _upload(path, content)
        return
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "is not a file", str(path))
    with _temporary_file(path, content) as temporary:
        temporary.replace(path)


def write_new(path: Path | UPath, content: bytes) -> bool:
    """Write a file unless it exists. Of several processes that try at once, one writes it.

    S3, Google Cloud Storage, Azure and local disks guarantee that; another store of fsspec may look for the file before
    it writes.

    Args:
        path: the file to create, on the local disk or in a store. Missing folders are created.
        content: all bytes of the file. Only with content of its own can a process recognise its file later.

    Returns:
        Whether the file was written; ``False`` if it exists.

    Raises:
        OSError: the file cannot be written.

    Example:
        >>> from clipcam_lightning.storage.paths import as_path
        >>> claim = as_path("memory://runs/version_0/claim")
        >>> write_new(claim, b"mine"), write_new(claim, b"yours")
        (True, False)
        >>> claim.read_bytes()
        b'mine'
    """
    try:
        if not isinstance(path, Path):
            _upload(path, content, mode="create")
            return True
        with _temporary_file(path, content) as temporary:
            try:
                os.link(temporary, path)
            except OSError as error:
                if error.errno not in WITHOUT_LINKS:
                    raise
                path.touch(exist_ok=False)
                temporary.replace(path)
    except FileExistsError:
        if exists(path):
            return False
        raise  # a file is in the way of a folder
    return True


def append_line(path: Path | UPath, line: str) -> None:
    """Append one line to a file, whole or not at all.

    An incomplete last line, left by a killed process, is cut off first. Missing folders are created. In a store the
    whole object is uploaded again.

    Args:
        path: the file to append to, on the local disk or in a store.
        line: the text without its newline.

    Raises:
        OSError: the line cannot be written; the file then ends as before.
    """
    if not isinstance(path, Path):
        try:
            content = read_url(path)
        except FileNotFoundError:
            content = b""
        _upload(path, content[: content.rfind(b"\n") + 1] + f"{line}\n".encode())
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    end = _end_of_last_line(path)
    try:
        with path.open("ab") as file:
            file.truncate(end)
            file.write(f"{line}\n".encode())
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        if path.is_file():
            os.truncate(path, end)
        raise


def _end_of_last_line(path: Path) -> int:
    """Return the offset in bytes after the last newline of a file."""
    if not path.is_file() or not path.stat().st_size:  # an empty file cannot be mapped
        return 0
    with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
        return content.rfind(b"\n") + 1


@contextmanager
def _temporary_file(path: Path, content: bytes) -> Iterator[Path]:
    """Write a file beside ``path`` that is gone after the block."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)  # mkstemp's 0600 would hide it from colleagues
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _upload(path: UPath, content: bytes, **mode: Any) -> None:
    """Upload an object whole; make its folder where a store has folders."""
    with store_errors(path):
        try:
            path.fs.pipe_file(path.path, content, **mode)
        except FileNotFoundError:
            if isinstance(path, CloudPath):  # the bucket is missing, and would be made
                raise
            path.fs.makedirs(path.parent.path, exist_ok=True)
            path.fs.pipe_file(path.path, content, **mode)
