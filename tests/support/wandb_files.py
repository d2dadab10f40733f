"""Read what an offline run of W&B wrote, from its own file."""

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

BLOCK, HEADER, FILE_HEADER = 32768, 7, 7  # bytes; the file is a log of LevelDB behind seven bytes of W&B's own
FULL, LAST = 1, 4  # kinds of parts that end a record
PATIENCE = 60  # seconds


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """Read the rows that ``run.log`` wrote, in their order.

    Args:
        folder: of one finished run, ``offline-run-...``.
    """
    return [
        {(item.key or "/".join(item.nested_key)): json.loads(item.value_json) for item in record.history.item}
        for record in read_records(folder)
        if record.WhichOneof("record_type") == "history"
    ]


def read_records(folder: Path) -> list[Record]:
    """Read all records of a finished run; W&B may still be writing the last ones when ``finish`` returns."""
    (file,) = folder.glob("run-*.wandb")
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        records = list(_parse(file.read_bytes()))
        if records and records[-1].WhichOneof("record_type") == "exit":
            return records
        time.sleep(0.1)
    raise TimeoutError(f"{file} is of a run that is not finished")


def _parse(content: bytes) -> Iterator[Record]:
    parts, place = b"", FILE_HEADER
    while place + HEADER <= len(content):
        if BLOCK - place % BLOCK < HEADER:  # the rest of a block is padding
            place += BLOCK - place % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        parts += content[place + HEADER : place + HEADER + length]
        place += HEADER + length
        if kind in (FULL, LAST) and place <= len(content):
            yield Record.FromString(parts)
            parts = b""
