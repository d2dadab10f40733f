"""``clipcam explain`` on files, folders and patterns."""

import sys
from collections.abc import Callable
from pathlib import Path

import open_clip
import pytest
import torch
from PIL import Image

from clipcam_lightning.cam.writing import write_atomically
from clipcam_lightning.cli import main
from clipcam_lightning.cli.images import find_images
from clipcam_lightning.errors import ConfigError
from clipcam_lightning.storage.paths import as_path
from tests.support.shell import OPTIONS, make_project

Shell = Callable[..., tuple[int, str, str]]
MODEL = (*OPTIONS, "before.pt")
PROMPT = ("--prompt", "a red circle")


def write_image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), "red").save(path)


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with images, other files and a folder that holds none."""
    for name in ("fox.jpg", "cat.PNG", "deep/fox.jpg", "deep/er/лиса.jpg"):
        write_image(tmp_path / "photos" / name)
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    (tmp_path / "photos" / "._fox.jpg").write_text("hidden")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def shell(
    photos: Path, shapes_vit: open_clip.CLIP, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Shell:
    """Run ``clipcam explain`` beside a checkpoint; returns its exit code and what it printed."""
    make_project(photos, shapes_vit)
    monkeypatch.syspath_prepend(str(photos))
    monkeypatch.delitem(sys.modules, "eyes", raising=False)

    def run(*arguments: object) -> tuple[int, str, str]:
        code = main(["explain", *map(str, arguments)])
        return code, *capsys.readouterr()

    return run


def found(*places: str) -> list[str]:
    return [str(image.path) for image in find_images(places).files]


def test_a_folder_stands_for_its_own_images_by_name(photos: Path) -> None:
    assert found("photos") == ["photos/cat.PNG", "photos/fox.jpg"]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("photos/*.jpg", ["photos/fox.jpg"]),
        ("photos/???.*", ["photos/cat.PNG", "photos/fox.jpg"]),
        ("photos/[a-c]*", ["photos/cat.PNG"]),
        (
            "photos/**",
            ["photos/cat.PNG", "photos/deep/er/лиса.jpg", "photos/deep/fox.jpg", "photos/fox.jpg"],
        ),
        ("photos/**/fox.jpg", ["photos/deep/fox.jpg", "photos/fox.jpg"]),
    ],
)
def test_a_pattern_stands_for_the_images_that_match(pattern: str, names: list[str], photos: Path) -> None:
    assert found(pattern) == names


def test_an_image_that_is_named_twice_is_taken_once(photos: Path) -> None:
    assert found("photos/fox.jpg", "photos", f"{photos}/photos/*.jpg") == ["photos/fox.jpg", "photos/cat.PNG"]


def test_a_file_whose_name_looks_like_a_pattern_is_a_file(photos: Path) -> None:
    write_image(photos / "[1].png")

    assert found("[1].png") == ["[1].png"]


def test_folders_and_patterns_may_be_in_a_store(photos: Path, store: str) -> None:
    for name in ("a.jpg", "deep/b.jpg", "notes.txt"):
        write_atomically(as_path(f"{store}/images/{name}"), (photos / "photos" / "fox.jpg").read_bytes())

    assert found(f"{store}/images") == [f"{store}/images/a.jpg"]
    assert found(f"{store}/images/**") == [f"{store}/images/a.jpg", f"{store}/images/deep/b.jpg"]
    assert find_images([f"{store}/images"]).note == "skipped what is no image: notes.txt."


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("empty", "empty has no images; 'empty/**' includes its subfolders."),
        ("photos/*.gif", "no image matches photos/*.gif."),
        ("photos/*.txt", "no image matches photos/*.txt."),
        ("photos/gone.jpg", "image 1: the image photos/gone.jpg does not exist."),
        ("photos/notes.txt", "image 1: the image photos/notes.txt cannot be read"),
    ],
)
def test_a_place_without_images_is_refused(place: str, message: str, photos: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        find_images([place])
    assert str(raised.value).startswith(message)


def test_what_is_skipped_is_named(photos: Path) -> None:
    for i in range(5):
        (photos / "photos" / f"{i}.csv").touch()

    assert find_images(["photos"]).note == "skipped what is no image: 0.csv, 1.csv, 2.csv and 3 more."
    assert find_images(["photos/deep"]).note == ""


def test_images_of_one_name_get_sheets_of_their_own_in_every_script(shell: Shell, photos: Path) -> None:
    code, out, err = shell("photos/**", *PROMPT, "--out", "maps", *MODEL)

    assert (code, err) == (0, "clipcam: warning: skipped what is no image: notes.txt.\n")
    assert "wrote 4 sheets to maps: " in out
    names = ["cat-maps.png", "fox-2-maps.png", "fox-maps.png", "лиса-maps.png"]
    assert sorted(path.name for path in (photos / "maps").iterdir()) == names
    assert all(f" {name} " in out for name in names)


def test_the_sheet_shows_input_prompts_best_prompt_and_scale(shell: Shell, written: list[str]) -> None:
    code, _, _ = shell("photos/fox.jpg", *PROMPT, "--prompt", "a blue star", "--out", "maps", *MODEL)

    assert code == 0
    assert [text for text in written if text in ("fox.jpg", "a red circle", "a blue star")] == [
        "fox.jpg",
        "a red circle",
        "a blue star",
    ]
    assert [text for text in written if "best" in text] != []
    assert any(text.startswith("shared scale") for text in written)


def test_a_damaged_image_in_a_folder_is_skipped_and_one_that_is_named_is_refused(shell: Shell, photos: Path) -> None:
    whole = (photos / "photos" / "fox.jpg").read_bytes()
    (photos / "photos" / "half.jpg").write_bytes(whole[: len(whole) // 2 + 200])

    code, out, err = shell("photos", *PROMPT, "--out", "maps", *MODEL)
    assert code == 0
    assert "wrote 2 sheets to maps" in out
    assert "skipped, because the image photos/half.jpg cannot be read" in err

    code, out, err = shell("photos/half.jpg", *PROMPT, "--out", "maps", *MODEL)
    assert (code, out) == (2, "")
    assert err.startswith("clipcam: error: image 1: the image photos/half.jpg cannot be read")


def test_no_image_is_replaced_by_a_sheet(shell: Shell, photos: Path) -> None:
    write_image(photos / "photos" / "fox-maps.png")
    before = (photos / "photos" / "fox-maps.png").read_bytes()

    code, out, err = shell("photos", *PROMPT, "--out", "photos", *MODEL)

    assert (code, out) == (2, "")
    assert "photos/fox-maps.png is an input and would be replaced; give --out another folder." in err
    assert (photos / "photos" / "fox-maps.png").read_bytes() == before


@pytest.mark.parametrize("option", ["--checkpoint", "--config"])
def test_no_file_of_the_model_is_replaced_by_a_sheet(option: str, shell: Shell, photos: Path) -> None:
    (photos / "fox-maps.png").write_text("a file of the model")
    files = {"--checkpoint": "before.pt", "--config": "config.yaml"} | {option: "fox-maps.png"}

    code, out, err = shell("photos/fox.jpg", *PROMPT, "--out", ".", *(each for pair in files.items() for each in pair))

    assert (code, out) == (2, "")
    assert "fox-maps.png is an input and would be replaced; give --out another folder." in err
    assert (photos / "fox-maps.png").read_text() == "a file of the model"


@pytest.mark.parametrize(
    ("device", "is_available", "message"),
    [
        ("cuda", torch.cuda.is_available, "--device cuda: torch finds no CUDA device here; use --device cpu."),
        ("mps", torch.backends.mps.is_available, "--device mps: torch finds no Apple GPU here; use --device cpu."),
    ],
)
def test_a_device_that_is_not_there_is_refused(
    device: str, is_available: Callable[[], bool], message: str, shell: Shell
) -> None:
    if is_available():
        pytest.skip(f"this machine has {device}")

    code, out, err = shell("photos/fox.jpg", *PROMPT, "--out", "maps", *MODEL, "--device", device)

    assert (code, out, err) == (2, "", f"clipcam: error: {message}\n")
