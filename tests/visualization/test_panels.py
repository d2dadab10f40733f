"""Pictures: what is hot is colourful, what came is red, what went is blue; odd maps and texts change no layout."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont
from torch import Tensor

from clipcam_lightning.cam.colors import CHANGE, HEAT, _overlays, colored, overlaid
from clipcam_lightning.drift.compare import ProbeDrift
from clipcam_lightning.monitoring.history import HistoryEntry, relative_saliency
from clipcam_lightning.visualization.panels import (
    ALARM,
    GAP,
    MAX_COLUMNS,
    MAX_ROWS,
    SHEET_TILE,
    TILE,
    contact_sheet,
    probe_panel,
)

GREY = torch.full((3, 64, 64), 128, dtype=torch.uint8)
BEFORE, NOW = torch.zeros(8, 8), torch.zeros(8, 8)
BEFORE[0, 0] = 5.0  # raw maps have any scale
NOW[-1, -1] = 0.01
LUMINANCE = torch.tensor([0.2126, 0.7152, 0.0722]).view(3, 1, 1)
TEXTS = {
    "long": "a very long prompt " * 30,
    "one word": "x" * 400,
    "newlines": "one\ntwo\r\nthree\n" * 20,
    "emoji": "a 🐈‍⬛ on a 🛋️ " * 40,
    "right to left": "קטגוריה ארוכה مرحبا بالعالم " * 20,
    "overrides": "\u202e\u2066abc\u202d" * 60,
    "control": "\0\a\b\x1b[31m\x7f" * 60,
    "combining": "e\u0301\u0327" * 200,
    "markup": "<b>&amp;</b> {x} %s " * 30,
    "surrogate": "\ud800 alone",
    "blank": " ",
}


def row(prompt: str = "a cat", **changes: Any) -> ProbeDrift:
    fields = {
        "drift": 0.5, "top_iou": 0.1, "center_shift": 0.2, "js_distance": 0.4, "noise_ratio": 5.0, "shared_gain": 0.1,
        "concentration": 0.2, "similarity": 0.3, "similarity_change": 0.1, "energy_inside_mask": math.nan,
        "energy_change": math.nan, "pointing": math.nan, "degenerate": "", "has_valid_baseline": True, "severity": 0.5,
        "reason": "",
    }  # fmt: skip
    return ProbeDrift(name="cat", prompt=prompt, **{**fields, **changes})


def panel(prompt: str = "a cat", *, maps: tuple[Tensor, Tensor] = (BEFORE, NOW), **changes: Any) -> Image.Image:
    return probe_panel(GREY, *maps, row(prompt, **changes), steps=(0, 120))


def pixels_of(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def tile(image: Image.Image, k: int) -> np.ndarray:
    """Tile ``k`` of a panel: input, baseline, now, change."""
    left, top = GAP + k * (TILE + GAP), image.height - TILE - 24
    return pixels_of(image)[top : top + TILE, left : left + TILE]


def is_red(image: Image.Image) -> np.ndarray:
    r, g, b = pixels_of(image).transpose(2, 0, 1)
    return (r > 150) & (g < 80) & (b < 80)


def corners(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean colour of the top left and the bottom right cell of 8x8."""
    side = len(pixels) // 8
    return pixels[:side, :side].mean((0, 1)), pixels[-side:, -side:].mean((0, 1))


def colourfulness(color: np.ndarray) -> float:
    return float(np.ptp(color))


def test_heat_grows_lighter_all_the_way() -> None:
    light = (colored(torch.linspace(0, 1, 256)[None], HEAT) * LUMINANCE).sum(0)[0]
    assert (light.diff() > 0).all()
    assert light[-1] - light[0] > 0.8


def test_change_is_neutral_in_the_middle_blue_below_and_red_above() -> None:
    less, none, more = colored(torch.tensor([[0.2, 0.5, 0.8]]), CHANGE)[:, 0].T
    assert none.min() > 0.85
    assert none.max() - none.min() < 0.1
    assert less[2] > less[0] + 0.3
    assert more[0] > more[2] + 0.3


