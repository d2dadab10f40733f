"""Create files and append to them so that a process killed at any moment leaves no file half written."""

import errno
import os
from mmap import ACCESS_READ, mmap
from pathlib import Path

from upath import UPath

from clipcam_lightning.cam.urls import read_url
from clipcam_lightning.cam.writing import temporary_file, upload
from clipcam_lightning.storage.reading import exists

WITHOUT_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)  # of disks such as FAT


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
            upload(path, content, mode="create")
            return True
        with temporary_file(path, content) as temporary:
            try:
                os.link(temporary, path)
            except OSError as error:
                if error.errno not in WITHOUT_LINKS:
                    raise
                path.touch(exist_ok=False)
                Path(temporary).replace(path)
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
        upload(path, content[: content.rfind(b"\n") + 1] + f"{line}\n".encode())
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
