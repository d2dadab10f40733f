"""Read what an offline run of W&B wrote, from its own file."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

BLOCK, HEADER, FILE_HEADER = 32768, 7, 7  # bytes; the file is a log of LevelDB behind seven bytes of W&B's own
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """Read the rows that ``run.log`` wrote, in their order.

    Args:
        folder: of one run, ``offline-run-...``.
    """
    return [
        {(item.key or "/".join(item.nested_key)): json.loads(item.value_json) for item in record.history.item}
        for record in read_records(folder)
        if record.WhichOneof("record_type") == "history"
    ]


def read_records(folder: Path) -> Iterator[Record]:
    """Read all records of a run."""
    (file,) = folder.glob("run-*.wandb")
    content, parts = file.read_bytes(), b""
    place = FILE_HEADER
    while place + HEADER <= len(content):
        if BLOCK - place % BLOCK < HEADER:  # the rest of a block is padding
            place += BLOCK - place % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        parts += content[place + HEADER : place + HEADER + length]
        place += HEADER + length
        if kind in (FULL, LAST):
            yield Record.FromString(parts)
            parts = b""
