"""Store tensors and JSON metadata in one safetensors file, without pickle."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from clipcam_lightning.errors import SnapshotError, abridge
from clipcam_lightning.storage.atomic import write_atomically

HEADER = "clipcam_lightning"
VERSION = 1


def save_tensors(path: Path, kind: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write tensors and metadata to a file that appears whole or not at all.

    Args:
        path: the file to create or replace.
        kind: what the file holds, such as ``"snapshot"``; :func:`load_tensors` refuses any other kind.
        tensors: by name, on the CPU.
        metadata: values that JSON can represent, by name.

    Raises:
        OSError: the file cannot be written.
        TypeError: JSON cannot represent ``metadata``.
    """
    header = json.dumps({"kind": kind, "version": VERSION, **metadata})
    write_atomically(path, save({key: value.contiguous() for key, value in tensors.items()}, {HEADER: header}))


def load_tensors(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file that :func:`save_tensors` wrote.

    Args:
        path: the file to read.
        kind: what the file must hold.

    Returns:
        The tensors and the metadata, both by name.

    Raises:
        SnapshotError: the file is missing or damaged, of another kind, or of another format version.
    """
    if not os.path.isfile(path):  # noqa: PTH113 - pathlib's raises for a name that is too long
        raise SnapshotError(f"{abridge(path)} cannot be read as a {kind}: No such file.")
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get(HEADER)
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - a method, not a dict's
        metadata = json.loads(header) if header else None
    except Exception as error:  # a damaged file can raise almost anything, such as RecursionError for nested brackets
        raise SnapshotError(f"{path} cannot be read as a {kind}: {abridge(error)}") from error
    if not isinstance(metadata, dict) or metadata.get("kind") != kind:
        actual = metadata.get("kind") if isinstance(metadata, dict) else "a safetensors file of another program"
        raise SnapshotError(f"{path} is not a {kind} (it is {abridge(actual)}).")
    if metadata.get("version") != VERSION:
        raise SnapshotError(
            f"{path} has format version {abridge(metadata.get('version'))}, this package reads {VERSION}; "
            "update clipcam-lightning or write the file again."
        )
    return tensors, metadata
