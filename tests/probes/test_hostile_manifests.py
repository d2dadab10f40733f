"""A manifest is read exactly or refused with its line number; no other error is raised, and no file is written."""

import csv
import io
import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import event, given, strategies as st
from PIL import Image

from clipcam_lightning.errors import ProbeError, SnapshotError
from clipcam_lightning.probes.manifest import read_manifest
from clipcam_lightning.probes.probe import LoadedProbe
from clipcam_lightning.probes.probe_set import ProbeSet
from tests.support.hostile import attempt, example_folder, examples, texts
from tests.support.shell import files_in

pytestmark = pytest.mark.slow

PIXELS = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)  # of cat.png; dog.png is upside down
MASK = np.zeros((4, 6), dtype=bool)
MASK[1:3, 2:5] = True
NUMBERS = st.one_of(
    st.integers(-2, 9),
    st.floats(allow_nan=True),
    st.just(10**40),
    st.sampled_from(["3", " 2 ", "x", "1e2", None, True]),
)
BOXES = st.one_of(
    st.tuples(st.integers(-1, 6), st.integers(-1, 4), st.integers(0, 7), st.integers(0, 5)).map(list),
    st.lists(NUMBERS, max_size=5),
    texts,
    st.sampled_from(["0 0 6 4", "2,1,5,3", "0 0 nan 4", "0 0 inf 4", "5 1 2 3", [], {}, 0, False, 1e400]),
)
FILES = ["cat.png", "dog.png", "mask.png", "large.png", "link.png", "../outside.png", "deep/../cat.png", "CON", "."]


