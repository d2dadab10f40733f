"""The manifest that lies beside a folder's probe images."""

import csv
import json
import operator
import os
import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipcam_lightning.cam.arguments import abridged
from clipcam_lightning.errors import ProbeError

MANIFESTS = ("probes.csv", "probes.jsonl")
REQUIRED = ("image", "prompt")
COLUMNS = (*REQUIRED, "name", "mask", "box")


@dataclass(frozen=True)
class ManifestRow:
    """One line of a manifest, its paths made absolute.

    Attributes:
        where: manifest and line number, for messages.
    """

    image: Path
    prompt: str
    name: str
    mask: Path | None
    box: tuple[int, int, int, int] | None
    where: str


def read_manifest(folder: Path) -> list[ManifestRow]:
    """Rows of ``probes.csv`` or ``probes.jsonl`` in ``folder``.

    Raises:
        ProbeError: no manifest or both, a missing column, an unreadable line (with its number).
    """
    # pathlib's would raise for a name that is too long.
    present = [folder / name for name in MANIFESTS if os.path.isfile(folder / name)]  # noqa: PTH113
    if len(present) != 1:
        found = "both" if present else "neither"
        raise ProbeError(
            f"{abridged(folder)} must hold one manifest, {' or '.join(MANIFESTS)} ({found} found). "
            "Its columns: image,prompt[,name,mask,box]."
        )
    read = _csv_lines if present[0].suffix == ".csv" else _json_lines
    try:
        lines = read(present[0])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ProbeError(f"{present[0]} cannot be read: {error}") from error
    if not lines:
        raise ProbeError(f"{present[0]} lists no probe.")
    return [_row(fields, folder, f"{present[0].name} line {number}") for number, fields in lines]


def _csv_lines(path: Path) -> list[tuple[int, dict[str, Any]]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, strict=True)  # or a quote left open would swallow the rows after it
        columns = [column.strip().lower() for column in next(reader, [])]
        missing = [column for column in REQUIRED if column not in columns]
        if missing:
            raise ProbeError(
                f"{path.name} line 1: the column {missing[0]!r} is missing "
                f"(got {abridged(', '.join(columns)) or 'an empty file'})."
            )
        twice = [column for column in COLUMNS if columns.count(column) > 1]
        if twice:
            raise ProbeError(f"{path.name} line 1: the column {twice[0]!r} is there twice.")
        lines = []
        for cells in filter(None, reader):
            if len(cells) > len(columns):
                raise ProbeError(
                    f"{path.name} line {reader.line_num}: {len(cells)} fields for {len(columns)} columns; "
                    'quote a text that has a comma in it: "a cat, asleep".'
                )
            lines.append((reader.line_num, dict(zip(columns, cells, strict=False))))
        return lines


def _json_lines(path: Path) -> list[tuple[int, dict[str, Any]]]:
    lines = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ProbeError(f"{path.name} line {number}: not JSON ({error}).") from error
        if not isinstance(fields, dict):
            raise ProbeError(f"{path.name} line {number}: expected an object such as {{'image': ..., 'prompt': ...}}.")
        lines.append((number, fields))
    return lines


def _row(fields: dict[str, Any], folder: Path, where: str) -> ManifestRow:
    for column in REQUIRED:
        if not isinstance(fields.get(column), str) or not fields[column].strip():
            raise ProbeError(f"{where}: {column!r} is missing or empty.")
    for column in ("name", "mask"):
        if not isinstance(fields.get(column), str | None):
            raise ProbeError(f"{where}: {column!r} must be text (got {reprlib.repr(fields[column])}).")
    mask = fields.get("mask") or None
    return ManifestRow(
        image=folder / fields["image"].strip(),
        prompt=fields["prompt"],
        name=fields.get("name") or "",
        mask=folder / mask if mask else None,
        box=_box(fields.get("box"), where),
        where=where,
    )


def _box(value: Any, where: str) -> tuple[int, int, int, int] | None:
    if value is None or value == "":
        return None
    parts = value.replace(",", " ").split() if isinstance(value, str) else value
    try:
        left, top, right, bottom = (int(part) if isinstance(part, str) else operator.index(part) for part in parts)
    except (TypeError, ValueError) as error:
        raise ProbeError(
            f"{where}: a box is four whole numbers, left top right bottom (got {reprlib.repr(value)})."
        ) from error
    return left, top, right, bottom
