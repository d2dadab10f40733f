"""The contact sheet: all evaluations of a run in one image."""

from collections.abc import Sequence

from jaxtyping import UInt8
from PIL import Image, ImageDraw
from torch import Tensor

from clipcam_lightning.cam.decoding import require_pixels
from clipcam_lightning.cam.display.drawing import to_image
from clipcam_lightning.cam.lettering import font, shorten
from clipcam_lightning.drift.probe_drift import format_drift
from clipcam_lightning.monitoring.history import HistoryEntry
from clipcam_lightning.visualization.columns import choose_columns
from clipcam_lightning.visualization.drawing import (
    DETAILS,
    FAINT,
    FLAG,
    GAP,
    INK,
    LINE,
    PAPER,
    TITLE,
    TITLE_LINE,
    draw_heat_bar,
    draw_overlay,
    enlarge,
)

SHEET_TILE = 130  # pixels: with an input and four evaluations, a sheet is as wide as a panel
ROW, HEADER = TITLE_LINE + SHEET_TILE + LINE + GAP, 2 * LINE + GAP  # pixels: prompt, maps and drifts; scale and steps
MAX_COLUMNS, MAX_ROWS = 12, 32


def contact_sheet(
    pixels: UInt8[Tensor, "n 3 y x"],
    prompts: Sequence[str],
    history: Sequence[HistoryEntry],
    order: Sequence[int],
    max_columns: int = MAX_COLUMNS,
) -> Image.Image:
    """Draw all evaluations so far: one row per probe with its prompt, one column per evaluation.

    Each map has its drift below, and is scaled to its own maximum. A degenerate map is drawn as the image without heat,
    with the words of its :class:`~clipcam_lightning.MapState`.

    Args:
        pixels: input of the model for each probe.
        prompts: of the probes.
        history: the evaluations, the first one on the left. Of more than ``max_columns`` the first, the last, that of
            the first alarm and evenly spread ones between them are drawn.
        order: indices of the probes, from top to bottom
            (:attr:`~clipcam_lightning.drift.report.DriftReport.flagged_first`). Of more than 32 the first are drawn.
        max_columns: at least 2.

    Returns:
        The sheet, with a red frame around each map of a flagged probe, which is explained at the top where there are
        two evaluations or more.

    Raises:
        ConfigError: ``pixels`` are no uint8 tensor.

    Example:
        >>> from clipcam_lightning import contact_sheet, evaluate
        >>> from clipcam_lightning.shapes_world import WordTokenizer, draw_scenes, trained_clip
        >>> scenes = draw_scenes(2)
        >>> probes = list(zip(scenes.images, scenes.captions))
        >>> evaluation = evaluate(trained_clip("vit"), probes, tokenizer=WordTokenizer())
        >>> order = evaluation.report.flagged_first
        >>> contact_sheet(evaluation.pixels, evaluation.snapshot.prompts, evaluation.history, order).size
        (284, 464)
    """
    require_pixels(pixels, "n 3 y x")
    alarm = next((i for i, entry in enumerate(history) if entry.alarm), None)
    columns = [history[i] for i in choose_columns(len(history), max_columns, alarm)]
    rows = order[:MAX_ROWS]
    cell = SHEET_TILE + GAP
    image = Image.new("RGB", (GAP + (1 + len(columns)) * cell, HEADER + len(rows) * ROW), PAPER)
    draw = ImageDraw.Draw(image)
    scale = cell * max(2, min(3, len(columns)))  # beside it is room for the legend, unless there is one evaluation
    draw_heat_bar(image, (GAP, GAP // 2), scale - GAP)
    if any(entry.flagged[i] for entry in columns for i in rows):
        _draw_flag_legend(draw, (GAP + scale, GAP // 2))
    for c, title in enumerate(["input", *(f"step {entry.step}" for entry in columns)]):
        title = shorten(title, DETAILS, SHEET_TILE)
        draw.text((GAP + c * cell, GAP // 2 + LINE), title, FAINT, font(DETAILS, title))
    for r, i in enumerate(rows):
        top = HEADER + r * ROW + TITLE_LINE
        prompt = shorten(prompts[i], TITLE, image.width - 2 * GAP)
        draw.text((GAP, top - TITLE_LINE), prompt, INK, font(TITLE, prompt))
        large = enlarge(pixels[i], SHEET_TILE)
        image.paste(to_image(large), (GAP, top))
        for c, entry in enumerate(columns, start=1):
            left = GAP + c * cell
            image.paste(draw_overlay(large, entry.maps[i], entry.states[i]), (left, top))
            if entry.flagged[i]:
                _draw_frame(draw, (left, top), SHEET_TILE, SHEET_TILE)
            color, drift = FLAG if entry.flagged[i] else FAINT, f"drift {format_drift(entry.drift[i])}"
            draw.text((left, top + SHEET_TILE + 1), drift, color, font(DETAILS, drift))
    return image


def _draw_flag_legend(draw: ImageDraw.ImageDraw, place: tuple[int, int]) -> None:
    left, top = place
    _draw_frame(draw, (left + GAP, top + 6), 20, LINE - 10)
    draw.text((left + 20 + 2 * GAP, top), "flagged", FLAG, font(DETAILS, "flagged"))


def _draw_frame(draw: ImageDraw.ImageDraw, place: tuple[int, int], width: int, height: int) -> None:
    left, top = place
    draw.rectangle((left - 2, top - 2, left + width + 1, top + height + 1), outline=FLAG, width=2)
