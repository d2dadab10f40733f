"""Read and look up files on the local disk and in stores, as they are now."""

import os
from pathlib import Path

from upath import UPath

from clipcam_lightning.cam.urls import read_url, store_errors


def read_bytes(path: Path | UPath) -> bytes:
    """Read a file.

    Raises:
        OSError: there is no such file, or it cannot be read.
    """
    return path.read_bytes() if isinstance(path, Path) else read_url(path)


def exists(path: Path | UPath) -> bool:
    """Check whether there is a file or folder.

    Raises:
        OSError: the store fails.
    """
    return os.path.exists(path) if isinstance(path, Path) else bool(_find_type(path))  # noqa: PTH110 - see is_file


def is_file(path: Path | UPath) -> bool:
    """Check whether there is a file.

    Raises:
        OSError: the store fails.
    """
    if isinstance(path, Path):
        return os.path.isfile(path)  # noqa: PTH113 - pathlib's raises for a name that is too long
    return _find_type(path) == "file"


def is_folder(path: Path | UPath) -> bool:
    """Check whether there is a folder; in an object store, whether there is an object below it.

    Raises:
        OSError: the store fails.
    """
    return os.path.isdir(path) if isinstance(path, Path) else _find_type(path) == "directory"  # noqa: PTH112 - see is_file


def _find_type(path: UPath) -> str:
    """Return the type that fsspec gives an object of a store; empty if there is none."""
    with store_errors(path):
        path.fs.invalidate_cache(path.path)
        try:
            return str(path.fs.info(path.path)["type"])
        except FileNotFoundError:
            return ""
