"""Store tensors and JSON metadata in one safetensors file, without pickle."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load, save
from torch import Tensor
from upath import UPath

from clipcam_lightning.cam.writing import write_atomically
from clipcam_lightning.errors import SnapshotError, abridge
from clipcam_lightning.storage.reading import is_file, read_bytes

HEADER = "clipcam_lightning"
VERSION = 1


def save_tensors(path: Path | UPath, kind: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write tensors and metadata to a file that appears whole or not at all.

    Args:
        path: the file to create or replace, on the local disk or in a store.
        kind: what the file holds, such as ``"snapshot"``; :func:`load_tensors` refuses any other kind.
        tensors: by name, on the CPU; they may share memory.
        metadata: values that JSON can represent, by name.

    Raises:
        OSError: the file cannot be written.
        TypeError: JSON cannot represent ``metadata``.
    """
    header = json.dumps({"kind": kind, "version": VERSION, **metadata})
    # safetensors refuses tensors that are not contiguous, or share memory.
    copies = {key: value.clone(memory_format=torch.contiguous_format) for key, value in tensors.items()}
    write_atomically(path, save(copies, {HEADER: header}))


def load_tensors(path: Path | UPath, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file that :func:`save_tensors` wrote.

    Args:
        path: the file to read, on the local disk or in a store.
        kind: what the file must hold.

    Returns:
        The tensors and the metadata, both by name.

    Raises:
        SnapshotError: the file is missing or damaged, of another kind, or of another format version; or its store
            fails.
    """
    if isinstance(path, Path) and not is_file(path):
        raise SnapshotError(f"{abridge(path)} cannot be read as a {kind}: No such file.")
    try:
        tensors, header = _read_file(path) if isinstance(path, Path) else _parse(read_bytes(path))
        metadata = json.loads(header) if header else None
    except OSError as error:
        raise SnapshotError(f"{abridge(path)} cannot be read as a {kind}: {error.strerror or error}.") from error
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


def _read_file(path: Path) -> tuple[dict[str, Tensor], str | None]:
    """Return the tensors and the JSON metadata of a local file, without a copy of the file in memory."""
    with safe_open(path, framework="pt") as file:
        header = (file.metadata() or {}).get(HEADER)
        return {key: file.get_tensor(key) for key in file.keys()}, header  # noqa: SIM118 - a method, not a dict's


def _parse(content: bytes) -> tuple[dict[str, Tensor], str | None]:
    """Return the tensors and the JSON metadata of all bytes of a file."""
    tensors = load(content)  # refuses a damaged header
    length = int.from_bytes(content[:8], "little")
    return tensors, json.loads(content[8 : 8 + length]).get("__metadata__", {}).get(HEADER)
