"""Pixels on the page: compared with hand-made maps and with the images that the callback logs."""

from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest
import torch
from jaxtyping import Float, UInt8
from playwright.sync_api import Browser
from torch import Tensor

from clipcam_lightning.cam.colors import colored, overlaid
from clipcam_lightning.cam.map_state import map_state
from clipcam_lightning.monitoring.history import relative_saliency
from clipcam_lightning.visualization import drawing
from tests.support.boards import tensorboard, until, wait_for
from tests.support.known_maps import (
    BOTTOM_LEFT,
    BOTTOM_RIGHT,
    COLORS,
    CORNERS,
    NAMES,
    PROBES,
    STEPS,
    TOP_LEFT,
    TOP_RIGHT,
    images,
    known_evaluations,
    known_maps,
)
from tests.support.synthetic_evaluations import write_run
from tests.support.tab_page import Pixels, Tab, all_pixels, pixels

pytestmark = pytest.mark.browser

KNOWN, STORED = "clipcam@known", "clipcam@stored"
TOLERANCE = 4  # levels of 255 by which two renderers may differ
MAPS, IMAGES = known_maps(), images()


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("logs")
    write_run(folder / "stored", known_evaluations(baseline=BOTTOM_LEFT))
    write_run(folder / "known", known_evaluations())
    with tensorboard("--logdir", folder) as url:
        for run in ("stored", "known"):
            wait_for(url, run, STEPS)
        yield url


@pytest.fixture(scope="module")
def plain(browser: Browser, board: str) -> Iterator[Tab]:
    with Tab(browser, board) as tab:
        yield tab.open(run=KNOWN)


@pytest.fixture(scope="module")
def dense(browser: Browser, board: str) -> Iterator[Tab]:
    with Tab(browser, board, device_scale_factor=2) as tab:
        yield tab.open(run=KNOWN)


@pytest.fixture
def tab(request: pytest.FixtureRequest) -> Iterator[Tab]:
    opened: Tab = request.getfixturevalue(getattr(request, "param", "plain"))
    yield opened.fresh(run=KNOWN)
    noise, opened.noise = opened.noise, []
    assert noise == []


on_any_screen = pytest.mark.parametrize("tab", ["plain", "dense"], indirect=True)


