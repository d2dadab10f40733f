"""Text on images: measured, shortened and broken into lines, so that it stays in its place."""

import math
from bisect import bisect_right
from functools import cache

from PIL import Image, ImageDraw, ImageFont

SMALLEST, LARGEST, LETTERS = 9, 16, 10  # pixels of the font, and the width of an image in units of it
LEADING = 1.25  # distance of two lines, in units of the font
GROUND, LIGHT = (0, 0, 0, 176), (255, 255, 255, 255)  # RGBA


def letter(image: Image.Image, text: str) -> Image.Image:
    """Write a text across the middle of an image, on a dark band that makes it readable on any ground.

    Args:
        image: RGB; of any size, by which the font is chosen.
        text: broken into lines that fit; what exceeds the image's height is cut.

    Returns:
        A new image; the image itself if there is no text.
    """
    size = min(LARGEST, max(SMALLEST, image.width // LETTERS))
    line_height = math.ceil(LEADING * size)
    lines = _balance(text, size, image.width - size // 2, max(1, image.height // line_height))
    if not lines:
        return image
    layer = Image.new("RGBA", image.size)
    draw = ImageDraw.Draw(layer)
    top, height = (image.height - line_height * len(lines)) // 2, line_height * len(lines)
    draw.rectangle((0, top - size // 3, image.width, top + height + size // 3), fill=GROUND)
    for i, line in enumerate(lines):
        middle = image.width / 2, top + line_height * (i + 0.5)
        draw.text(middle, line, LIGHT, font(size), anchor="mm")
    return Image.alpha_composite(image.convert("RGBA"), layer).convert("RGB")


@cache
def _balance(text: str, size: int, room: int, max_lines: int) -> tuple[str, ...]:
    """Break a text as :func:`wrap` does, into as many lines, but of about equal lengths."""
    lines = wrap(text, size, room, max_lines)
    for narrower in range(text_width(text, size) // max(1, len(lines)), room, 2):
        balanced = wrap(text, size, narrower, max_lines)
        if len(balanced) == len(lines) and " ".join(balanced) == " ".join(lines):
            return tuple(balanced)
    return tuple(lines)


@cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Load the font of all images at ``size`` pixels."""
    return ImageFont.load_default(size)


def text_width(text: str, size: int) -> int:
    """Measure one line of text, in pixels."""
    return math.ceil(font(size).getlength(text))


def shorten(text: str, size: int, room: int) -> str:
    """Put a text on one line of at most ``room`` pixels; a longer one ends in an ellipsis."""
    text = " ".join(text.split())[:room]  # no visible character is narrower than a pixel
    if text_width(text, size) <= room:
        return text
    fitting = bisect_right(range(len(text)), room, key=lambda length: text_width(text[:length] + "…", size))
    return text[: max(0, fitting - 1)] + "…"


def wrap(text: str, size: int, room: int, max_lines: int) -> list[str]:
    """Break a text into lines of at most ``room`` pixels; what exceeds ``max_lines`` is cut, with an ellipsis.

    Args:
        text: with any whitespace.
        size: of the font.
        room: width of a line.
        max_lines: at least 1.

    Returns:
        The lines; none for a blank text.
    """
    lines: list[str] = []
    for word in text[: max_lines * room].split():
        if lines and text_width(f"{lines[-1]} {word}", size) <= room:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    kept = lines[:max_lines]
    if len(lines) > max_lines:
        kept[-1] += "…"
    return [shorten(line, size, room) for line in kept]
