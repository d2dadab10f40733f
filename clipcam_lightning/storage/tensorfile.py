"""Tensors and JSON in one safetensors file, without pickle; and files that are never half written."""

import errno
import json
import os
import tempfile
from collections.abc import Mapping
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from clipcam_lightning.cam.arguments import abridged
from clipcam_lightning.errors import SnapshotError

HEADER = "clipcam_lightning"
VERSION = 1


def write_atomically(path: Path, content: bytes) -> None:
    """Write under a temporary name beside ``path``, then rename: readers see the old file or the new one.

    Raises:
        OSError: it cannot be written, or something else than a file has its name, which the rename would replace.
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
    """Append one line, whole or not at all; what a killed process left of one is cut off first.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = _end_of_lines(path)
    try:
        with path.open("ab") as file:
            file.truncate(whole)
            file.write(f"{line}\n".encode())
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        if path.is_file():
            os.truncate(path, whole)
        raise


def _end_of_lines(path: Path) -> int:
    """Where the last whole line of a file ends, in bytes."""
    if not path.is_file() or not path.stat().st_size:  # nothing cannot be mapped
        return 0
    with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
        return content.rfind(b"\n") + 1


def save_tensors(path: Path, kind: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write ``tensors`` and JSON-able ``metadata`` as a file of this ``kind``."""
    header = json.dumps({"kind": kind, "version": VERSION, **metadata})
    write_atomically(path, save({key: value.contiguous() for key, value in tensors.items()}, {HEADER: header}))


def load_tensors(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of a file that :func:`save_tensors` wrote.

    Raises:
        SnapshotError: there is no such file, or it is of another kind or a later version, or damaged.
    """
    if not os.path.isfile(path):  # noqa: PTH113 - pathlib's raises for a name that is too long
        raise SnapshotError(f"{abridged(path)} cannot be read as a {kind}: No such file.")
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get(HEADER)
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - a method, not a dict's
        metadata = json.loads(header) if header else None
    except Exception as error:  # a damaged file can raise almost anything, such as RecursionError for nested brackets
        raise SnapshotError(f"{path} cannot be read as a {kind}: {abridged(error)}") from error
    if not isinstance(metadata, dict) or metadata.get("kind") != kind:
        found = metadata.get("kind") if isinstance(metadata, dict) else "a safetensors file of another program"
        raise SnapshotError(f"{path} is not a {kind} (it is {abridged(found)}).")
    if metadata.get("version") != VERSION:
        raise SnapshotError(
            f"{path} has format version {abridged(metadata.get('version'))}, this package reads {VERSION}; "
            "update clipcam-lightning or write the file again."
        )
    return tensors, metadata
