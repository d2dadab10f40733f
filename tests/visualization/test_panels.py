"""Panels of probes: where the map was, where it is, and what changed; odd maps and texts do not change the layout."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from clipcam_lightning.cam.colors import _overlays
from clipcam_lightning.cam.map_state import MapState
from clipcam_lightning.monitoring.history import relative_saliency
from clipcam_lightning.visualization.drawing import GAP, _draw_frame
from clipcam_lightning.visualization.panels import probe_panel
from tests.support.drawn_images import (
    TEXTS,
    colourfulness,
    corners,
    limit_measuring,
    panel_tile,
    pixels_of,
    probe_drift,
)

GREY = torch.full((3, 64, 64), 128, dtype=torch.uint8)
BEFORE, NOW = torch.zeros(8, 8), torch.zeros(8, 8)
BEFORE[0, 0] = 5.0  # raw maps have any scale
NOW[-1, -1] = 0.01


def panel(prompt: str = "a cat", *, maps: tuple[Tensor, Tensor] = (BEFORE, NOW), **changes: Any) -> Image.Image:
    return probe_panel(GREY, *maps, probe_drift(prompt=prompt, **changes), steps=(0, 120))


def is_red(image: Image.Image) -> np.ndarray:
    r, g, b = pixels_of(image).transpose(2, 0, 1)
    return (r > 150) & (g < 80) & (b < 80)


def test_relative_saliency_keeps_zero_and_has_a_maximum_of_one() -> None:
    maps = torch.stack(
        [torch.tensor([[0.0, 2.0, -1.0]]), torch.tensor([[torch.nan, torch.inf, 4.0]]), torch.zeros(1, 3)]
    )
    expected = torch.tensor([[[0.0, 1.0, 0.0]], [[0.0, 0.0, 1.0]], [[0.0, 0.0, 0.0]]])
    assert torch.equal(relative_saliency(maps), expected)


def test_a_panel_shows_where_the_map_was_where_it_is_and_the_change() -> None:
    image = panel()

    assert image.size == (700, 430), "twice the 350 x 215 pixels that TensorBoard shows"
    shown, baseline, now, change = (corners(panel_tile(image, k)) for k in range(4))
    assert max(map(colourfulness, shown)) == 0  # the grey input as it is
    assert colourfulness(baseline[0]) > 50 > 20 > colourfulness(baseline[1])
    assert colourfulness(now[1]) > 50 > 20 > colourfulness(now[0])
    assert change[1][0] > change[1][2] + 50  # more: red
    assert change[0][2] > change[0][0] + 50  # less: blue
    assert colourfulness(panel_tile(image, 3)[88, 88]) < 8  # nothing changed


def test_a_small_gain_is_visibly_red_and_a_small_loss_visibly_blue() -> None:
    before, now = torch.zeros(8, 8), torch.zeros(8, 8)
    before[4, 4] = now[4, 4] = 1.0
    before[0, 0] = now[-1, -1] = 0.15

    less, more = corners(panel_tile(panel(maps=(before, now)), 3))

    assert less[2] > less[0] + 5
    assert more[0] > more[2] + 5


def test_panels_do_not_depend_on_the_default_dtype_of_torch() -> None:
    """A training in bfloat16 changes it for all threads."""
    pixels, (before, now) = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8), torch.rand(2, 7, 7)

    def draw() -> bytes:
        _overlays.cache_clear()
        return probe_panel(pixels, before, now, probe_drift(), steps=(0, 9)).tobytes()

    in_float32 = draw()
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert draw() == in_float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_map_that_only_changed_its_scale_shows_no_change() -> None:
    unchanged = panel_tile(panel(maps=(BEFORE, 1000 * BEFORE)), 3)
    assert np.ptp(unchanged, axis=2).max() < 5


@pytest.mark.parametrize("size", [(64, 32), (20, 300), (7, 7), (500, 400)], ids=str)
def test_an_image_of_any_shape_keeps_its_proportions_in_the_panel(size: tuple[int, int]) -> None:
    pixels = torch.zeros(3, *size, dtype=torch.uint8)
    image = probe_panel(pixels, BEFORE, NOW, probe_drift(), steps=(0, 1))
    assert image.size == panel().size
    black = (panel_tile(image, 0).sum(2) == 0).sum()
    assert black == pytest.approx(176**2 * min(size) / max(size), rel=0.03)


def test_the_mask_is_outlined_on_the_input_alone() -> None:
    mask = torch.zeros(64, 64, dtype=torch.bool)
    mask[16:32, 32:56] = True

    plain, outlined = panel(), probe_panel(GREY, BEFORE, NOW, probe_drift(), steps=(0, 120), mask=mask)

    assert all(np.array_equal(panel_tile(plain, k), panel_tile(outlined, k)) for k in (1, 2, 3))
    ys, xs = np.nonzero((panel_tile(plain, 0) != panel_tile(outlined, 0)).any(2))
    scale = 176 / 64
    around = [16 * scale, 32 * scale, 32 * scale, 56 * scale]  # top, bottom, left, right
    assert [ys.min(), ys.max(), xs.min(), xs.max()] == pytest.approx(around, abs=4)
    inside = panel_tile(outlined, 0)[int(18 * scale) : int(30 * scale), int(34 * scale) : int(54 * scale)]
    assert (inside == 128).all(), "the object itself stays visible"


DEGENERATE = {
    MapState.ALL_ZERO: torch.zeros(8, 8),
    MapState.CONSTANT: torch.ones(8, 8),
    MapState.NOT_FINITE: torch.full((8, 8), torch.nan),
    MapState.NOWHERE_POSITIVE: -NOW,
}


@pytest.mark.parametrize("state", DEGENERATE)
def test_a_panel_says_over_a_degenerate_map_what_its_state_is(state: MapState, written: list[str]) -> None:
    odd = DEGENERATE[state]
    for maps, times in (((odd, NOW), 1), ((BEFORE, odd), 1), ((odd, odd), 2)):
        written.clear()
        image = panel(maps=maps, drift=1.0)
        assert image.size == panel().size
        assert " ".join(written).count(state.words) == times
        tiles = [corners(panel_tile(image, k)) for k in range(4)]
        is_cold = [max(map(colourfulness, tile)) < 20 for tile in tiles]
        assert is_cold == [True, maps[0] is odd, maps[1] is odd, True], "no heat, and no change"


def test_a_panel_does_not_give_a_drift_from_a_degenerate_baseline(written: list[str]) -> None:
    panel(baseline_state=MapState.ALL_ZERO, drift=1.0)
    assert "drift unknown" in written


def test_a_panel_names_scale_and_ends_of_its_color_bars(written: list[str]) -> None:
    _draw_frame.cache_clear()
    panel()
    assert written[:4] == ["none", "most, own scale", "less", "more"]


@pytest.mark.parametrize("flagged", [False, True])
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_no_prompt_leaves_its_place_in_a_panel(text: str, flagged: bool) -> None:
    reason = "its map moved" if flagged else ""
    plain, odd = panel(reason=reason), panel(text, reason=reason)

    differs = (pixels_of(plain) != pixels_of(odd)).any(2)
    assert not differs[:, 332 - GAP :].any(), "the text reaches into the tiles"
    assert not differs[200:].any(), "the text reaches into the flag or the metrics"


def test_a_long_prompt_fills_five_lines_and_ends_in_an_ellipsis(written: list[str]) -> None:
    panel(TEXTS["long"])
    lines = [line for line in written if line.startswith(("a very", "very", "long", "prompt"))]
    assert len(lines) == 5
    assert [line.endswith("…") for line in lines] == [False] * 4 + [True]


def test_a_flagged_probe_has_a_red_flag() -> None:
    assert is_red(panel(reason="its map moved"))[:, :300].sum() > 1000
    assert not is_red(panel())[:, :300].any()


def test_a_huge_prompt_is_cut_without_measuring_it_many_times(monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = "a b " * 5000
    limit_measuring(monkeypatch, 50 * len(prompt))
    panel(prompt)
