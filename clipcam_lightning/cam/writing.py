"""Write files so that readers see either the old file or the new one, also if the process is killed.

On the local disk, a file is written under another name and renamed. In a store, it is uploaded as one object, which
object stores such as S3 show to readers whole or not at all.
"""

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from upath import UPath
from upath.implementations.cloud import CloudPath

from clipcam_lightning.cam.urls import PathLike, store_errors


def write_atomically(path: PathLike, content: bytes) -> None:
    """Write a file so that readers see either the old file or the new one. Missing folders are created.

    A replaced file keeps its mode, and of a symbolic link the target is replaced.

    Args:
        path: the file to create or replace, on the local disk, or as a ``UPath`` in a store.
        content: all bytes of the file.

    Raises:
        OSError: the file cannot be written, or ``path`` is not a regular file, which the rename would replace.
    """
    if not isinstance(path, str | os.PathLike):
        upload(path, content)
        return
    target = os.path.realpath(path)
    if os.path.islink(target):  # only a link that leads back to itself is left
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    if os.path.exists(target) and not os.path.isfile(target):
        raise OSError(errno.EINVAL, "is not a file", str(path))
    with temporary_file(target, content) as temporary:
        os.replace(temporary, target)


@contextmanager
def temporary_file(path: str | os.PathLike[str], content: bytes) -> Iterator[str]:
    """Write a file beside ``path`` that is gone after the block.

    Args:
        path: of the local disk, whose mode the new file gets; without a file there, the mode that the umask allows.
            Missing folders are created.
        content: all bytes of the file.

    Yields:
        The path of the file.
    """
    folder, name = os.path.split(os.path.abspath(path))
    os.makedirs(folder, exist_ok=True)
    mode = os.stat(path).st_mode & 0o777 if os.path.isfile(path) else None
    temporary = os.path.join(folder, f".{name}.{secrets.token_hex(4)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    handle = os.open(temporary, flags, 0o666 if mode is None else mode)  # less the umask
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if mode not in (None, os.stat(temporary).st_mode & 0o777):
            os.chmod(temporary, mode)
        yield temporary
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)


def upload(path: UPath, content: bytes, **mode: Any) -> None:
    """Upload an object whole; make its folder where a store has folders.

    Args:
        path: of a store.
        content: all bytes of the object.
        **mode: options of the ``pipe_file`` of fsspec.

    Raises:
        OSError: the store fails.
    """
    with store_errors(path):
        try:
            path.fs.pipe_file(path.path, content, **mode)
        except FileNotFoundError:
            if isinstance(path, CloudPath):  # the bucket is missing, and would be made
                raise
            path.fs.makedirs(path.parent.path, exist_ok=True)
            path.fs.pipe_file(path.path, content, **mode)
