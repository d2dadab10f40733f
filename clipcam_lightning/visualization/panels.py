"""Maps as pictures: one panel a probe, and the contact sheet of all looks so far."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont
from torch import Tensor

from clipcam_lightning.analysis.confusion import Confusion
from clipcam_lightning.analysis.prompt_sensitivity import Sensitivity
from clipcam_lightning.cam.colors import CHANGE, colored, overlaid
from clipcam_lightning.cam.fuse import resize_maps
from clipcam_lightning.drift.compare import ProbeDrift
from clipcam_lightning.monitoring.history import HistoryEntry, relative_saliency

TILE, SHEET_TILE, GAP = 208, 112, 8  # pixels
INK, FAINT, PAPER, ALARM = "#1a1a1a", "#6b6b6b", "#ffffff", "#c1121f"
MAX_COLUMNS, MAX_ROWS = 12, 32


def probe_panel(
    pixels: UInt8[Tensor, "3 y x"],
    baseline: Float[Tensor, "h w"],
    now: Float[Tensor, "h w"],
    row: ProbeDrift,
    *,
    steps: tuple[int, int],
    mask: Bool[Tensor, "y x"] | None = None,
) -> Image.Image:
    """One probe at one look: input | baseline | now | change, with its prompt and figures above.

    Args:
        pixels: what the model saw.
        baseline: raw map.
        now: raw map.
        row: the probe's figures.
        steps: of the baseline and of this look.
        mask: outlined on the input.
    """
    labels = ("input", f"baseline, step {steps[0]}", f"now, step {steps[1]}", "change (red: more, blue: less)")
    tiles = probe_tiles(pixels, baseline, now, mask)
    return _panel(row.prompt, _figures(row), list(zip(labels, tiles, strict=True)), " ALARM" if row.flagged else "")


def probe_tiles(
    pixels: UInt8[Tensor, "3 y x"],
    baseline: Float[Tensor, "h w"],
    now: Float[Tensor, "h w"],
    mask: Bool[Tensor, "y x"] | None = None,
) -> tuple[Image.Image, Image.Image, Image.Image, Image.Image]:
    """Input, baseline, now and change of one probe; arguments as for :func:`probe_panel`."""
    before_heat, now_heat = relative_saliency(torch.stack([baseline, now]))
    picture = _enlarged(pixels, TILE)
    overlays = _overlay(picture, before_heat), _overlay(picture, now_heat)
    return _outlined(picture, mask), *overlays, _change(picture, now_heat - before_heat)


def heat_tiles(
    baseline: Float[Tensor, "h w"], now: Float[Tensor, "h w"]
) -> tuple[Image.Image, Image.Image, Image.Image]:
    """Baseline, now and change of raw maps whose picture is not known."""
    before_heat, now_heat = relative_saliency(torch.stack([baseline, now]))
    paper = _enlarged(torch.full((3, *baseline.shape), 255, dtype=torch.uint8), TILE)
    heats = [_to_image((colored(_at(heat, paper)) * 255).round().to(torch.uint8)) for heat in (before_heat, now_heat)]
    return heats[0], heats[1], _change(paper, now_heat - before_heat)


def confusion_panel(
    pixels: UInt8[Tensor, "3 y x"], confusion: Confusion, mask: Bool[Tensor, "y x"] | None = None
) -> Image.Image:
    """One confused probe: input | its own prompt | the prompt the model prefers, both maps on one scale each.

    Args:
        pixels: what the model saw.
        confusion: of :func:`~clipcam_lightning.analysis.confusion.confusions`.
        mask: outlined on the input.
    """
    own, preferred = relative_saliency(torch.stack([confusion.map, confusion.preferred_map]))
    picture = _enlarged(pixels, TILE)
    return _panel(
        f"{confusion.prompt}, taken for {confusion.preferred}",
        f"similarity {confusion.similarity:.3f}, preferred {confusion.preferred_similarity:.3f}",
        [
            ("input", _outlined(picture, mask)),
            (f"true: {confusion.prompt}", _overlay(picture, own)),
            (f"preferred: {confusion.preferred}", _overlay(picture, preferred)),
            ("red: preferred, blue: true", _change(picture, preferred - own)),
        ],
    )


def sensitivity_panel(pixels: UInt8[Tensor, "3 y x"], sensitivity: Sensitivity) -> Image.Image:
    """One image under several wordings: input | mean map | spread between the wordings | mean map of absent things.

    Args:
        pixels: what the model saw.
        sensitivity: of :func:`~clipcam_lightning.analysis.prompt_sensitivity.sensitivity`.
    """
    picture = _enlarged(pixels, TILE)
    means = [relative_saliency(maps).mean(0) for maps in (sensitivity.maps, sensitivity.absent_maps)]
    own, absent = relative_saliency(torch.stack(means))
    return _panel(
        sensitivity.prompts[0],
        f"correlation between {len(sensitivity.prompts)} wordings {sensitivity.correlation:.2f} · "
        f"top-20 % IoU {sensitivity.top_iou:.2f} · with absent things {sensitivity.absent_correlation:.2f}",
        [
            ("input", _to_image(picture)),
            ("mean over wordings", _overlay(picture, own)),
            ("spread between wordings", _overlay(picture, sensitivity.spread.nan_to_num(0.0))),
            ("mean over absent things", _overlay(picture, absent)),
        ],
    )


def contact_sheet(
    pixels: UInt8[Tensor, "n 3 y x"],
    prompts: Sequence[str],
    columns: Sequence[HistoryEntry],
    max_columns: int = MAX_COLUMNS,
) -> Image.Image:
    """All looks so far: probes down, looks across, the baseline first, each map with its drift.

    Of more than ``max_columns`` looks the first, the last and evenly spread ones between are shown; of many probes
    those that drifted furthest at the last look.
    """
    shown = [columns[i] for i in np.unique(np.linspace(0, len(columns) - 1, max_columns).round().astype(int))]
    furthest = sorted(range(len(prompts)), key=lambda i: -columns[-1].drift[i])[:MAX_ROWS]
    rows = sorted(furthest)
    label, header, footer = 150, 26, 20
    cell = SHEET_TILE + GAP
    image = Image.new("RGB", (label + GAP + (1 + len(shown)) * cell, header + len(rows) * (cell + footer)), PAPER)
    draw = ImageDraw.Draw(image)
    for c, title in enumerate(["input", *(f"step {column.step}" for column in shown)]):
        draw.text((label + GAP + c * cell, 6), title, FAINT, _font(13))
    for r, i in enumerate(rows):
        top = header + r * (cell + footer)
        for n, line in enumerate(_wrapped(prompts[i], 14, label - GAP, 6)):
            draw.text((GAP, top + 2 + 18 * n), line, INK, _font(14))
        picture = _enlarged(pixels[i], SHEET_TILE)
        image.paste(_to_image(picture), (label + GAP, top))
        for c, column in enumerate(shown, start=1):
            left = label + GAP + c * cell
            image.paste(_overlay(picture, column.maps[i].float()), (left, top))
            color = ALARM if column.flagged[i] else FAINT
            if column.flagged[i]:
                draw.rectangle((left - 2, top - 2, left + SHEET_TILE + 1, top + SHEET_TILE + 1), outline=ALARM, width=2)
            draw.text((left, top + SHEET_TILE + 3), f"drift {column.drift[i]:.2f}", color, _font(13))
    return image


def _panel(title: str, figures: str, tiles: Sequence[tuple[str, Image.Image]], flag: str = "") -> Image.Image:
    """Tiles side by side with their labels below, a title and a line of figures above, and a flag in red."""
    width, header = len(tiles) * TILE + (len(tiles) + 1) * GAP, 58
    image = Image.new("RGB", (width, header + TILE + 24), PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((GAP, 5), _shortened(title, 20, width - 2 * GAP - _width(flag, 20)), INK, _font(20))
    if flag:
        draw.text((width - GAP - _width(flag, 20), 5), flag, ALARM, _font(20))
    draw.text((GAP, 33), _shortened(figures, 14, width - 2 * GAP), FAINT, _font(14))
    for i, (label, tile) in enumerate(tiles):
        left = GAP + i * (TILE + GAP)
        image.paste(tile, (left, header))
        draw.text((left, header + TILE + 4), _shortened(label, 13, TILE), FAINT, _font(13))
    return image


def _figures(row: ProbeDrift) -> str:
    before = row.similarity - row.similarity_change
    parts = [
        f"drift {row.drift:.2f}",
        f"top-20 % IoU {row.top_iou:.2f}",
        f"similarity {before:.2f} to {row.similarity:.2f}",
    ]
    if math.isfinite(row.energy_inside_mask) and math.isfinite(row.energy_change):
        energy = row.energy_inside_mask - row.energy_change
        parts.append(f"energy on object {energy:.2f} to {row.energy_inside_mask:.2f}")
    if row.degenerate:
        parts.append(f"map {row.degenerate}")
    return " · ".join(parts)


def _enlarged(pixels: UInt8[Tensor, "3 y x"], side: int) -> UInt8[Tensor, "3 v u"]:
    """The picture at ``side`` pixels along its longer side."""
    height, width = pixels.shape[1:]
    width, height = (max(1, round(length * side / max(height, width))) for length in (width, height))
    return torch.from_numpy(np.array(_to_image(pixels).resize((width, height), Image.Resampling.BICUBIC))).permute(
        2, 0, 1
    )


def _overlay(picture: UInt8[Tensor, "3 y x"], heat: Float[Tensor, "h w"]) -> Image.Image:
    return _to_image(overlaid(picture, _at(heat, picture)))


def _change(picture: UInt8[Tensor, "3 y x"], change: Float[Tensor, "h w"]) -> Image.Image:
    """Change -1 to 1 in two colours over a faint picture; where nothing changed the picture shows."""
    change = _at(change, picture)
    faint = 0.55 + 0.45 * picture.float().mean(0) / 255
    cover = change.abs().sqrt()
    mixed = cover * colored(change / 2 + 0.5, CHANGE) + (1 - cover) * faint
    return _to_image((mixed * 255).round().to(torch.uint8))


def _at(map_: Float[Tensor, "h w"], picture: UInt8[Tensor, "3 y x"]) -> Float[Tensor, "y x"]:
    return resize_maps(map_[None].float(), (picture.shape[1], picture.shape[2]))[0]


def _outlined(picture: UInt8[Tensor, "3 v u"], mask: Bool[Tensor, "y x"] | None) -> Image.Image:
    image = _to_image(picture)
    if mask is None:
        return image
    grey = Image.fromarray(mask.numpy().astype(np.uint8) * 255).resize(image.size, Image.Resampling.BILINEAR)
    solid = grey.point(lambda value: 255 if value > 127 else 0)
    for width, color in ((2, "#000000"), (1, "#ffffff")):  # white on black shows on any ground
        grown = solid.filter(ImageFilter.BoxBlur(width)).point(
            lambda value: 255 if value else 0
        )  # a maximum filter takes five times as long
        image.paste(color, mask=ImageChops.subtract(grown, solid))
    return image


def _to_image(pixels: UInt8[Tensor, "3 y x"]) -> Image.Image:
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _width(text: str, size: int) -> int:
    return math.ceil(_font(size).getlength(text))


def _shortened(text: str, size: int, room: int) -> str:
    text = " ".join(text.split())[:room]  # no character that is drawn is narrower than a pixel
    if _width(text, size) <= room:
        return text
    fitting = bisect_right(range(len(text)), room, key=lambda length: _width(text[:length] + "…", size))
    return text[: max(0, fitting - 1)] + "…"


def _wrapped(text: str, size: int, room: int, most: int) -> list[str]:
    lines: list[str] = []
    for word in text[: most * room].split():
        if lines and _width(f"{lines[-1]} {word}", size) <= room:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    kept = lines[:most]
    if len(lines) > most:
        kept[-1] += "…"
    return [_shortened(line, size, room) for line in kept]
