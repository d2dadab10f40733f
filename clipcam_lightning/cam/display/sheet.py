"""A gallery as one image, for a file or a viewer."""

from collections.abc import Sequence

from PIL import Image, ImageDraw

from clipcam_lightning.cam.display.drawing import draw_color_bar
from clipcam_lightning.cam.display.gallery import Gallery, Tile
from clipcam_lightning.cam.lettering import font, shorten, text_width, wrap

COLUMNS = 5
MARGIN, GAP, FRAME = 20, 16, 4  # pixels
HEADING, CAPTION, DETAILS = 22, 18, 15  # of the fonts
HEADING_HEIGHT, CAPTION_HEIGHT, DETAILS_HEIGHT = 40, 24, 22  # of a line
MAX_LINES = 3  # of a caption
BAR = (160, 12)
INK, FAINT, PAPER, MARK = "#1a1a1a", "#5c5c5c", "#ffffff", "#0b5fd0"


def draw_sheet(gallery: Gallery) -> Image.Image:
    """Draw a gallery as one image on white; captions of more than three lines are cut."""
    lines = list(gallery.break_rows(COLUMNS))
    cell = max(tile.image.width for line in lines for tile in line)
    columns = max(map(len, lines))
    width = 2 * MARGIN + columns * cell + (columns - 1) * GAP
    captions = [[wrap(tile.caption, CAPTION, cell, MAX_LINES) for tile in line] for line in lines]
    heights = [_measure_line(line, texts) for line, texts in zip(lines, captions, strict=True)]
    footer = [*_break_scale(gallery.scale, width - 2 * MARGIN), *wrap(gallery.remark, DETAILS, width - 2 * MARGIN, 2)]
    height = MARGIN + HEADING_HEIGHT + sum(heights) + DETAILS_HEIGHT * len(footer) + MARGIN // 2
    page = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((MARGIN, MARGIN), shorten(gallery.heading, HEADING, width - 2 * MARGIN), INK, font(HEADING))
    top = MARGIN + HEADING_HEIGHT
    for line, texts, line_height in zip(lines, captions, heights, strict=True):
        for i, (tile, text) in enumerate(zip(line, texts, strict=True)):
            _draw_tile(page, (MARGIN + i * (cell + GAP), top), tile, text, cell)
        top += line_height
    if gallery.scale:
        page.paste(draw_color_bar(*BAR), (MARGIN, top + 3))
    for i, words in enumerate(footer):
        left = MARGIN + BAR[0] + GAP // 2 if gallery.scale and i == 0 else MARGIN
        draw.text((left, top), words, FAINT, font(DETAILS))
        top += DETAILS_HEIGHT
    return page


def _draw_tile(page: Image.Image, corner: tuple[int, int], tile: Tile, caption: Sequence[str], room: int) -> None:
    left, top = corner
    draw = ImageDraw.Draw(page)
    if tile.is_marked:
        right, bottom = left + tile.image.width, top + tile.image.height
        draw.rectangle((left - FRAME, top - FRAME, right + FRAME - 1, bottom + FRAME - 1), fill=MARK)
    page.paste(tile.image, corner)
    top += tile.image.height + GAP // 2
    for text in caption:
        draw.text((left, top), text, INK, font(CAPTION))
        top += CAPTION_HEIGHT
    color = MARK if tile.is_marked else FAINT
    draw.text((left, top), shorten(tile.details, DETAILS, room), color, font(DETAILS))


def _measure_line(line: Sequence[Tile], captions: Sequence[Sequence[str]]) -> int:
    text = max(map(len, captions)) * CAPTION_HEIGHT + DETAILS_HEIGHT
    return max(tile.image.height for tile in line) + GAP // 2 + text + GAP


def _break_scale(scale: str, room: int) -> list[str]:
    """Put the text beside the colour bar if it fits, or else below it."""
    if not scale:
        return []
    if text_width(scale, DETAILS) <= room - BAR[0] - GAP // 2:
        return [scale]
    return ["", *wrap(scale, DETAILS, room, MAX_LINES)]
