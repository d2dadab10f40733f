"""Explanations show themselves: as HTML, as one image, in matplotlib and in a viewer."""

import io
import re
import sys
import webbrowser
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from clipcam_lightning.cam.display.drawing import draw_color_bar, draw_maps
from clipcam_lightning.cam.display.gallery import Gallery, Tile
from clipcam_lightning.cam.display.markup import gallery_html
from clipcam_lightning.cam.display.shown import FEW, MANY
from clipcam_lightning.cam.explain import explain
from clipcam_lightning.cam.explained_images import ExplainedImages, magnify
from clipcam_lightning.cam.explanation import Explanation
from clipcam_lightning.cam.model import ClipModel
from clipcam_lightning.errors import ConfigError
from clipcam_lightning.storage.paths import as_path
from tests.support.drawn_images import TEXTS, pixels_of

PROMPTS = ["a red circle", "a blue star"]


class Page(HTMLParser):
    """Tags, attributes and texts of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture
def photograph() -> Image.Image:
    """Red on the left, blue on the right, wider than high."""
    pixels = np.zeros((60, 90, 3), np.uint8)
    pixels[:, :45, 0] = pixels[:, 45:, 2] = 255
    return Image.fromarray(pixels)


def explanation_of(count: int, prompts: list[str]) -> Explanation:
    """An explanation of unknown images whose similarities rise from prompt to prompt."""
    maps = torch.rand(count, len(prompts), 4, 4)
    similarity = torch.linspace(0.1, 0.5, len(prompts)).expand(count, -1)
    return Explanation(maps, similarity, ("layer",), "gradcam", "similarity", prompts=(tuple(prompts),) * count)


def peaks(values: list[float], *, is_shared: bool) -> list[list[int]]:
    """Draw one map per value, all cells but one being zero, and return the colour of that cell."""
    maps = torch.zeros(len(values), 8, 8)
    maps[:, 4, 4] = torch.tensor(values)
    drawn = draw_maps(maps, torch.full((3, 8, 8), 128, dtype=torch.uint8), 8, is_shared=is_shared)
    return [pixels_of(image)[4, 4].tolist() for image in drawn]


def test_on_a_shared_scale_a_map_is_as_hot_as_its_share_of_the_largest_value() -> None:
    bar = pixels_of(draw_color_bar(256, 1))[0].tolist()

    assert peaks([2.0, 1.0], is_shared=True) == [bar[255], bar[128]]


def test_on_scales_of_their_own_all_maps_reach_the_hottest_colour() -> None:
    hottest = pixels_of(draw_color_bar(256, 1))[0, 255].tolist()

    assert peaks([2.0, 0.5], is_shared=False) == [hottest, hottest]


def test_a_map_that_is_not_finite_leaves_the_shared_scale_to_the_others() -> None:
    bar = pixels_of(draw_color_bar(256, 1))[0].tolist()

    assert peaks([torch.inf, 2.0, 1.0], is_shared=True)[1:] == [bar[255], bar[128]]


def test_an_explanation_shows_input_prompts_similarities_and_scale(clip: ClipModel, photograph: Image.Image) -> None:
    explanation = explain(clip, photograph, PROMPTS)

    page = Page(explanation._repr_html_())

    similarities = explanation.similarity[0].tolist()
    assert page.tags.count("img") == 1 + len(PROMPTS) + 1  # input, maps, colour bar
    for prompt, similarity in zip(PROMPTS, similarities, strict=True):
        best = " · best" if similarity == max(similarities) else ""
        assert page.texts[page.texts.index(prompt) + 1] == f"similarity {similarity:.3f}{best}"
    assert any("shared scale" in text for text in page.texts)


def test_a_single_prompt_is_not_the_best_one_and_has_a_scale_of_its_own() -> None:
    texts = Page(explanation_of(2, ["a cat"])._repr_html_()).texts

    assert not any("best" in text for text in texts)
    assert any("own scale" in text for text in texts)


@pytest.mark.parametrize("kind", ["file", "PIL", "array", "batch", "iterator"])
def test_the_input_is_drawn_as_the_model_sees_it(
    kind: str, clip: ClipModel, photograph: Image.Image, tmp_path: Path, unchecked: None
) -> None:
    photograph.save(tmp_path / "half.png")
    images: Any = {
        "file": str(tmp_path / "half.png"),
        "PIL": photograph,
        "array": np.asarray(photograph),
        "batch": clip.preprocessing.image(photograph)[None],
        "iterator": iter([photograph]),
    }[kind]

    explanation = explain(clip, images, "a cat")

    assert explanation.images is not None
    pixels = explanation.images.pixels(0, 256)
    assert pixels.shape == (3, 256, 256)
    assert pixels[:, 128, 20].tolist() == pytest.approx([255, 0, 0], abs=4)
    assert pixels[:, 128, 236].tolist() == pytest.approx([0, 0, 255], abs=4)
    assert explanation.images.name(0) == ("half.png" if kind == "file" else "")


def test_images_are_kept_as_references(clip: ClipModel) -> None:
    batch = torch.rand(3, 3, 64, 64)

    images = explain(clip, batch, "a cat").images

    assert images is not None
    assert isinstance(images.images, Tensor)
    assert images.images.data_ptr() == batch.data_ptr()


def test_prompts_are_listed_per_image_and_embeddings_numbered(clip: ClipModel) -> None:
    batch = torch.rand(2, 3, 64, 64)

    assert explain(clip, batch, "a cat").prompts == (("a cat",),) * 2
    assert explain(clip, batch, PROMPTS).prompts == (tuple(PROMPTS),) * 2
    assert explain(clip, batch, [["a cat"], ["a dog"]]).prompts == (("a cat",), ("a dog",))
    embeddings = clip.embed_texts(PROMPTS)
    assert explain(clip, batch, embeddings).prompts == (("embedding 1", "embedding 2"),) * 2


def test_a_photograph_is_magnified_by_a_whole_number(clip: ClipModel) -> None:
    image = np.random.default_rng(0).integers(0, 256, (100, 150, 3), np.uint8)
    height, width = clip.preprocessing.size

    assert magnify(clip.preprocessing, image, 400).shape == (3, 7 * height, 7 * width) == (3, 448, 448)


def test_an_image_that_is_gone_is_named(clip: ClipModel, tmp_path: Path) -> None:
    images = ExplainedImages(str(tmp_path / "gone.png"), clip.preprocessing)

    with pytest.raises(ConfigError, match=r"gone\.png does not exist"):
        replace(explanation_of(1, ["a cat"]), images=images).draw()


@pytest.mark.parametrize(
    ("count", "prompts", "remark"),
    [(100, 2, "88 more images"), (1, 50, "15 more prompts"), (5, 40, "4 more images and 5 more prompts"), (2, 3, "")],
)
def test_a_page_shows_few_tiles_and_says_what_is_left_out(count: int, prompts: int, remark: str) -> None:
    page = Page(explanation_of(count, [f"prompt {i}" for i in range(prompts)])._repr_html_())

    assert page.tags.count("img") - 1 <= FEW
    assert [text for text in page.texts if "more" in text] == ([remark] if remark else [])


def test_an_explanation_of_thousands_of_images_is_one_image_of_at_most_128_tiles(written: list[str]) -> None:
    explanation_of(4096, ["a cat"]).draw()

    assert written.count("a cat") == MANY // 2
    assert f"{4096 - MANY // 2:,} more images" in written


@pytest.mark.parametrize("text", [text for text in TEXTS.values() if text.strip()])
def test_a_prompt_is_data_everywhere(text: str, written: list[str]) -> None:
    plain, odd = (explanation_of(1, [prompt, "another"]) for prompt in ("a cat", text))

    assert Page(odd._repr_html_()).tags == Page(plain._repr_html_()).tags
    odd._repr_html_().encode()  # half a surrogate pair could not be written
    assert odd.draw().width == plain.draw().width
    odd.plot().savefig(io.BytesIO())  # warnings of missing glyphs are errors


def test_a_page_loads_nothing() -> None:
    page = Page(explanation_of(1, ['"><img src="http://example.com/x.png" onerror="alert(1)">'])._repr_html_())

    assert {value.split(",")[0] for name, value in page.attributes if name == "src" and value} == {
        "data:image/jpeg;base64",
        "data:image/png;base64",
    }
    assert not any(name.startswith("on") for name, _ in page.attributes)


def test_text_and_ground_take_the_colours_of_the_page() -> None:
    assert not re.search(r"[^-]color:|background", explanation_of(1, PROMPTS)._repr_html_())


def test_the_best_prompt_has_a_frame() -> None:
    image = Image.new("RGB", (100, 100), "white")
    gallery = Gallery("", [[Tile(image, "a"), Tile(image, "b", is_marked=True)]])

    assert gallery_html(gallery).count("outline:") == 1


def test_long_rows_are_broken_into_lines_of_about_equal_lengths() -> None:
    tile = Tile(Image.new("RGB", (1, 1)), "")
    gallery = Gallery("", [[tile] * 6, [tile] * 2])

    assert [len(line) for line in gallery.break_rows(5)] == [3, 3, 2]


@pytest.mark.parametrize(("suffix", "kind"), [("png", "PNG"), ("JPG", "JPEG"), ("webp", "WEBP")])
def test_save_writes_the_format_that_the_suffix_names(suffix: str, kind: str, tmp_path: Path) -> None:
    explanation = explanation_of(1, PROMPTS)

    explanation.save(tmp_path / "new" / f"maps.{suffix}")

    assert [path.name for path in (tmp_path / "new").iterdir()] == [f"maps.{suffix}"]
    with Image.open(tmp_path / "new" / f"maps.{suffix}") as saved:
        assert (saved.format, saved.size) == (kind, explanation.draw().size)


def test_save_writes_to_a_store() -> None:
    explanation_of(1, PROMPTS).save("memory://explanations/maps.png")

    assert as_path("memory://explanations/maps.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["maps", "maps.txt", "maps.safetensors"])
def test_save_refuses_what_is_no_image_format(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"{name} names no image format; let it end in \.png"):
        explanation_of(1, PROMPTS).save(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_save_leaves_no_part_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "maps.png").mkdir()  # which no file can replace

    with pytest.raises(OSError, match=r"maps\.png"):
        explanation_of(1, PROMPTS).save(tmp_path / "maps.png")
    assert [path.name for path in tmp_path.iterdir()] == ["maps.png"]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
    """Files that a viewer was asked to open; there is none that does."""
    paths: list[Path] = []

    def refuse(url: str) -> bool:
        paths.append(Path(url2pathname(urlparse(url).path)))
        return False

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(webbrowser, "open", refuse)
    return paths


def test_show_prints_the_path_where_no_viewer_opens(opened: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    explanation_of(1, PROMPTS).show()

    (path,) = opened
    assert capsys.readouterr().out == f"no image viewer was found; the image is {path}\n"
    with Image.open(path) as image:
        assert image.format == "PNG"


def test_plot_has_one_axes_per_tile_and_a_colour_bar() -> None:
    plot = explanation_of(2, PROMPTS).plot()

    titles = [axes.get_title().partition("\n")[0] for axes in plot.axes]
    assert titles == [*PROMPTS, *PROMPTS, ""]
    assert "shared scale" in plot.axes[-1].get_xlabel()


def test_plot_needs_matplotlib_and_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)

    with pytest.raises(ConfigError, match=r"pip install 'clipcam-lightning\[notebook\]'"):
        explanation_of(1, PROMPTS).plot()
