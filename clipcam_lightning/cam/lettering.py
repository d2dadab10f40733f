"""Text on images, in any script: measured, shortened and broken into lines, so that it stays in its place."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from functools import cache, lru_cache
from importlib.resources import files

import regex
from PIL import Image, ImageDraw, ImageFont

SMALLEST, LARGEST, LETTERS = 9, 22, 7  # pixels of the font, and the shorter side of an image in units of it
LEADING = 1.25  # distance of two lines, in units of the font
GROUND, LIGHT = (0, 0, 0, 176), (255, 255, 255, 255)  # RGBA
LATIN = frozenset(map(chr, (*range(0x20, 0x7F), *range(0xA0, 0x250), *range(0x2010, 0x2027))))  # of latin.ttf
# What stays on one line: a word, or one character of a script without spaces, with the punctuation that belongs to it.
PIECES = regex.compile(
    r"\s*(?:\p{lb=OP}*[\p{Han}\p{Hiragana}\p{Katakana}]\p{M}*|[^\s\p{Han}\p{Hiragana}\p{Katakana}]+)"
    r"[\p{lb=CL}\p{lb=CP}\p{lb=EX}\p{lb=NS}\p{lb=CJ}]*"
)
CHARACTERS = regex.compile(r"\X")  # as a reader sees them: a letter with its marks, an emoji of several parts


def letter(image: Image.Image, text: str) -> Image.Image:
    """Write a text across the middle of an image, on a dark band that makes it readable on any ground.

    Args:
        image: RGB; of any size, by which the font is chosen.
        text: broken into lines that fit; what exceeds the image's height is cut.

    Returns:
        A new image; the image itself if there is no text.
    """
    size = min(LARGEST, max(SMALLEST, min(image.size) // LETTERS))
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
        draw.text(middle, line, LIGHT, font(size, line), anchor="mm")
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
def _load(name: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(files("clipcam_lightning.cam") / "fonts" / name), size)


def load_fonts() -> None:
    """Open the fonts and draw a letter now, because Pillow imports modules when it first does."""
    for name in ("latin.ttf", "world.ttf"):
        ImageDraw.Draw(Image.new("RGB", (1, 1))).text((0, 0), "a", font=_load(name, SMALLEST))


def font(size: int, text: str | None = None) -> ImageFont.FreeTypeFont:
    """Return the font of all images.

    Args:
        size: in pixels.
        text: to be drawn; with a Latin one, measuring and drawing take a fraction of the time.

    Returns:
        The font with all scripts, or its Latin part if the text needs no other.
    """
    return _load("latin.ttf" if text is not None and LATIN.issuperset(text) else "world.ttf", size)


@lru_cache(maxsize=4096)  # the same prompts are measured at each evaluation
def text_width(text: str, size: int) -> int:
    """Measure one line of text, in pixels."""
    return math.ceil(font(size, text).getlength(text))


def shorten(text: str, size: int, room: int) -> str:
    """Put a text on one line of at most ``room`` pixels; a longer one ends in an ellipsis."""
    text = " ".join(text.split())[:room]  # no visible character is narrower than a pixel
    if text_width(text, size) <= room:
        return text
    characters = CHARACTERS.findall(text)
    return "".join(characters[: _count_fitting(characters, size, room, "…")]).strip() + "…"


def wrap(text: str, size: int, room: int, max_lines: int) -> list[str]:
    """Break a text into lines of at most ``room`` pixels; what exceeds ``max_lines`` is cut, with an ellipsis.

    Args:
        text: with any whitespace.
        size: of the font.
        room: width of a line.
        max_lines: at least 1.

    Returns:
        The lines, broken between words, or between characters where a word is wider than a line or the script has no
        spaces; none for a blank text.
    """
    pieces = PIECES.findall(" ".join(text.split())[: max_lines * room])
    lines: list[str] = []
    while pieces and len(lines) < max_lines:
        count = _count_fitting(pieces, size, room)
        if not count:
            pieces[:1] = CHARACTERS.findall(pieces[0].strip())
            count = max(1, _count_fitting(pieces, size, room))
        lines.append("".join(pieces[:count]).strip())
        del pieces[:count]
    if pieces:
        lines[-1] += "…"
    return [shorten(line, size, room) for line in lines]


def _count_fitting(parts: Sequence[str], size: int, room: int, end: str = "") -> int:
    """Count the first parts that fit into ``room`` pixels together, with ``end`` after them."""
    counts = range(1, min(len(parts), room) + 1)
    return bisect_right(counts, room, key=lambda count: text_width("".join(parts[:count]).strip() + end, size))
