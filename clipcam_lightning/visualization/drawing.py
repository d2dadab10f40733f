"""Drawing shared by all images: tiles with heat on them, and panels of tiles."""

from collections.abc import Sequence
from functools import cache

import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw
from torch import Tensor

from clipcam_lightning.cam.colors import CHANGE, HEAT, colored, overlaid
from clipcam_lightning.cam.display.drawing import draw_color_bar, fit_image, outline_mask, to_image, to_pixels
from clipcam_lightning.cam.fuse import resize_maps
from clipcam_lightning.cam.lettering import font, letter, shorten, text_width, wrap
from clipcam_lightning.cam.map_state import MapState

TILE, GAP = 208, 8  # pixels
# TensorBoard shows an image 350 pixels wide in one tab and 215 pixels high in the other, and leaves out rows and
# columns of pixels to make it smaller: of an image that is exactly twice as large, every second one.
CARD = (700, 430)
PANEL_TILE, PITCH = 176, (184, 210)  # pixels: side of a tile, and distances of two
TITLE, DETAILS, LABEL = 26, 23, 22  # pixels: fonts that are legible at half their size
TITLE_LINE, LINE, BAR = 34, 28, 16  # pixels: between two lines, and of a colour bar
MAX_LINES = 5  # of a title
TEXT_WIDTH, BARS = CARD[0] - 2 * PITCH[0] - 3 * GAP, CARD[1] - 2 * LINE - GAP  # pixels: of the texts, top of the bars
INK, FAINT, PAPER, FLAG = "#f4f4f2", "#cfcfcb", "#2b2c2e", "#ff7a6b"  # dark, so that no theme of a page makes it glare
FLAG_TEXT, ALARM = "FLAGGED", "#c9252d"
DIM, DENSEST_CHANGE = 0.15, 0.8  # grey of a black image under a change, and opacity of the largest change


def enlarge(pixels: UInt8[Tensor, "3 y x"], side: int) -> UInt8[Tensor, "3 v u"]:
    """Resize an image to ``side`` pixels along its longer side; the proportions stay."""
    return to_pixels(fit_image(to_image(pixels), side))


def fit_to(pixels: UInt8[Tensor, "3 y x"], map_: Float[Tensor, "h w"]) -> Float[Tensor, "y x"]:
    """Enlarge a map to the size of an image."""
    return resize_maps(map_.float(), (pixels.shape[1], pixels.shape[2]))


def draw_heat(
    heat: Float[Tensor, "h w"], size: tuple[int, int], colors: str = HEAT, state: MapState = MapState.VALID
) -> Image.Image:
    """Draw heat 0 to 1 alone, at ``size`` (height, width) in pixels; of a degenerate map what its state says."""
    return letter(_to_image(colored(resize_maps(_shown(heat, state), size), colors)), state.words)


def draw_overlay(
    pixels: UInt8[Tensor, "3 y x"], heat: Float[Tensor, "h w"], state: MapState = MapState.VALID
) -> Image.Image:
    """Draw heat 0 to 1 over an image; of a degenerate map what its state says."""
    return letter(to_image(overlaid(pixels, fit_to(pixels, _shown(heat, state)))), state.words)


def draw_change(pixels: UInt8[Tensor, "3 y x"], change: Float[Tensor, "h w"]) -> Image.Image:
    """Draw a change of heat, -1 (blue) to 1 (red), over a dim grey image, which shows where nothing changed."""
    return _to_image(_tint(fit_to(pixels, change), DIM + 0.4 * pixels.float().mean(0) / 255))


def _tint(change: Float[Tensor, "y x"], ground: Float[Tensor, "*ground"]) -> Float[Tensor, "3 y x"]:
    """Cover a grey ground with the colours of a change: the larger, the more."""
    cover = DENSEST_CHANGE * change.abs().sqrt()
    return cover * colored(change / 2 + 0.5, CHANGE) + (1 - cover) * ground


def draw_outline(pixels: UInt8[Tensor, "3 v u"], mask: Bool[Tensor, "y x"] | None) -> Image.Image:
    """Draw an image with the outline of a mask, or as it is without mask."""
    image = to_image(pixels)
    if mask is not None:
        outline_mask(image, mask.numpy())
    return image


