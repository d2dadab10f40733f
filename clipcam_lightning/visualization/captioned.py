"""Maps as pictures to look at: the image as the model sees it beside its overlay, and what was asked."""

import io
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from clipcam_lightning.cam.preprocessing import Preprocessing

SIDE = 448  # pixels of a picture, at least
GAP, LINES = 12, 3
INK, FAINT, PAPER = "#1a1a1a", "#6b6b6b", "#ffffff"


def magnified(preprocessing: Preprocessing, pixels: UInt8[np.ndarray, "y x 3"]) -> UInt8[Tensor, "3 v u"]:
    """What the model sees of a picture, in as many pixels as a person wants to see."""
    height, width = preprocessing.size
    times = -(-SIDE // max(height, width))  # a whole number, or the crop would be another one
    large = Preprocessing(replace(preprocessing.config, size=(height * times, width * times)))
    return large.pixels(large.image(pixels)[None])[0]


def captioned(picture: UInt8[Tensor, "3 y x"], overlay: UInt8[Tensor, "3 y x"], prompt: str, details: str) -> bytes:
    """Picture and overlay side by side with a caption below, as a PNG file."""
    height, width = picture.shape[1:]
    font, small = (ImageFont.load_default(size) for size in (22, 15))
    lines = _wrapped(prompt, font, 2 * width + GAP)
    page = Image.new("RGB", (2 * width + 3 * GAP, height + 3 * GAP + 28 * len(lines) + 22), PAPER)
    for i, pixels in enumerate((picture, overlay)):
        page.paste(Image.fromarray(pixels.permute(1, 2, 0).numpy()), (GAP + i * (width + GAP), GAP))
    draw, top = ImageDraw.Draw(page), height + 2 * GAP - 2
    for i, line in enumerate(lines):
        draw.text((GAP, top + 28 * i), line, INK, font)
    draw.text((GAP, top + 28 * len(lines) + 2), details, FAINT, small)
    file = io.BytesIO()
    page.save(file, "PNG")
    return file.getvalue()


def _wrapped(text: str, font: Any, room: int) -> list[str]:
    """Text in lines no longer than ``room``; of a long text the beginning."""
    lines = [""]
    for word in text[: LINES * room].split():  # no letter is narrower than a pixel
        longer = f"{lines[-1]} {word}".strip()
        if not lines[-1] or font.getlength(longer) <= room:
            lines[-1] = longer
        else:
            lines.append(word)
    if len(lines) > LINES:
        lines = [*lines[: LINES - 1], f"{lines[LINES - 1]} ..."]
    return lines