def corner(canvas: Pixels, place: tuple[int, int]) -> np.ndarray:
    """Return the mean colour of the outer half of a corner's cell, into which no neighbour is interpolated."""
    height, width = (length // 2 // cells for length, cells in zip(canvas.shape, (3, 5), strict=False))
    rows = slice(0, height) if place[0] == 0 else slice(-height, None)
    columns = slice(0, width) if place[1] == 0 else slice(-width, None)
    return canvas[rows, columns, :3].mean((0, 1))


def spread(color: np.ndarray) -> float:
    """Return the range of the channels: 0 for grey."""
    return float(np.ptp(color))


def image_at(name: str, canvas: Pixels) -> UInt8[Tensor, "3 y x"]:
    """Return the image of a probe at the size of a canvas."""
    return drawing.enlarge(IMAGES[NAMES.index(name)], max(canvas.shape[:2]))


def heat_of(name: str, step: int) -> Float[Tensor, "h w"]:
    return relative_saliency(MAPS[step])[NAMES.index(name)]


def assert_same(canvas: Pixels, expected: object, tolerance: int = TOLERANCE) -> None:
    """Check that a canvas is opaque and equals ``expected`` to within ``tolerance`` levels."""
    wanted = np.asarray(expected).astype(int)
    assert canvas.shape[:2] == wanted.shape[:2]
    assert np.abs(canvas[..., :3].astype(int) - wanted).max(initial=0) <= tolerance
    assert (canvas[..., 3] == 255).all()


@on_any_screen
def test_a_tile_has_the_shape_of_its_image_and_the_resolution_of_the_screen(tab: Tab) -> None:
    ratio = tab.frame.evaluate("devicePixelRatio")
    assert pixels(tab.cell("walks", 0)).shape == (round(96 * ratio * 0.6), 96 * ratio, 4)
    box = tab.cell("walks", 0).locator(".frame").bounding_box()
    assert box is not None
    assert box["width"] / box["height"] == pytest.approx(160 / 96, rel=0.02)


def test_tiles_are_made_again_for_another_resolution(tab: Tab) -> None:
    session = tab.context.new_cdp_session(tab.page)
    size = {"height": 1000, "mobile": False}
    session.send("Emulation.setDeviceMetricsOverride", {**size, "width": 1200, "deviceScaleFactor": 2})
    tab.frame.wait_for_function("devicePixelRatio === 2")
    until(lambda: pixels(tab.cell("walks", 20))[..., 3].all(), "everything is painted")
    image = image_at("walks", pixels(tab.cell("walks", 20)))
    assert image.shape[2] == 192
    expected = overlaid(image, drawing.fit_to(image, heat_of("walks", 20))).permute(1, 2, 0)
    assert_same(pixels(tab.cell("walks", 20)), expected)
    session.send("Emulation.setDeviceMetricsOverride", {**size, "width": 1500, "deviceScaleFactor": 1})
    tab.frame.wait_for_function("devicePixelRatio === 1")


def test_only_the_lit_corner_is_hot(tab: Tab) -> None:
    for name in ("walks", "still"):
        for step, (place, _) in zip(STEPS, PROBES[name], strict=True):
            overlay = pixels(tab.cell(name, step))
            for other in CORNERS:
                assert (spread(corner(overlay, other)) > 40) == (other == place)


def test_a_change_is_red_where_the_map_gained_and_blue_where_it_lost(tab: Tab) -> None:
    tab.view("Change")
    change = pixels(tab.cell("walks", 20))
    assert corner(change, BOTTOM_RIGHT)[0] > corner(change, BOTTOM_RIGHT)[2] + 50
    assert corner(change, TOP_LEFT)[2] > corner(change, TOP_LEFT)[0] + 50
    for same in (TOP_RIGHT, BOTTOM_LEFT):
        assert spread(corner(change, same)) < 5


@on_any_screen
def test_an_overlay_equals_the_logged_image(tab: Tab) -> None:
    shown = all_pixels(tab)
    assert shown.keys() == set(product(NAMES, range(len(STEPS))))
    for (name, evaluation), canvas in shown.items():
        image = image_at(name, canvas)
        assert_same(canvas, overlaid(image, drawing.fit_to(image, heat_of(name, STEPS[evaluation]))).permute(1, 2, 0))


@on_any_screen
def test_a_change_equals_the_logged_image(tab: Tab) -> None:
    tab.view("Change")
    for (name, evaluation), canvas in all_pixels(tab).items():
        change = heat_of(name, STEPS[evaluation]) - heat_of(name, STEPS[0])
        if any(map_state(MAPS[step][NAMES.index(name)]).is_degenerate for step in (STEPS[0], STEPS[evaluation])):
            change = torch.zeros_like(change)  # nothing to compare
        assert_same(canvas, drawing.draw_change(image_at(name, canvas), change))


def test_heat_equals_the_coloured_map(tab: Tab) -> None:
    tab.view("Heat")
    for colors in ("inferno", "viridis", "gray"):
        tab.choose("Colours", colors)
        for (name, evaluation), canvas in all_pixels(tab).items():
            heat = drawing.fit_to(image_at(name, canvas), heat_of(name, STEPS[evaluation]))
            assert_same(canvas, colored(heat, colors).permute(1, 2, 0) * 255)


@on_any_screen
def test_the_input_is_neither_rotated_nor_mirrored(tab: Tab) -> None:
    tab.view("Input")
    canvas = pixels(tab.cell("slow", 0))
    assert_same(canvas, image_at("slow", canvas).permute(1, 2, 0), tolerance=8)
    assert corner(canvas, TOP_RIGHT)[0] > corner(canvas, TOP_LEFT)[0] + 100, "redder to the right"
    assert corner(canvas, BOTTOM_LEFT)[1] > corner(canvas, TOP_LEFT)[1] + 100, "greener to the bottom"


def test_zero_opacity_shows_the_grey_image_and_more_opacity_more_colour(tab: Tab) -> None:
    shown = []
    for opacity in (0, 0.5, 1):
        tab.slide("Opacity", opacity)
        shown.append(pixels(tab.cell("still", 0)))
    red, green, blue = COLORS[NAMES.index("still")]
    grey = round(20.4 + 0.6 * (0.299 * red + 0.587 * green + 0.114 * blue))
    assert_same(shown[0], np.full((*shown[0].shape[:2], 3), grey))
    colourfulness = [spread(corner(canvas, BOTTOM_LEFT)) for canvas in shown]
    assert colourfulness == sorted(colourfulness)
    assert colourfulness[2] > colourfulness[1] + 20 > 40
    assert spread(corner(shown[2], TOP_RIGHT)) < 60, "the colour covers little where the map is cold"


def test_the_scale_is_that_of_one_map_or_of_all_evaluations_of_a_probe(tab: Tab) -> None:
    """The map of "fades" is 4 at its hottest, then 2, 1 and 1/16."""
    tab.view("Heat")
    expected = {"map": (1, 1, 1, 1), "probe": (1, 0.5, 0.25, 1 / 64)}
    for scale, heats in expected.items():
        tab.choose("Scale", scale)
        for step, heat in zip(STEPS, heats, strict=True):
            wanted = 255 * colored(torch.tensor([[float(heat)]]))[:, 0, 0].numpy()
            assert np.abs(corner(pixels(tab.cell("fades", step)), TOP_RIGHT) - wanted).max() <= TOLERANCE


def test_a_change_starts_from_the_chosen_baseline(tab: Tab) -> None:
    tab.view("Change")
    for baseline, step, more, less in (
        ("callback", 20, BOTTOM_RIGHT, TOP_LEFT),
        ("previous", 20, BOTTOM_RIGHT, TOP_RIGHT),
        ("previous", 0, None, None),
        ("30", 0, TOP_LEFT, BOTTOM_RIGHT),
        ("30", 20, None, None),
        ("10", 0, TOP_LEFT, TOP_RIGHT),
    ):
        tab.choose("Baseline", baseline)
        assert_changed(pixels(tab.cell("walks", step)), more, less)


def test_a_change_can_start_from_a_stored_baseline(tab: Tab) -> None:
    tab.fresh(run=STORED, view="change")
    for step, (place, _) in zip(STEPS, PROBES["walks"], strict=True):
        assert_changed(pixels(tab.cell("walks", step)), place, BOTTOM_LEFT)
    tab.choose("Baseline", "previous")
    assert_changed(pixels(tab.cell("walks", 10)), TOP_RIGHT, TOP_LEFT)


def assert_changed(canvas: Pixels, more: tuple[int, int] | None, less: tuple[int, int] | None) -> None:
    """Check that one corner is red, one blue, and the others neither."""
    for place in CORNERS:
        red, _, blue = corner(canvas, place)
        if place == more:
            assert red > blue + 50
        elif place == less:
            assert blue > red + 50
        else:
            assert spread(corner(canvas, place)) < 5


def test_a_map_of_zeros_is_cold_everywhere(tab: Tab) -> None:
    tab.view("Heat")
    assert pixels(tab.cell("vanishes", 30))[..., :3].max() < 5
    assert pixels(tab.cell("unknown", 0))[..., :3].max() < 5


def test_the_tile_beside_the_name_shows_the_current_evaluation(tab: Tab) -> None:
    cells = all_pixels(tab)
    for evaluation, step in reversed([*enumerate(STEPS)]):
        tab.head(step).click()
        for name in NAMES:
            assert np.array_equal(pixels(tab.current(name)), cells[name, evaluation])


@on_any_screen
def test_the_wipe_uncovers_the_baseline_from_the_left(tab: Tab) -> None:
    """The map of "walks" went from the top left to the bottom right."""
    tab.cell("walks", 20).click()
    tab.stage.wait_for()
    image = image_at("walks", pixels(tab.stage))
    before, now = (np.asarray(drawing.draw_overlay(image, heat_of("walks", step))) for step in (STEPS[0], 20))
    for share in (0.0, 0.5, 1.0):
        tab.wipe.fill(str(share))
        shown = pixels(tab.stage)
        edge, border = round(share * shown.shape[1]), 2
        assert_same(shown[:, : max(0, edge - border)], before[:, : max(0, edge - border)])
        assert_same(shown[:, edge + border :], now[:, edge + border :])
        assert (spread(corner(shown, TOP_LEFT)) > 40) == (share > 0)
        assert (spread(corner(shown, BOTTOM_RIGHT)) > 40) == (share < 1)


@on_any_screen
def test_the_wipe_can_be_dragged_on_the_image(tab: Tab) -> None:
    tab.cell("walks", 20).click()
    box = tab.stage.bounding_box()
    assert box is not None
    tab.page.mouse.click(box["x"] + box["width"] / 4, box["y"] + box["height"] / 2)
    assert float(tab.wipe.input_value()) == pytest.approx(0.25, abs=0.02)
