"""Captioned pages: an image beside its overlay, with the prompt below."""

import io
from dataclasses import replace

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw
from torch import Tensor

from clipcam_lightning.cam.lettering import font, shorten, wrap
from clipcam_lightning.cam.preprocessing import Preprocessing
from clipcam_lightning.visualization.drawing import FAINT, INK, PAPER, to_image

MIN_SIDE = 448  # pixels
GAP, MAX_LINES, LINE_HEIGHT = 12, 3, 28


def magnify(preprocessing: Preprocessing, pixels: UInt8[np.ndarray, "y x 3"]) -> UInt8[Tensor, "3 v u"]:
    """Crop an image as the model does, but at a size that is easy to see.

    Args:
        preprocessing: of the model.
        pixels: of the original image.

    Returns:
        The input of the model, enlarged by a whole number to at least 448 pixels along its longer side.
    """
    height, width = preprocessing.size
    times = -(-MIN_SIDE // max(height, width))  # a whole number, or rounding would change the crop
    large = Preprocessing(replace(preprocessing.config, size=(height * times, width * times)))
    return large.pixels(large.image(pixels)[None])[0]


def caption(pixels: UInt8[Tensor, "3 y x"], overlay: UInt8[Tensor, "3 y x"], prompt: str, details: str) -> bytes:
    """Draw an image and its overlay side by side, with a caption below.

    Args:
        pixels: input of the model.
        overlay: of the same size.
        prompt: first lines of the caption, at most three.
        details: last line, smaller.

    Returns:
        A PNG file.
    """
    height, width = pixels.shape[1:]
    room = 2 * width + GAP
    lines = wrap(prompt, 22, room, MAX_LINES) or [""]
    page = Image.new("RGB", (room + 2 * GAP, height + 3 * GAP + LINE_HEIGHT * len(lines) + 22), PAPER)
    for i, tile in enumerate((pixels, overlay)):
        page.paste(to_image(tile), (GAP + i * (width + GAP), GAP))
    draw, top = ImageDraw.Draw(page), height + 2 * GAP - 2
    for i, line in enumerate(lines):
        draw.text((GAP, top + LINE_HEIGHT * i), line, INK, font(22))
    draw.text((GAP, top + LINE_HEIGHT * len(lines) + 2), shorten(details, 15, room), FAINT, font(15))
    file = io.BytesIO()
    page.save(file, "PNG")
    return file.getvalue()