def mostly(good: list[Any], hostile: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Draw three of four values from ``good``; otherwise hardly any row of five values would be usable."""
    return st.integers(0, 3).flatmap(lambda draw: st.sampled_from(good) if draw else hostile)


VALUES = {
    "image": mostly(FILES[:4], texts | st.sampled_from(FILES)),
    "prompt": mostly(["a cat", "a dog, asleep", 'a "cat"', "a\ncat"], texts),
    "name": mostly(["", "", "cat", "con", "cat-2"], texts | st.sampled_from(["..", "a/b", "-", "con."])),
    "mask": mostly(["", "", "", "mask.png"], texts | st.sampled_from(FILES)),
    "box": mostly(["", "", None], BOXES),
}
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), texts),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


@contextmanager
def probe_folder() -> Iterator[Path]:
    """Create a folder of images, with a link to one outside."""
    with example_folder() as parent:
        folder = parent / "probes"
        (folder / "deep").mkdir(parents=True)
        images = {
            "probes/cat.png": PIXELS,
            "probes/dog.png": PIXELS[::-1],
            "outside.png": PIXELS,
            "probes/mask.png": MASK,
        }
        for name, pixels in images.items():
            Image.fromarray(pixels).save(parent / name)
        Image.new("RGB", (60, 40)).save(folder / "large.png")
        (folder / "link.png").symlink_to(parent / "outside.png")
        yield folder


def read(folder: Path, name: str, content: bytes) -> ProbeSet | None:
    """Read a manifest of this content; return ``None`` if it is refused."""
    (folder / name).write_bytes(content)
    before = files_in(folder.parent)
    probes = attempt(lambda: ProbeSet(folder))
    assert files_in(folder.parent) == before, "reading wrote something"
    return probes


def format_csv(rows: list[dict[str, Any]], newline: str = "\r\n") -> str:
    """Format rows as Python's own writer quotes them."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator=newline)
    writer.writerow(rows[0])
    writer.writerows(row.values() for row in rows)
    return file.getvalue()


@given(
    name=st.sampled_from(["probes.csv", "probes.jsonl"]),
    content=st.one_of(
        st.binary(max_size=80),
        st.binary(max_size=40).map(lambda tail: b"image,prompt\ncat.png,a\n" + tail),
        st.text('"\n\r,;\0 catpng.{}[]:', max_size=60).map(lambda tail: f'image,prompt\ncat.png,"{tail}'.encode()),
        st.text('"\n\r,\0 {}[]:0e', max_size=60).map(lambda tail: f'{{"image": "cat.png", "prompt": {tail}'.encode()),
    ),
    encoding=st.sampled_from(["", "utf-8-sig", "utf-16", "utf-32", "cp037"]),
)
@examples(150)
def test_a_manifest_of_any_bytes_is_read_or_refused(name: str, content: bytes, encoding: str) -> None:
    with probe_folder() as folder:
        read(folder, name, content.decode("latin-1").encode(encoding) if encoding else content)


def check_row(folder: Path, probe: LoadedProbe, row: dict[str, Any]) -> None:
    """Check that the probe agrees with its row."""
    assert probe.prompt == row["prompt"]
    assert np.array_equal(probe.image, np.array(Image.open(folder / row["image"].strip()).convert("RGB")))
    assert probe.name == row["name"] or not row["name"]
    if row["mask"]:
        assert np.array_equal(probe.mask, np.array(Image.open(folder / row["mask"]).convert("RGB")).any(-1))
    elif row["box"] not in ("", None):
        box = row["box"].replace(",", " ").split() if isinstance(row["box"], str) else row["box"]
        left, top, right, bottom = map(int, box)
        height, width = probe.image.shape[:2]
        inside = [[left <= x < right and top <= y < bottom for x in range(width)] for y in range(height)]
        assert np.array_equal(probe.mask, inside)
    else:
        assert probe.mask is None


@given(
    rows=st.lists(st.fixed_dictionaries(VALUES), min_size=1, max_size=3),
    kind=st.sampled_from(["csv", "jsonl"]),
    bom=st.booleans(),
    newline=st.sampled_from(["\n", "\r\n"]),
)
@examples(300)
def test_every_probe_agrees_with_its_row(rows: list[dict[str, Any]], kind: str, bom: bool, newline: str) -> None:
    if kind == "csv":
        rows = [{key: "" if value is None else str(value) for key, value in row.items()} for row in rows]
        text = format_csv(rows, newline)
    else:
        text = newline.join(json.dumps(row) for row in rows)
    with probe_folder() as folder:
        probes = read(folder, f"probes.{kind}", text.encode("utf-8-sig" if bom else "utf-8", "surrogatepass"))
        event("read" if probes else "refused")
        if probes is not None:
            assert len(set(probes.names)) == len(probes) == len(rows)
            for probe, row in zip(probes, rows, strict=True):
                check_row(folder, probe, row)


@given(rows=st.lists(st.dictionaries(st.sampled_from(list(VALUES)) | texts, JSON) | JSON, min_size=1, max_size=3))
@examples(100)
def test_a_row_of_any_json_is_read_or_refused(rows: list[Any]) -> None:
    with probe_folder() as folder:
        read(folder, "probes.jsonl", "\n".join(json.dumps(row) for row in rows).encode())


@given(columns=st.permutations([*VALUES, "note"]), row=st.fixed_dictionaries(VALUES), padded=st.booleans())
@examples(100)
def test_columns_may_have_any_order_and_case(columns: list[str], row: dict[str, Any], padded: bool) -> None:
    """Otherwise a mask or box would be ignored silently."""
    row = {key: "" if value is None else str(value) for key, value in {**row, "note": "mine"}.items()}
    names = [f" {column.title()}" if padded else column for column in columns]
    with probe_folder() as folder:
        plain = read(folder, "probes.csv", format_csv([row]).encode("utf-8", "surrogatepass"))
        other = dict(zip(names, (row[column] for column in columns), strict=True))
        reordered = read(folder, "probes.csv", format_csv([other]).encode("utf-8", "surrogatepass"))
        assert (plain is None) == (reordered is None)
        if plain is not None and reordered is not None:
            assert (plain.digest, plain.names) == (reordered.digest, reordered.names)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("image,prompt\ncat.png,a cat, asleep\n", r"line 2: 3 fields for 2 columns.*quote"),
        ('image,prompt\ncat.png,"a cat\ndog.png,a dog\n', "cannot be read: unexpected end of data"),
        ("image,prompt,prompt\ncat.png,a,b\n", "line 1: the column 'prompt' appears twice"),
        ("image,prompt\n" + "cat.png," + "x" * 200_000, "cannot be read: field larger than field limit"),
        (",".join(["column"] * 50_000), "the column 'image' is missing"),
        ("\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "cannot be read|is missing"),
    ],
    ids=["unquoted comma", "open quote", "twice", "huge field", "many columns", "an image"],
)
def test_a_csv_that_would_be_misread_is_refused_in_a_short_message(content: str, message: str) -> None:
    with probe_folder() as folder:
        (folder / "probes.csv").write_bytes(content.encode("latin-1"))
        with pytest.raises(ProbeError, match=message) as refusal:
            ProbeSet(folder)
    assert len(str(refusal.value)) < 500


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("[" * 100_000, "line 1: not JSON"),
        ('{"image":' * 100_000, "line 1: not JSON"),
        ('{"image": "cat.png", "prompt": "a", "box": [0, 0, 1e999, 4]}', "four whole numbers"),
        ('{"image": "cat.png", "prompt": "a", "box": [0, 0, %s, 4]}' % ("9" * 5000), "not JSON"),
        ('{"image": "cat.png", "prompt": "a", "box": "%s"}' % ("9" * 50_000), "four whole numbers"),
        ('{"image": "cat.png", "prompt": "a", "name": 0}', "'name' must be text"),
        ('{"image": "cat.png", "prompt": "a", "mask": []}', "'mask' must be text"),
        ('{"image": "cat.png", "prompt": "a", "name": "%s"}' % ("x" * 50_000), "is not a slug"),
        ('{"image": "%s", "prompt": "a"}' % ("x" * 50_000), "cannot be read"),
        ('{"image": "\\ud800.png", "prompt": "a"}', "cannot be read|does not exist"),
        ('{"image": "a\\u0000.png", "prompt": "a"}', "cannot be read"),
    ],
    ids=lambda value: value[:60],
)
def test_an_unusable_json_line_is_refused_in_a_short_message(fields: str, message: str) -> None:
    with probe_folder() as folder:
        (folder / "probes.jsonl").write_text(fields)
        with pytest.raises(ProbeError, match=message) as refusal:
            ProbeSet(folder)
    assert len(str(refusal.value)) < 500