def draw_panel(
    title: str,
    details: Sequence[str],
    tiles: Sequence[tuple[str, Image.Image]],
    *,
    is_flagged: bool = False,
    change: tuple[str, str] = ("less", "more"),
) -> Image.Image:
    """Arrange four tiles two by two, with texts and colour bars on their left.

    Args:
        title: at most five lines.
        details: at most four lines, smaller.
        tiles: of :data:`PANEL_TILE` pixels, each with a short label, drawn below it.
        is_flagged: whether there is a red flag.
        change: names of the ends of the bar of change.

    Returns:
        The panel; texts that are too long are shortened.
    """
    image = _draw_frame(tuple(label for label, _ in tiles), change).copy()
    draw = ImageDraw.Draw(image)
    for n, line in enumerate(wrap(title, TITLE, TEXT_WIDTH, MAX_LINES)):
        draw.text((GAP, GAP // 2 + TITLE_LINE * n), line, INK, font(TITLE, line))
    top = BARS - GAP - LINE * len(details)
    for n, detail in enumerate(details):
        text = shorten(detail, DETAILS, TEXT_WIDTH)
        draw.text((GAP, top + LINE * n), text, FAINT, font(DETAILS, text))
    if is_flagged:
        image.paste(_flag(), (GAP, top - LINE - GAP))
    for i, (_, tile) in enumerate(tiles):
        image.paste(tile, _place(i))
    return image


@cache
def _draw_frame(labels: tuple[str, ...], change: tuple[str, str]) -> Image.Image:
    """Draw what panels of one kind have in common; a text takes as long as a tile."""
    image = Image.new("RGB", CARD, PAPER)
    draw = ImageDraw.Draw(image)
    width = TEXT_WIDTH - 2 * GAP  # apart from the label of the tile beside it
    draw_heat_bar(image, (GAP, BARS), width)
    _draw_bar(image, (GAP, BARS + LINE), width, change[0], _change_bar(), change[1])
    for i, label in enumerate(labels):
        left, top = _place(i)
        draw.text((left, top + PANEL_TILE), label, FAINT, font(LABEL, label))
    return image


def _place(i: int) -> tuple[int, int]:
    """Return left and top of a tile of a panel."""
    return CARD[0] - (2 - i % 2) * PITCH[0], GAP + i // 2 * PITCH[1]


@cache
def _flag() -> Image.Image:
    image = Image.new("RGB", (text_width(FLAG_TEXT, DETAILS) + 2 * GAP, LINE + 3), PAPER)
    draw = ImageDraw.Draw(image)
    draw.rounded_rectangle((0, 0, image.width - 1, image.height - 1), radius=4, fill=ALARM)
    draw.text((GAP, 0), FLAG_TEXT, "#ffffff", font(DETAILS, FLAG_TEXT))
    return image


def draw_heat_bar(image: Image.Image, place: tuple[int, int], width: int) -> None:
    """Draw the colours of heat on one line of an image, with the names of the ends.

    Args:
        image: drawn on.
        place: left and top.
        width: of bar and names.
    """
    _draw_bar(image, place, width, "none", draw_color_bar(256, 1), "most, own scale")


def _draw_bar(image: Image.Image, place: tuple[int, int], width: int, low: str, bar: Image.Image, high: str) -> None:
    draw, (left, top) = ImageDraw.Draw(image), place
    start, end = left + text_width(low, LABEL) + GAP, left + width - text_width(high, LABEL) - GAP
    draw.text((left, top), low, FAINT, font(LABEL, low))
    draw.text((left + width, top), high, FAINT, font(LABEL, high), anchor="ra")
    image.paste(bar.resize((max(1, end - start), BAR)), (start, top + (LINE - BAR) // 2 + 2))


@cache
def _change_bar() -> Image.Image:
    """Draw the colours of change as they look over a grey image."""
    ramp = torch.linspace(-1, 1, 256, dtype=torch.float32, device="cpu")[None]
    return _to_image(_tint(ramp, torch.tensor(DIM + 0.2, dtype=torch.float32, device="cpu")))


def _shown(heat: Float[Tensor, "h w"], state: MapState) -> Float[Tensor, "h w"]:
    """Heat to draw: none for a degenerate map, whose brightness would mean nothing."""
    return torch.zeros_like(heat) if state.is_degenerate else heat.float()


def _to_image(colors: Float[Tensor, "3 y x"]) -> Image.Image:
    """Convert colours 0 to 1."""
    return to_image((colors * 255).round().to(torch.uint8))
