"""Write files so that a process killed at any moment leaves no file half written."""

import errno
import os
import tempfile
from mmap import ACCESS_READ, mmap
from pathlib import Path


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file under a temporary name beside ``path``, then rename it.

    Readers see either the old file or the new one. Missing folders are created.

    Args:
        path: the file to create or replace.
        content: all bytes of the file.

    Raises:
        OSError: the file cannot be written, or ``path`` is not a regular file, which the rename would replace.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "is not a file", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)  # mkstemp's 0600 would hide it from colleagues
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def append_line(path: Path, line: str) -> None:
    """Append one line to a file, whole or not at all.

    An incomplete last line, left by a killed process, is cut off first. Missing folders are created.

    Args:
        path: the file to append to.
        line: the text without its newline.

    Raises:
        OSError: the line cannot be written; the file then ends as before.
    """
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
