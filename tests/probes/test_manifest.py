"""A probe folder with a manifest is read, and every error gives the line number."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clipcam_lightning.errors import ProbeError
from clipcam_lightning.probes.manifest import read_manifest
from clipcam_lightning.probes.probe_set import ProbeSet

PIXELS = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
MASK = np.zeros((4, 6), dtype=bool)
MASK[1:3, 2:5] = True


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "deep").mkdir()
    for name, pixels in (("cat.png", PIXELS), ("deep/dog.png", PIXELS[::-1]), ("mask.png", MASK)):
        Image.fromarray(pixels).save(tmp_path / name)
    return tmp_path


def write_csv(folder: Path, *lines: str, bom: bool = False, newline: str = "\n") -> Path:
    (folder / "probes.csv").write_bytes(newline.join(lines).encode("utf-8-sig" if bom else "utf-8"))
    return folder


def write_jsonl(folder: Path, *lines: Any, encoding: str = "utf-8") -> Path:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines)
    (folder / "probes.jsonl").write_bytes(text.encode(encoding))
    return folder


@pytest.mark.parametrize("bom", [False, True])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_csv_manifest_is_read(folder: Path, bom: bool, newline: str) -> None:
    lines = ("image,prompt,name,mask,box", "cat.png,a cat,,mask.png,", 'deep/dog.png,"a dog, 日本",rex,,2 1 5 3')
    probes = ProbeSet(write_csv(folder, *lines, bom=bom, newline=newline))

    assert probes.prompts == ["a cat", "a dog, 日本"]
    assert probes.names == ["cat", "rex"]
    assert np.array_equal(probes[0].image, PIXELS)
    assert np.array_equal(probes[1].image, PIXELS[::-1])
    assert np.array_equal(probes[0].mask, MASK)
    assert np.array_equal(probes[1].mask, MASK)


def test_blanks_beside_the_commas_of_a_csv_manifest_have_no_influence(folder: Path) -> None:
    lines = ("image,prompt,name,mask,box", 'cat.png,"a cat, asleep",tom,mask.png,', "cat.png,b,,,1 1 2 2")
    spaced = (
        " image , prompt,name, mask ,box",
        ' cat.png, "a cat, asleep", tom, mask.png , ',
        "cat.png ,b , , , 1 1 2 2",
    )
    rows = read_manifest(write_csv(folder, *lines))

    assert read_manifest(write_csv(folder, *spaced)) == rows
    assert rows[0].prompt == "a cat, asleep"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_jsonl_manifest_is_read_and_blank_lines_are_skipped(folder: Path, encoding: str) -> None:
    rows = ({"image": "cat.png", "prompt": "a cat 日本"}, "", {"image": "deep/dog.png", "prompt": "b", "name": "rex"})
    probes = ProbeSet(str(write_jsonl(folder, *rows, encoding=encoding)))
    assert (probes.prompts, probes.names) == (["a cat 日本", "b"], ["cat", "rex"])
    assert probes[0].mask is None


@pytest.mark.parametrize("box", [[2, 1, 5, 3], "2 1 5 3", "2,1,5,3", " 2, 1, 5, 3 ", ["2", "1", "5", "3"]], ids=str)
def test_a_box_may_be_text_or_a_list(folder: Path, box: Any) -> None:
    probes = ProbeSet(write_jsonl(folder, {"image": "cat.png", "prompt": "a", "box": box}))
    assert np.array_equal(probes[0].mask, MASK)


def test_both_kinds_of_manifest_give_the_same_rows(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    csv_rows = read_manifest(write_csv(folder, "image,prompt,mask,box", "cat.png,a,,1 1 2 2", "x.png,b,mask.png,"))
    (folder / "probes.csv").unlink()
    rows = (
        {"image": "cat.png", "prompt": "a", "box": [1, 1, 2, 2]},
        {"image": "x.png", "prompt": "b", "mask": "mask.png"},
    )
    jsonl_rows = read_manifest(write_jsonl(folder, *rows))
    assert [{**vars(row), "place": ""} for row in csv_rows] == [{**vars(row), "place": ""} for row in jsonl_rows]
    assert [row.place for row in csv_rows + jsonl_rows] == [f"probes.{kind} line {n}" for kind, n in LINES]


LINES = [("csv", 2), ("csv", 3), ("jsonl", 1), ("jsonl", 2)]


@pytest.mark.parametrize(
    ("lines", "line", "message"),
    [
        (["image,text", "cat.png,a"], 1, "column 'prompt' is missing .got image, text"),
        (["picture,prompt", "cat.png,a"], 1, "column 'image' is missing"),
        ([""], 1, "column 'image' is missing .got an empty file"),
        (["image,prompt", "cat.png,a", "cat2.png,b"], 3, "cat2.png does not exist"),
        (["image,prompt", "cat.png,a", "probes.csv,b"], 3, "probes.csv cannot be read"),
        (["image,prompt", "cat.png,a", "deep,b"], 3, "deep cannot be read"),
        (["image,prompt", "cat.png"], 2, "'prompt' is missing or empty"),
        (["image,prompt", "cat.png, "], 2, "'prompt' is missing or empty"),
        (["image,prompt", "", "cat.png,a", ",b"], 4, "'image' is missing or empty"),
        (["image,prompt", '"cat.png","a\nb"', ",c"], 4, "'image' is missing or empty"),
        (["image,prompt,mask", "cat.png,a,no.png"], 2, "the mask .*no.png does not exist"),
        (["image,prompt,mask,box", "cat.png,a,mask.png,0 0 1 1"], 2, "not both"),
        (["image,prompt,box", "cat.png,a,1 2 3"], 2, "four whole numbers, left top right bottom .got '1 2 3'"),
        (["image,prompt,box", "cat.png,a,1 2 3 x"], 2, "four whole numbers"),
        (["image,prompt,box", "cat.png,a,0 0 9 9"], 2, "inside 6x4"),
    ],
    ids=str,
)
def test_the_message_about_an_unusable_csv_line_gives_its_number(
    folder: Path, lines: list[str], line: int, message: str
) -> None:
    with pytest.raises(ProbeError, match=f"probes.csv line {line}: .*{message}"):
        ProbeSet(write_csv(folder, *lines))


GOOD = {"image": "cat.png", "prompt": "a"}
WRONG_BOX = "four whole numbers"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"image": "cat.png", "prompt": ', "not JSON"),
        ("[1, 2]", "expected an object"),
        ("null", "expected an object"),
        ({"image": "cat.png"}, "'prompt' is missing or empty"),
        ({**GOOD, "prompt": 5}, "'prompt' is missing or empty"),
        ({**GOOD, "image": "no.png"}, "no.png does not exist"),
        ({**GOOD, "name": ["x"]}, "'name' must be text"),
        ({**GOOD, "mask": {"x": 1}}, "'mask' must be text"),
        ({**GOOD, "box": [1, 2, 3]}, WRONG_BOX),
        ({**GOOD, "box": [0, 0, 1, 1, 1]}, WRONG_BOX),
        ({**GOOD, "box": 7}, WRONG_BOX),
        ({**GOOD, "box": [0, 0, None, 1]}, WRONG_BOX),
        ({**GOOD, "box": {"left": 0, "top": 0, "right": 1, "bottom": 1}}, WRONG_BOX),
        ('{"image": "cat.png", "prompt": "a", "box": [NaN, 0, 1, 1]}', WRONG_BOX),
        pytest.param(
            '{"image": "cat.png", "prompt": "a", "box": [0, 0, Infinity, 1]}',
            WRONG_BOX,
        ),
        pytest.param(
            {**GOOD, "box": [0, 0, 1.9, 1]},
            WRONG_BOX,
        ),
    ],
    ids=str,
)
def test_the_message_about_an_unusable_json_line_gives_its_number(folder: Path, row: Any, message: str) -> None:
    with pytest.raises(ProbeError, match=f"probes.jsonl line 3: .*{message}"):
        ProbeSet(write_jsonl(folder, GOOD, "", row))


def test_a_folder_with_both_manifests_or_neither_is_refused(folder: Path) -> None:
    with pytest.raises(ProbeError, match=r"one manifest, probes.csv or probes.jsonl \(neither found\)"):
        ProbeSet(folder)
    with pytest.raises(ProbeError, match="both found"):
        ProbeSet(write_csv(write_jsonl(folder, GOOD), "image,prompt", "cat.png,a"))
    with pytest.raises(ProbeError, match="neither found"):
        read_manifest(folder / "no such folder")


@pytest.mark.parametrize(
    "write", [lambda f: write_csv(f, "image,prompt"), lambda f: write_jsonl(f), lambda f: write_jsonl(f, "", " ")]
)
def test_a_manifest_without_probes_is_refused(folder: Path, write: Any) -> None:
    with pytest.raises(ProbeError, match="lists no probes"):
        ProbeSet(write(folder))


@pytest.mark.parametrize("name", ["probes.csv", "probes.jsonl"])
def test_a_manifest_that_is_not_utf8_is_refused(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"image,prompt\n\xff\xfe\x80\n")
    with pytest.raises(ProbeError, match=f"{name} cannot be read"):
        ProbeSet(folder)


def test_one_image_may_have_several_prompts(folder: Path) -> None:
    names = ProbeSet(write_csv(folder, "image,prompt", "cat.png,a cat", "cat.png,a dog", "deep/dog.png,x")).names
    assert names == ["cat", "cat-2", "dog"]


@pytest.mark.parametrize("names", [("x", "My Cat"), ("x", "x")], ids=str)
def test_the_message_about_an_unusable_name_gives_its_line(folder: Path, names: tuple[str, str]) -> None:
    rows = [f"cat.png,a,{name}" for name in names]
    with pytest.raises(ProbeError, match=r"probes\.csv line 3"):
        ProbeSet(write_csv(folder, "image,prompt,name", *rows))


@pytest.mark.parametrize("separator", ["\u2028", "\u0085"], ids=ascii)
def test_a_prompt_may_hold_any_character_that_json_allows(folder: Path, separator: str) -> None:
    prompt = f"a{separator}b"
    assert ProbeSet(write_jsonl(folder, {**GOOD, "prompt": prompt})).prompts == [prompt]
