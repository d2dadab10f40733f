"""The contact sheet: evaluations from left to right, probes in the order of the report, text in its place."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from clipcam_lightning.cam.colors import overlaid
from clipcam_lightning.cam.map_state import MapState
from clipcam_lightning.drift.report import DriftReport
from clipcam_lightning.drift.rule import DriftRule
from clipcam_lightning.monitoring.history import HistoryEntry, relative_saliency
from clipcam_lightning.visualization.contact_sheet import MAX_COLUMNS, MAX_ROWS, SHEET_TILE, contact_sheet
from clipcam_lightning.visualization.drawing import FLAG, GAP
from tests.support.drawn_images import TEXTS, colourfulness, corners, limit_measuring, pixels_of, probe_drift

GREY = torch.full((3, 64, 64), 128, dtype=torch.uint8)
CELL, PITCH = SHEET_TILE + GAP, SHEET_TILE + 70  # pixels between two columns, and between two rows
TOP = 64 + 34  # of the first row's tiles: below scale, steps and prompt


def entry(heat: Tensor, step: int = 0, drift: float = 0.5, flagged: bool = False) -> HistoryEntry:
    valid = (MapState.VALID,) * len(heat)
    return HistoryEntry(step, heat.half(), (drift,) * len(heat), (flagged,) * len(heat), valid)


def sheet_tile(sheet: Image.Image, r: int, c: int) -> np.ndarray:
    """The tile of row ``r``; column 0 is the input."""
    top, left = TOP + r * PITCH, GAP + c * CELL
    return pixels_of(sheet)[top : top + SHEET_TILE, left : left + SHEET_TILE]


@pytest.mark.parametrize(("evaluations", "shown"), [(1, 1), (2, 2), (12, 12), (13, 12), (100, 12)])
def test_a_sheet_shows_evaluations_in_order_with_the_first_and_the_last(evaluations: int, shown: int) -> None:
    """The maps of evaluation k are k / (evaluations - 1) all over, so that brightness tells which one a tile shows."""
    black = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    levels = torch.linspace(0, 1, evaluations)
    history = [entry(torch.full((2, 8, 8), float(level))) for level in levels]

    sheet = contact_sheet(black, ["a", "b"], history, [0, 1])

    assert sheet.size == (GAP + (1 + shown) * CELL, 64 + 2 * PITCH)
    means = [sheet_tile(sheet, 1, c).mean() for c in range(1, shown + 1)]
    assert means == sorted(set(means))
    for mean, level in ((means[0], levels[0]), (means[-1], levels[-1])):
        assert mean == pytest.approx(overlaid(black[0], torch.full((64, 64), float(level))).float().mean(), abs=1)
    assert shown <= MAX_COLUMNS


def test_a_sheet_shows_the_probes_in_the_given_order() -> None:
    pixels = torch.arange(4, dtype=torch.uint8).mul(50).view(-1, 1, 1, 1).repeat(1, 3, 32, 32)
    heat = torch.stack([torch.full((4, 4), i / 4) for i in range(4)])

    sheet = contact_sheet(pixels, [f"p{i}" for i in range(4)], [entry(heat)], [2, 0, 3, 1])

    assert [sheet_tile(sheet, r, 0)[50, 50, 0] for r in range(4)] == [100, 0, 150, 50]
    for r, i in enumerate((2, 0, 3, 1)):
        expected = overlaid(pixels[i], torch.full((32, 32), i / 4)).float().mean((1, 2))
        assert sheet_tile(sheet, r, 1).mean((0, 1)) == pytest.approx(expected.numpy(), abs=1)


def test_a_sheet_of_many_probes_starts_with_a_flagged_one_even_if_all_others_drifted_further() -> None:
    count, flagged = MAX_ROWS + 8, 35
    drifts = [0.1 if i == flagged else 0.2 + 0.01 * (7 * i % count) for i in range(count)]
    probes = (probe_drift(drift=drift, reason="lost" if drift == 0.1 else "") for drift in drifts)
    report = DriftReport(tuple(probes), DriftRule(), step=9, baseline_step=0)
    by_drift = sorted(range(count), key=lambda i: -drifts[i])
    heat, valid = torch.zeros(count, 4, 4).half(), (MapState.VALID,) * count
    last = HistoryEntry(9, heat, tuple(drifts), tuple(i == flagged for i in range(count)), valid)
    pixels = torch.arange(count, dtype=torch.uint8).mul(5).view(-1, 1, 1, 1).repeat(1, 3, 32, 32)

    sheet = contact_sheet(pixels, ["a"] * count, [last], report.flagged_first)

    assert sheet.height == 64 + MAX_ROWS * PITCH
    assert flagged not in by_drift[:MAX_ROWS], "by drift alone it would be left out"
    assert [sheet_tile(sheet, r, 0)[50, 50, 0] // 5 for r in range(MAX_ROWS)] == [flagged, *by_drift[: MAX_ROWS - 1]]


def test_a_sheet_frames_the_maps_of_flagged_probes_and_no_others() -> None:
    heat = torch.zeros(2, 8, 8)
    history = [entry(heat), HistoryEntry(5, heat.half(), (0.1, 1.2), (False, True), (MapState.VALID,) * 2)]
    sheet = contact_sheet(torch.stack([GREY, GREY]), ["a", "b"], history, [0, 1])

    framed = [[sheet.getpixel((GAP + c * CELL - 2, TOP + r * PITCH + 50)) for c in (1, 2)] for r in (0, 1)]
    red = tuple(int(FLAG[i : i + 2], 16) for i in (1, 3, 5))
    assert [[color == red for color in colors] for colors in framed] == [[False, False], [False, True]]


def test_a_sheet_explains_its_frames_where_there_are_some() -> None:
    heat, red = torch.zeros(1, 8, 8), np.array([int(FLAG[i : i + 2], 16) for i in (1, 3, 5)])
    for flagged in (False, True):
        sheet = contact_sheet(GREY[None], ["a"], [entry(heat), entry(heat, 5, flagged=flagged)], [0])
        assert (pixels_of(sheet)[: TOP // 2] == red).all(axis=-1).any() == flagged


def test_the_scale_of_a_sheet_fits_one_evaluation() -> None:
    narrow, wide = (
        pixels_of(contact_sheet(GREY[None], ["a"], [entry(torch.zeros(1, 8, 8))] * count, [0]))[: TOP // 3]
        for count in (1, 2)
    )
    assert (wide[:, : narrow.shape[1]] == narrow).all()
    assert (wide[:, narrow.shape[1] :] == wide[0, 0]).all(), "nothing is cut off"


def test_a_sheet_shows_the_heat_where_the_map_is_hot() -> None:
    before, now = torch.zeros(1, 8, 8), torch.zeros(1, 8, 8)
    before[0, 0, 0], now[0, -1, -1] = 5.0, 0.01
    sheet = contact_sheet(GREY[None], ["a"], [entry(relative_saliency(maps)) for maps in (before, now)], [0])
    first, second = corners(sheet_tile(sheet, 0, 1)), corners(sheet_tile(sheet, 0, 2))
    assert colourfulness(first[0]) > 50 > 20 > colourfulness(first[1])
    assert colourfulness(second[1]) > 50 > 20 > colourfulness(second[0])


def test_a_sheet_says_over_a_degenerate_map_what_its_state_is(written: list[str]) -> None:
    """A constant map would else be the hottest of all."""
    heat = torch.ones(2, 8, 8)
    states = (MapState.VALID, MapState.CONSTANT)
    sheet = contact_sheet(
        torch.stack([GREY, GREY]), ["a", "b"], [HistoryEntry(0, heat.half(), (0.0, 1.0), (False, True), states)], [0, 1]
    )

    valid, constant = sheet_tile(sheet, 0, 1), sheet_tile(sheet, 1, 1)
    assert MapState.CONSTANT.words in " ".join(written)
    assert colourfulness(corners(valid)[0]) > 50 > 20 > colourfulness(corners(constant)[0])


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_no_prompt_leaves_its_place_in_a_sheet(text: str) -> None:
    history, pixels = [entry(torch.zeros(2, 8, 8))], torch.stack([GREY, GREY])
    plain, odd = (contact_sheet(pixels, [prompt, "b"], history, [0, 1]) for prompt in ("a", text))

    differs = (pixels_of(plain) != pixels_of(odd)).any(2)
    assert not differs[: TOP - 34].any(), "the text reaches into the steps"
    assert not differs[TOP:].any(), "the text reaches into the tiles"
    assert not differs[:, -GAP:].any(), "the text reaches into the margin"


def test_a_huge_prompt_is_cut_without_measuring_it_many_times(monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = "a b " * 5000
    limit_measuring(monkeypatch, 50 * len(prompt))
    contact_sheet(GREY[None], [prompt], [entry(torch.zeros(1, 8, 8))], [0])


def test_the_evaluation_of_the_first_alarm_is_among_the_columns() -> None:
    history = [replace(entry(torch.rand(1, 8, 8)), step=step, alarm=step >= 10) for step in range(20)]

    with_alarm, without = (
        contact_sheet(GREY[None], ["a"], entries, [0], max_columns=4)
        for entries in (history, [replace(each, alarm=False) for each in history])
    )

    alone = contact_sheet(GREY[None], ["a"], [history[i] for i in (0, 6, 10, 19)], [0], max_columns=4)
    assert with_alarm.tobytes() == alone.tobytes()
    assert without.tobytes() != alone.tobytes()
