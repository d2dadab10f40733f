"""Captioned pages: the model's view of an image, enlarged, with the prompt below."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor

from clipcam_lightning.cam.model import ClipModel
from clipcam_lightning.visualization.captioned import GAP, LINE_HEIGHT, caption, magnify
from clipcam_lightning.visualization.drawing import PAPER
from tests.support.drawn_images import TEXTS, pixels_of

IMAGE, OVERLAY = torch.full((3, 90, 120), 200, dtype=torch.uint8), torch.full((3, 90, 120), 100, dtype=torch.uint8)


def page(prompt: str, details: str = "similarity 0.3") -> Image.Image:
    return Image.open(io.BytesIO(caption(IMAGE, OVERLAY, prompt, details))).convert("RGB")


def test_a_page_shows_image_and_overlay_side_by_side() -> None:
    pixels = pixels_of(page("a cat"))
    for left, value in ((GAP, 200), (2 * GAP + 120, 100)):
        assert (pixels[GAP : GAP + 90, left : left + 120] == value).all()


def test_a_long_prompt_takes_three_lines() -> None:
    assert page(TEXTS["long"]).height == page("a cat").height + 2 * LINE_HEIGHT


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_no_text_reaches_into_the_margin_or_the_images(text: str) -> None:
    pixels = pixels_of(page(text, details=text))
    paper = np.array(ImageColor.getrgb(PAPER))
    assert (pixels[:, -GAP:] == paper).all()
    assert (pixels[GAP + 90 : GAP + 90 + 6] == paper).all()


def test_an_image_is_magnified_by_a_whole_number_to_at_least_448_pixels(clip: ClipModel) -> None:
    image = np.random.default_rng(0).integers(0, 256, (100, 150, 3), np.uint8)
    height, width = clip.preprocessing.size
    assert magnify(clip.preprocessing, image).shape == (3, 7 * height, 7 * width) == (3, 448, 448)
