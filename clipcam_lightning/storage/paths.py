"""Paths of files and folders on the local disk and in stores of fsspec, such as ``s3://bucket/run``."""

import os
from pathlib import Path, PurePath

from upath import UPath

from clipcam_lightning.cam.urls import PathLike, is_url, open_url, require_whole_url
from clipcam_lightning.errors import ConfigError, abridge


def as_path(place: PathLike) -> UPath:
    """Make a path of what a user gives for a file or folder.

    Args:
        place: a path, or the URL of any protocol of fsspec. ``file://`` is the local disk.

    Returns:
        A path with the interface of ``pathlib``. For the local disk it is a ``pathlib.Path`` too, and only then;
        ``str`` of another path is its URL.

    Raises:
        ConfigError: the protocol is unknown or needs a package that is not installed, or ``pathlib`` has removed a
            slash of a URL.

    Example:
        >>> folder = as_path("s3://bucket/runs/1")
        >>> str(folder / "history.jsonl"), folder.name
        ('s3://bucket/runs/1/history.jsonl', '1')
        >>> as_path("runs/1") == Path("runs/1")
        True
    """
    if isinstance(place, UPath) and is_url(place):
        return place
    text = os.fspath(place) if isinstance(place, os.PathLike) else str(place)
    if is_url(text):
        path = open_url(text)
        return UPath(Path(path.path)) if path.protocol in ("file", "local") else path
    require_whole_url(text)  # otherwise a local folder named "s3:" would be made
    return UPath(Path(text))  # not of the text, in which UPath would look for protocols


def is_remote(path: PurePath | UPath) -> bool:
    """Check whether a path is in a store, and not on the local disk."""
    return not isinstance(path, PurePath)


def join(folder: Path | UPath, place: str) -> UPath:
    """Make a path of a place that a file in ``folder`` names.

    Args:
        folder: what a relative path starts from.
        place: a path or a URL.

    Raises:
        ConfigError: the URL cannot be opened, or an absolute path of the local disk is named in a store.
    """
    if is_url(place):
        return as_path(place)
    if isinstance(folder, Path):
        return UPath(Path(os.fspath(folder), place))  # not with "/" of UPath, which refuses names such as "memory::a"
    if place.startswith("/"):
        raise ConfigError(
            f"{abridge(place)} is an absolute path, but {abridge(folder)} is no local folder; write a path relative "
            "to the folder, or a URL."
        )
    path = folder
    for part in place.split("/"):
        if part == "..":  # which a store would take for a name
            path = path.parent
        elif part not in ("", "."):
            try:
                path = path / part
            except ValueError as error:  # of a name such as "memory::cat.png"
                raise ConfigError(f"{abridge(place)} cannot be a name in {abridge(folder)}: {error}.") from error
    return path
