"""Recognise URLs of stores, such as ``s3://bucket/cat.png``, open them with fsspec and read what they name."""

import errno
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeAlias

import fsspec
from fsspec.registry import get_filesystem_class
from upath import UPath
from upath.implementations.cloud import CloudPath

from clipcam_lightning.cam.arguments import suggest
from clipcam_lightning.errors import ConfigError, abridge

PathLike: TypeAlias = str | os.PathLike[str] | UPath
"""A path or the URL of a store, such as ``s3://bucket/cat.png``, as a text or as an object."""

PROTOCOL = r"[A-Za-z][A-Za-z0-9+.-]+"  # at least two characters: a single one is a drive of Windows
URL = re.compile(rf"({PROTOCOL}::)*{PROTOCOL}://")
PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs", "adl": "adlfs"}
"""Packages to install, by protocol."""

ERROR_NUMBERS = {
    FileNotFoundError: errno.ENOENT,
    FileExistsError: errno.EEXIST,
    PermissionError: errno.EACCES,
    IsADirectoryError: errno.EISDIR,
    NotADirectoryError: errno.ENOTDIR,
    TimeoutError: errno.ETIMEDOUT,
    NotImplementedError: errno.EROFS,  # a store of fsspec that can only be read
}


def is_url(place: object) -> bool:
    """Check whether a place is a URL, as a text or as a ``UPath``, and not a path of the local disk.

    Example:
        >>> is_url("s3://bucket/cat.png"), is_url("cat.png"), is_url("C:/cat.png")
        (True, False, False)
    """
    if isinstance(place, UPath):
        return not isinstance(place, os.PathLike)  # paths of the local disk are both
    return isinstance(place, str) and URL.match(place) is not None


def open_url(url: str) -> UPath:
    """Make a path of a URL, without a request to the store.

    Args:
        url: of any protocol of fsspec.

    Raises:
        ConfigError: the protocol is unknown or needs a package that is not installed, or the URL names no bucket.

    Example:
        >>> open_url("memory://probes/cat.png").name
        'cat.png'
    """
    protocols = re.findall(rf"{PROTOCOL}(?=::|://)", url.partition("://")[0] + "://")
    for protocol in protocols:
        try:
            get_filesystem_class(protocol)
        except ImportError as error:
            package = PACKAGES.get(protocol)
            advice = f"pip install {package}" if package else str(error)
            raise ConfigError(
                f"{abridge(url)} needs a package of {protocol}:// that is not installed: {advice}."
            ) from error
        except ValueError as error:
            hint = suggest(protocol, fsspec.available_protocols()) or " fsspec.available_protocols() lists them."
            raise ConfigError(f"{abridge(url)}: fsspec has no protocol {protocol!r}.{hint}") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that a protocol of another package has no class of its own
            path = UPath(url)
    except ValueError as error:
        raise ConfigError(f"{abridge(url)} is not a URL that fsspec can open: {error}.") from error
    if isinstance(path, CloudPath) and not path.drive:
        raise ConfigError(f"{abridge(url)} names no bucket; write {protocols[-1]}://bucket/folder.")
    return path


def require_whole_url(path: str) -> None:
    """Refuse a URL of which ``pathlib`` has made a path, such as ``s3:/bucket/cat.png``.

    Args:
        path: of the local disk.

    Raises:
        ConfigError: a folder in it has the name of a protocol of fsspec with a colon.
    """
    parts = path.replace(os.sep, "/").split("/")
    for i, part in enumerate(parts):
        protocol = part[:-1].rpartition("::")[2]
        if part.endswith(":") and len(protocol) > 1 and protocol in fsspec.available_protocols():
            url = f"{part}//{'/'.join(parts[i + 1 :])}"
            raise ConfigError(
                f"{abridge(path)} is not a URL, because pathlib removes a slash; give the URL as text: "
                f"{abridge(url)!r}."
            )


def read_url(path: UPath) -> bytes:
    """Read an object as it is in the store now, also if another process has just written it.

    Args:
        path: of a store.

    Returns:
        All bytes of the object.

    Raises:
        OSError: there is no such object, or the store fails.
    """
    with store_errors(path):
        path.fs.invalidate_cache(path.path)
        content: bytes = path.fs.cat_file(path.path)
    return content


@contextmanager
def store_errors(path: UPath) -> Iterator[None]:
    """Turn every error of a store into an ``OSError`` that names the URL.

    Args:
        path: what the block reads or writes.

    Raises:
        OSError: of the class that a local file would raise, such as ``FileNotFoundError``.
    """
    try:
        yield
    except Exception as error:  # a store can raise anything, such as the errors of botocore
        raise _as_os_error(error, str(path)) from error


def _as_os_error(error: Exception, url: str) -> OSError:
    kinds = [number for kind, number in ERROR_NUMBERS.items() if isinstance(error, kind)]
    number = kinds[0] if kinds else getattr(error, "errno", None) or errno.EIO
    message = " ".join((getattr(error, "strerror", None) or str(error)).split())
    if kinds and (" " not in message or message == "Not Found"):  # only the name of the object
        message = os.strerror(number)
    elif not isinstance(error, OSError):
        message = f"{type(error).__name__}: {message}"
    return OSError(number, abridge(message), url)