@pytest.mark.parametrize("column", ["image", "mask"])
def test_a_pipe_is_refused_without_opening_it(column: str) -> None:
    """Opening a pipe blocks until another process opens its other end."""
    with probe_folder() as folder:
        os.mkfifo(folder / "pipe")
        row = {"image": "cat.png", "prompt": "a", column: "pipe"}
        (folder / "probes.jsonl").write_text(json.dumps(row))
        errors: list[Exception] = []
        reading = threading.Thread(target=lambda: errors.append(catch(lambda: ProbeSet(folder))))
        reading.start()
        reading.join(20)
        if reading.is_alive():
            os.close(os.open(folder / "pipe", os.O_WRONLY | os.O_NONBLOCK))  # ends the blocked thread
            reading.join()
            pytest.fail("reading blocked on the pipe")
    assert isinstance(errors[0], ProbeError)
    assert "is not a file" in str(errors[0])


def catch(call: Callable[[], object]) -> Exception:
    try:
        call()
    except Exception as error:
        return error
    return AssertionError("nothing was raised")


@pytest.mark.parametrize("path", ["x" * 5000, "nul\0", "\ud800", "no/such", "", "/dev/null"], ids=ascii)
def test_a_path_that_is_neither_file_nor_folder_is_refused(path: str) -> None:
    assert isinstance(catch(lambda: ProbeSet(path)), ProbeError | SnapshotError)
    assert isinstance(catch(lambda: read_manifest(Path(path))), ProbeError)
