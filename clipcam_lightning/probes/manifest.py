"""Read the manifest of a probe folder: ``probes.csv`` or ``probes.jsonl`` beside the images."""

import csv
import io
import json
import operator
import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upath import UPath

from clipcam_lightning.errors import ConfigError, ProbeError, abridge
from clipcam_lightning.probes.probe import Box
from clipcam_lightning.storage.paths import join
from clipcam_lightning.storage.reading import is_file, is_folder, read_bytes

MANIFESTS = ("probes.csv", "probes.jsonl")
REQUIRED = ("image", "prompt")
COLUMNS = (*REQUIRED, "name", "mask", "box")


@dataclass(frozen=True)
class ManifestRow:
    """One row of a manifest.

    Attributes:
        image: path of the image, joined to the folder unless it is a URL.
        prompt: the text that the map explains.
        name: name of the probe; empty if the row has none.
        mask: path of the mask, joined to the folder unless it is a URL.
        box: ``(left, top, right, bottom)`` in pixels.
        place: manifest and line number, for messages.
    """

    image: UPath
    prompt: str
    name: str
    mask: UPath | None
    box: Box | None
    place: str


def has_manifest(place: UPath) -> bool:
    """Check whether a place is a manifest, or a folder, which must hold one.

    Raises:
        OSError: the store fails.
    """
    return place.name in MANIFESTS or is_folder(place)


def list_probe_files(place: UPath) -> list[Path | UPath]:
    """List what a probe set is read from.

    Args:
        place: a manifest, its folder, or a file that ``ProbeSet.save`` wrote.

    Returns:
        The file, or the manifest and the images and masks that it names.

    Raises:
        OSError: the store fails.
        ProbeError: the manifest cannot be read.
    """
    if not has_manifest(place):
        return [place]
    manifest = place if place.name in MANIFESTS else _find_manifest(place)
    named = (path for row in read_manifest(manifest) for path in (row.image, row.mask))
    return [manifest, *(path for path in named if path is not None)]


def read_manifest(place: Path | UPath) -> list[ManifestRow]:
    """Read a manifest.

    Args:
        place: the manifest, ``probes.csv`` or ``probes.jsonl`` with the columns or keys ``image``, ``prompt`` and,
            optionally, ``name``, ``mask`` and ``box``; or the folder that holds one. On the local disk or in a store.

    Returns:
        The rows in the order of the file, at least one.

    Raises:
        ProbeError: the folder has no manifest or both, a column is missing or appears twice, or a line cannot be read
            (the message gives its number).
    """
    try:
        path = place if place.name in MANIFESTS else _find_manifest(place)
    except OSError as error:
        raise ProbeError(f"{abridge(place)} cannot be read: {error.strerror or error}.") from error
    read = _read_csv if path.suffix == ".csv" else _read_jsonl
    try:
        lines = read(path)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ProbeError(f"{path} cannot be read: {error}") from error
    if not lines:
        raise ProbeError(f"{path} lists no probes.")
    return [_parse_row(fields, path.parent, f"{path.name} line {number}") for number, fields in lines]


def _find_manifest(folder: Path | UPath) -> Path | UPath:
    present = [folder / name for name in MANIFESTS if is_file(folder / name)]
    if len(present) != 1:
        raise ProbeError(
            f"{abridge(folder)} must hold one manifest, {' or '.join(MANIFESTS)} "
            f"({'both' if present else 'neither'} found). Its columns: image,prompt[,name,mask,box]."
        )
    return present[0]


def _read_csv(path: Path | UPath) -> list[tuple[int, dict[str, Any]]]:
    """Return the rows of a CSV file, each with the number of its last line."""
    with io.TextIOWrapper(io.BytesIO(read_bytes(path)), encoding="utf-8-sig", newline="") as file:
        # Unless strict, an unclosed quote would swallow the rows after it.
        reader = csv.reader(file, strict=True, skipinitialspace=True)
        columns = [column.strip().lower() for column in next(reader, [])]
        missing = [column for column in REQUIRED if column not in columns]
        if missing:
            raise ProbeError(
                f"{path.name} line 1: the column {missing[0]!r} is missing "
                f"(got {abridge(', '.join(columns)) or 'an empty file'})."
            )
        repeated = [column for column in COLUMNS if columns.count(column) > 1]
        if repeated:
            raise ProbeError(f"{path.name} line 1: the column {repeated[0]!r} appears twice.")
        lines = []
        for cells in filter(None, reader):
            if len(cells) > len(columns):
                raise ProbeError(
                    f"{path.name} line {reader.line_num}: {len(cells)} fields for {len(columns)} columns; "
                    'quote a text that has a comma in it: "a cat, asleep".'
                )
            lines.append((reader.line_num, dict(zip(columns, map(str.strip, cells), strict=False))))
        return lines


def _read_jsonl(path: Path | UPath) -> list[tuple[int, dict[str, Any]]]:
    """Return the objects of a JSON Lines file, each with its line number; blank lines are skipped."""
    with io.TextIOWrapper(io.BytesIO(read_bytes(path)), encoding="utf-8-sig") as file:
        text = file.read()
    lines = []
    for number, line in enumerate(text.split("\n"), start=1):
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


def _parse_row(fields: dict[str, Any], folder: Path | UPath, place: str) -> ManifestRow:
    for column in REQUIRED:
        if not isinstance(fields.get(column), str) or not fields[column].strip():
            raise ProbeError(f"{place}: {column!r} is missing or empty.")
    for column in ("name", "mask"):
        if not isinstance(fields.get(column), str | None):
            raise ProbeError(f"{place}: {column!r} must be text (got {reprlib.repr(fields[column])}).")
    mask = fields.get("mask") or None
    try:
        image, mask = join(folder, fields["image"].strip()), join(folder, mask) if mask else None
    except ConfigError as error:
        raise ProbeError(f"{place}: {error}") from error
    return ManifestRow(
        image=image,
        prompt=fields["prompt"],
        name=fields.get("name") or "",
        mask=mask,
        box=_parse_box(fields.get("box"), place),
        place=place,
    )


def _parse_box(value: Any, place: str) -> Box | None:
    """Parse four integers, given as a list or as a text with blanks or commas between them."""
    if value is None or value == "":
        return None
    parts = value.replace(",", " ").split() if isinstance(value, str) else value
    try:
        left, top, right, bottom = (int(part) if isinstance(part, str) else operator.index(part) for part in parts)
    except (TypeError, ValueError) as error:
        raise ProbeError(
            f"{place}: a box is four whole numbers, left top right bottom (got {reprlib.repr(value)})."
        ) from error
    return left, top, right, bottom