def test_what_is_out_of_range_takes_the_nearest_colour_and_nan_the_coldest() -> None:
    odd, plain = colored(torch.tensor([[-3.0, 7.0, torch.nan]])), colored(torch.tensor([[0.0, 1.0, 0.0]]))
    assert torch.equal(odd, plain)


def test_an_overlay_leaves_the_picture_where_it_is_cold_and_covers_it_where_it_is_hot() -> None:
    picture = torch.randint(0, 256, (3, 4, 6), dtype=torch.uint8)
    heat = torch.zeros(4, 6)
    heat[:, 3:] = 1
    covered = overlaid(picture, heat).float()
    grey = (picture * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(0)

    dim = 0.9 * (20 + 0.6 * grey[:, :3])  # less contrast, and a tenth of black lies on it
    assert (covered[:, :, :3] - dim).abs().max() < 2
    assert covered[:, :, 3:].std(dim=(1, 2)).max() < 0.2 * grey[:, 3:].std()


def test_an_overlay_takes_nan_for_cold() -> None:
    heat = torch.eye(64)
    assert torch.equal(overlaid(GREY, torch.where(heat == 0, torch.nan, heat)), overlaid(GREY, heat))


def test_maps_for_display_keep_zero_and_reach_one() -> None:
    maps = torch.stack(
        [torch.tensor([[0.0, 2.0, -1.0]]), torch.tensor([[torch.nan, torch.inf, 4.0]]), torch.zeros(1, 3)]
    )
    expected = torch.tensor([[[0.0, 1.0, 0.0]], [[0.0, 0.0, 1.0]], [[0.0, 0.0, 0.0]]])
    assert torch.equal(relative_saliency(maps), expected)


def test_a_panel_shows_where_the_map_was_where_it_is_and_the_change() -> None:
    image = panel()

    assert image.size == (4 * TILE + 5 * GAP, 58 + TILE + 24)
    shown, baseline, now, change = (corners(tile(image, k)) for k in range(4))
    assert max(map(colourfulness, shown)) == 0  # the grey input as it is
    assert colourfulness(baseline[0]) > 60 > 20 > colourfulness(baseline[1])
    assert colourfulness(now[1]) > 60 > 20 > colourfulness(now[0])
    assert change[1][0] > change[1][2] + 50  # came: red
    assert change[0][2] > change[0][0] + 50  # went: blue
    assert colourfulness(tile(image, 3)[TILE // 2, TILE // 2]) < 5  # nothing changed


def test_a_little_more_is_red_already_and_a_little_less_blue() -> None:
    before, now = torch.zeros(8, 8), torch.zeros(8, 8)
    before[4, 4] = now[4, 4] = 1.0
    before[0, 0] = now[-1, -1] = 0.15

    less, more = corners(tile(panel(maps=(before, now)), 3))

    assert less[2] > less[0] + 5
    assert more[0] > more[2] + 5


def test_pictures_do_not_depend_on_torch_s_default_type() -> None:
    """Another thread's training in bfloat16 changes it for all."""
    pixels, (before, now) = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8), torch.rand(2, 7, 7)

    def drawn() -> bytes:
        _overlays.cache_clear()
        return probe_panel(pixels, before, now, row(), steps=(0, 9)).tobytes()

    plain = drawn()
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert drawn() == plain
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_map_that_stayed_shows_no_change() -> None:
    unchanged = tile(panel(maps=(BEFORE, 1000 * BEFORE)), 3)
    assert np.ptp(unchanged, axis=2).max() < 5


@pytest.mark.parametrize("size", [(64, 32), (20, 300), (7, 7), (500, 400)], ids=str)
def test_a_picture_of_any_shape_keeps_its_proportions_in_the_panel(size: tuple[int, int]) -> None:
    pixels = torch.zeros(3, *size, dtype=torch.uint8)
    image = probe_panel(pixels, BEFORE, NOW, row(), steps=(0, 1))
    assert image.size == panel().size
    black = (tile(image, 0).sum(2) == 0).sum()
    assert black == pytest.approx(TILE**2 * min(size) / max(size), rel=0.02)


def test_the_mask_is_outlined_on_the_input_alone() -> None:
    mask = torch.zeros(64, 64, dtype=torch.bool)
    mask[16:32, 32:56] = True

    plain, outlined = panel(), probe_panel(GREY, BEFORE, NOW, row(), steps=(0, 120), mask=mask)

    assert all(np.array_equal(tile(plain, k), tile(outlined, k)) for k in (1, 2, 3))
    ys, xs = np.nonzero((tile(plain, 0) != tile(outlined, 0)).any(2))
    scale = TILE / 64
    around = [16 * scale, 32 * scale, 32 * scale, 56 * scale]  # top, bottom, left, right
    assert [ys.min(), ys.max(), xs.min(), xs.max()] == pytest.approx(around, abs=4)
    inside = tile(outlined, 0)[int(18 * scale) : int(30 * scale), int(34 * scale) : int(54 * scale)]
    assert (inside == 128).all(), "the object itself stays visible"


@pytest.mark.parametrize("odd", [torch.zeros(8, 8), torch.ones(8, 8), torch.full((8, 8), torch.nan), -NOW], ids=str)
def test_maps_that_say_nothing_are_drawn_all_the_same(odd: Tensor) -> None:
    for maps in ((odd, NOW), (BEFORE, odd), (odd, odd)):
        image = panel(maps=maps, degenerate="all zero", drift=1.0)
        assert image.size == panel().size


@pytest.mark.parametrize("alarm", [False, True])
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_no_text_leaves_its_line_in_a_panel(text: str, alarm: bool) -> None:
    reason = "its map moved" if alarm else ""
    plain, odd = panel(reason=reason), panel(text, reason=reason)

    differs = (pixels_of(plain) != pixels_of(odd)).any(2)
    room = np.nonzero(is_red(plain)[:33])[1].min() if alarm else plain.width - GAP
    assert not differs[:, room:].any(), "the text reaches into the margin or the flag"
    assert not differs[33:].any(), "the text reaches into the figures or the tiles"


def test_a_long_text_fills_its_line_and_ends_in_an_ellipsis() -> None:
    ink = pixels_of(panel(TEXTS["long"]))[:33].min(2) < 128
    end = np.nonzero(ink)[1].max()
    assert panel().width - GAP - 30 < end < panel().width - GAP
    assert np.nonzero(ink[:, end - 12 :])[0].min() > 18, "the last thing is dots on the base line"


def test_an_alarm_is_flagged_in_its_colour() -> None:
    assert is_red(panel(reason="its map moved"))[:33].sum() > 50
    assert not is_red(panel())[:33].any()


def column(heat: Tensor, step: int = 0, drift: float = 0.5, alarm: bool = False) -> HistoryEntry:
    return HistoryEntry(step, heat.half(), (drift,) * len(heat), (alarm,) * len(heat))


CELL, LABEL = SHEET_TILE + GAP, 150 + GAP


def sheet_tile(sheet: Image.Image, r: int, c: int) -> np.ndarray:
    """The tile of row ``r``; column 0 is the input."""
    top, left = 26 + r * (CELL + 20), LABEL + c * CELL
    return pixels_of(sheet)[top : top + SHEET_TILE, left : left + SHEET_TILE]


@pytest.mark.parametrize(("evaluations", "shown"), [(1, 1), (2, 2), (12, 12), (13, 12), (100, 12)])
def test_a_sheet_shows_evaluations_in_order_with_the_first_and_the_last(evaluations: int, shown: int) -> None:
    """Look k is lit all over with k / (looks - 1): on black, brightness tells which look a tile shows."""
    black = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    levels = torch.linspace(0, 1, evaluations)
    sheet = contact_sheet(black, ["a", "b"], [column(torch.full((2, 8, 8), float(x))) for x in levels])

    assert sheet.size == (LABEL + (1 + shown) * CELL, 26 + 2 * (CELL + 20))
    means = [sheet_tile(sheet, 1, c).mean() for c in range(1, shown + 1)]
    assert means == sorted(set(means))
    for mean, level in ((means[0], levels[0]), (means[-1], levels[-1])):
        assert mean == pytest.approx(overlaid(black[0], torch.full((64, 64), float(level))).float().mean(), abs=1)
    assert shown <= MAX_COLUMNS


def test_a_sheet_of_many_probes_keeps_those_that_drifted_furthest_at_the_last_evaluation() -> None:
    count = MAX_ROWS + 8
    pixels = torch.arange(count, dtype=torch.uint8).mul(5).view(-1, 1, 1, 1).repeat(1, 3, 32, 32)
    dropped = {0, 3, 4, 11, 20, 30, 38, 39}
    drifts = tuple(0.1 if i in dropped else 0.2 + 0.01 * i for i in range(count))
    heat = torch.zeros(count, 4, 4).half()
    evaluations = [
        HistoryEntry(0, heat, tuple(float(i) for i in reversed(range(count))), (False,) * count),
        HistoryEntry(9, heat, drifts, (False,) * count),
    ]

    sheet = contact_sheet(pixels, [f"p{i}" for i in range(count)], evaluations)

    assert sheet.height == 26 + MAX_ROWS * (CELL + 20)
    shown = [sheet_tile(sheet, r, 0)[50, 50, 0] for r in range(MAX_ROWS)]
    assert shown == [5 * i for i in range(count) if i not in dropped]


def test_a_sheet_frames_an_alarm_and_nothing_else() -> None:
    heat = torch.zeros(2, 8, 8)
    evaluations = [column(heat), HistoryEntry(5, heat.half(), (0.1, 1.2), (False, True))]
    sheet = contact_sheet(torch.stack([GREY, GREY]), ["a", "b"], evaluations)

    framed = [[sheet.getpixel((LABEL + c * CELL - 2, 26 + r * (CELL + 20) + 50)) for c in (1, 2)] for r in (0, 1)]
    red = tuple(int(ALARM[i : i + 2], 16) for i in (1, 3, 5))
    assert [[color == red for color in colors] for colors in framed] == [[False, False], [False, True]]


def test_a_sheet_lights_the_hot_corner() -> None:
    sheet = contact_sheet(
        GREY[None], ["a"], [column(relative_saliency(BEFORE[None])), column(relative_saliency(NOW[None]))]
    )
    before, now = corners(sheet_tile(sheet, 0, 1)), corners(sheet_tile(sheet, 0, 2))
    assert colourfulness(before[0]) > 60 > 20 > colourfulness(before[1])
    assert colourfulness(now[1]) > 60 > 20 > colourfulness(now[0])


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_no_text_leaves_its_place_in_a_sheet(text: str) -> None:
    evaluations, pixels = [column(torch.zeros(2, 8, 8))], torch.stack([GREY, GREY])
    plain, odd = contact_sheet(pixels, ["a", "b"], evaluations), contact_sheet(pixels, [text, "b"], evaluations)

    differs = (pixels_of(plain) != pixels_of(odd)).any(2)
    assert not differs[:, LABEL:].any(), "the text reaches into the pictures"
    assert not differs[26 + CELL + 20 :].any(), "the text reaches into the next row"


def test_a_huge_prompt_is_cut_in_little_time(monkeypatch: pytest.MonkeyPatch) -> None:
    prompt, measured, getlength = "a b " * 5000, 0, ImageFont.FreeTypeFont.getlength

    def counted(font: ImageFont.FreeTypeFont, text: str, *args: Any, **kwargs: Any) -> float:
        nonlocal measured
        measured += len(text)
        assert measured < 100 * len(prompt), "measures many times over what it draws"
        return getlength(font, text, *args, **kwargs)

    monkeypatch.setattr(ImageFont.FreeTypeFont, "getlength", counted)
    panel(prompt)
    contact_sheet(GREY[None], [prompt], [column(torch.zeros(1, 8, 8))])
