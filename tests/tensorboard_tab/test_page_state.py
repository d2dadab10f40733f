"""What the page remembers, and where it works: addresses, prefixes, empty folders, dark mode, keyboard."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, expect

from tests.support.boards import tensorboard, wait_for
from tests.support.known_maps import BOTTOM_LEFT, NAMES, STEPS, known_evaluations
from tests.support.synthetic_evaluations import write_run
from tests.support.tab_page import Tab, pixels

KNOWN, OTHER = "clipcam@known", "clipcam@other"


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("logs")
    write_run(folder / "known", known_evaluations(), panels=1)
    write_run(folder / "other", known_evaluations(baseline=BOTTOM_LEFT))
    return folder


@pytest.fixture(scope="module")
def board(logs: Path) -> Iterator[str]:
    with tensorboard("--logdir", logs, "--path_prefix", "/some/prefix") as url:
        wait_for(url, "known", STEPS)
        wait_for(url, "other", STEPS)
        yield url


@pytest.fixture(scope="module")
def opened(browser: Browser, board: str) -> Iterator[Tab]:
    with Tab(browser, board) as tab:
        yield tab.open()


@pytest.fixture
def tab(opened: Tab) -> Iterator[Tab]:
    yield opened.fresh(run=KNOWN)
    noise, opened.noise = opened.noise, []
    assert noise == []


CHOICES = {
    "view": "change",
    "opacity": "0.4",
    "colors": "viridis",
    "baseline": "10",
    "scale": "probe",
    "size": "128",
    "speed": "2",
    "sort": "name",
    "filter": "what",
    "evaluation": "20",
}


def choose_all(tab: Tab) -> None:
    tab.slide("Opacity", 0.4)
    tab.choose("Colours", "viridis")
    tab.view("Change")
    tab.choose("Baseline", "step 10")
    tab.choose("Scale", "all evaluations of a probe")
    tab.slide("Size", 128)
    tab.choose("Speed", "2")
    tab.choose("Sort", "name")
    tab.root.get_by_label("Filter").fill("what")
    tab.head(20).click()
    tab.page.wait_for_function("location.hash.includes('filter=what') && location.hash.includes('evaluation=20')")


def assert_all_chosen(tab: Tab) -> None:
    expect(tab.root.get_by_role("radio", name="Change")).to_be_checked()
    for label, key in (("Opacity", "opacity"), ("Colours", "colors"), ("Baseline", "baseline"), ("Scale", "scale")):
        assert tab.chosen(label) == CHOICES[key]
    assert (tab.chosen("Sort"), tab.chosen("Filter")) == ("name", "what")
    assert (tab.chosen("Size"), tab.chosen("Speed")) == ("128", "2")
    expect(tab.title).to_contain_text("step 20")
    assert tab.order() == sorted(NAMES)


def test_the_address_holds_and_restores_all_choices(tab: Tab, browser: Browser, board: str) -> None:
    choose_all(tab)
    assert tab.state.items() >= CHOICES.items()
    expected = pixels(tab.cell("walks", 20))
    with Tab(browser, board) as another:
        another.open_at(tab.page.url)
        assert_all_chosen(another)
        assert np.array_equal(pixels(another.cell("walks", 20)), expected)
        assert another.noise == []
    tab.page.reload()
    tab.root.wait_for()
    assert_all_chosen(tab.ready())


def test_without_an_address_the_browser_restores_the_choices(tab: Tab, board: str) -> None:
    choose_all(tab)
    tab.open()
    assert_all_chosen(tab)


def test_a_link_takes_precedence_over_what_the_browser_remembers(tab: Tab, board: str) -> None:
    choose_all(tab)
    tab.open(run=OTHER, sort="similarity")
    assert (tab.chosen("Run"), tab.chosen("Sort"), tab.chosen("Filter")) == (OTHER, "similarity", "")
    expect(tab.root.get_by_role("radio", name="Overlay")).to_be_checked()
    expect(tab.title).to_contain_text("step 30")


def test_a_slow_response_does_not_replace_a_later_choice(tab: Tab) -> None:
    tab.fresh(run=KNOWN, view="heat")
    expected = pixels(tab.cell("walks", 20))
    tab.page.route("**/evaluations?*other*", lambda route: None)  # held until it is unrouted
    with tab.page.expect_request("**/evaluations?*other*"):
        tab.choose("Run", OTHER)
    tab.choose("Run", KNOWN)
    with tab.page.expect_response("**/evaluations?*other*"):
        tab.page.unroute("**/evaluations?*other*")
    tab.frame.evaluate("new Promise(done => setTimeout(done, 200))")
    assert tab.chosen("Run") == KNOWN
    assert np.array_equal(pixels(tab.cell("walks", 20)), expected)
    expect(tab.grid).to_have_attribute("aria-rowcount", str(1 + len(NAMES)))


def test_the_address_opens_the_large_view(tab: Tab) -> None:
    tab.fresh(run=KNOWN, open="walks", evaluation=20)
    expect(tab.detail).to_have_accessible_name("walks")
    tab.page.keyboard.press("Escape")
    expect(tab.detail).to_be_hidden()


INVALID = {
    "view": ("<script>", "constructor", ""),
    "colors": ("constructor", "crameri:vik"),
    "scale": ("furlong",),
    "sort": ("nonsense", "__proto__"),
    "opacity": ("NaN", "-7", "1e9"),
    "baseline": ("nowhere",),
    "speed": ("0", "100"),
    "run": ("clipcam@gone",),
    "compare": ("clipcam@gone", KNOWN),
    "evaluation": ("yesterday", "-1"),
    "open": ("nobody",),
    "constructor": ("x",),
    "%": ("%E0%A4%A",),
}


@pytest.mark.parametrize("key", INVALID)
def test_invalid_values_in_the_address_are_ignored(tab: Tab, key: str) -> None:
    usual = pixels(tab.cell("walks", 20))
    for value in INVALID[key]:
        tab.fresh(**{"run": KNOWN, key: value})
        expect(tab.message).to_have_count(0)
        assert sorted(tab.order()) == sorted(NAMES)
        if key != "run":  # it is replaced by the newest run
            assert np.array_equal(pixels(tab.cell("walks", 20)), usual)
        for label in ("Run", "Compare with", "Sort", "Colours", "Baseline", "Scale"):
            selected = tab.root.get_by_label(label, exact=True).locator("option:checked")
            assert selected.count() == 1, f"{label} is left blank"
        expect(tab.root.get_by_role("radio", checked=True)).to_have_count(1)


def test_other_tabs_keep_their_part_of_the_address(tab: Tab, board: str) -> None:
    tab.open_at(f"{board}/?darkMode=false#clipcam&p.other.x=1")
    tab.view("Heat")
    tab.page.wait_for_function("location.hash.includes('p.clipcam.view=heat')")
    assert "p.other.x=1" in tab.page.url
    assert "darkMode=false" in tab.page.url
    tab.page.get_by_role("tab", name="Images").click()
    expect(tab.page.locator("iframe")).to_be_hidden()
    assert tab.page.url.split("#")[1].startswith("images")
    tab.page.get_by_role("tab", name="CLIP CAM").click()
    expect(tab.cell("walks", 20)).to_be_visible()
    expect(tab.root.get_by_role("radio", name="Heat")).to_be_checked()


def luminance(tab: Tab) -> float:
    css = tab.root.evaluate("main => getComputedStyle(main.ownerDocument.body).backgroundColor")
    return sum(map(int, re.findall(r"\d+", css)[:3])) / 3 / 255


def test_dark_mode_follows_tensorboard(tab: Tab) -> None:
    for mode, dark in (("Dark", True), ("Light", False)):
        tab.page.get_by_role("button", name="Menu for changing light or dark theme").click()
        tab.page.get_by_role("menuitem", name=mode).click()
        tab.frame.wait_for_function("dark => (document.documentElement.dataset.theme === 'dark') === dark", arg=dark)
        assert (luminance(tab) < 0.3) == dark


def test_every_control_has_an_accessible_name_and_the_grid_has_its_roles(tab: Tab) -> None:
    for role in ("button", "combobox", "slider", "searchbox", "radio", "columnheader", "gridcell", "img", "grid"):
        for control in tab.root.get_by_role(role).all():  # type: ignore[arg-type]
            expect(control).to_have_accessible_name(re.compile(r"\S"))
    expect(tab.grid).to_have_attribute("aria-rowcount", str(1 + len(NAMES)))
    expect(tab.grid).to_have_attribute("aria-colcount", str(1 + len(STEPS)))
    expect(tab.cell(tab.order()[1], 20)).to_have_attribute("aria-colindex", "4")
    tab.cell("walks", 20).click()
    for role in ("button", "slider", "img"):
        for control in tab.detail.get_by_role(role).all():  # type: ignore[arg-type]
            expect(control).to_have_accessible_name(re.compile(r"\S"))


def test_the_page_works_with_the_keyboard_alone(tab: Tab) -> None:
    tab.root.get_by_label("Run", exact=True).focus()
    for _ in range(20):
        tab.page.keyboard.press("Tab")
        if tab.grid.evaluate("grid => grid === document.activeElement"):
            break
    expect(tab.grid).to_be_focused()
    order = tab.order()
    tab.page.keyboard.press("ArrowDown")
    expect(tab.cell(order[1], 30)).to_be_focused()
    tab.page.keyboard.press("End")
    expect(tab.cell(order[-1], 30)).to_be_focused()
    tab.page.keyboard.press("Home")
    tab.page.keyboard.press("ArrowLeft")
    expect(tab.title).to_contain_text("step 20")
    tab.page.keyboard.press("Enter")
    expect(tab.detail).to_have_accessible_name(order[0])
    tab.page.keyboard.press("Escape")
    expect(tab.detail).to_be_hidden()


def test_keys_work_at_once_and_after_a_click_on_a_view(tab: Tab) -> None:
    tab.open(run=KNOWN)
    tab.page.keyboard.press("ArrowLeft")
    expect(tab.title).to_contain_text("step 20")
    tab.view("Heat")
    tab.page.keyboard.press("ArrowLeft")
    expect(tab.title).to_contain_text("step 10")
    expect(tab.root.get_by_role("radio", name="Heat")).to_be_checked()


def test_controls_without_effect_in_a_view_are_disabled(tab: Tab) -> None:
    without = {"Overlay": set(), "Heat": {"Opacity"}, "Change": {"Colours"}, "Input": {"Opacity", "Colours", "Scale"}}
    for view, controls in without.items():
        tab.view(view)
        for control in ("Opacity", "Colours", "Scale", "Baseline"):
            expect(tab.root.get_by_label(control, exact=True)).to_be_enabled(enabled=control not in controls)


@pytest.mark.parametrize("compare", ["", OTHER])
@pytest.mark.parametrize("width", [480, 700, 1000])
def test_the_large_view_fits_a_narrow_window(tab: Tab, width: int, compare: str) -> None:
    tab.fresh(run=KNOWN, compare=compare, open="walks")
    tab.stage.first.wait_for()
    before = tab.page.viewport_size
    tab.page.set_viewport_size({"width": width, "height": 700})
    try:
        assert tab.detail.evaluate("detail => detail.scrollWidth <= detail.clientWidth")
    finally:
        tab.page.set_viewport_size(before or {"width": 1500, "height": 1000})


@pytest.mark.parametrize("key", ["ArrowLeft", "ArrowRight"])
def test_arrow_keys_move_the_slider_that_has_the_focus(tab: Tab, key: str) -> None:
    opacity = tab.root.get_by_label("Opacity")
    tab.slide("Opacity", 0.5)
    opacity.focus()
    tab.page.keyboard.press(key)
    expect(opacity).to_have_value("0.45" if key == "ArrowLeft" else "0.55")
    expect(tab.title).to_contain_text("(4 of 4)")
    tab.cell("walks", 20).click()
    tab.stage.wait_for()
    tab.wipe.focus()
    tab.page.keyboard.press(key)
    expect(tab.wipe).to_have_value("0.49" if key == "ArrowLeft" else "0.51")
    expect(tab.title).to_contain_text("step 20")


def test_runs_of_named_folders_can_be_compared(browser: Browser, logs: Path) -> None:
    with tensorboard("--logdir_spec", f"a:{logs}/known,b:{logs}/other") as url:
        wait_for(url, "a/.", STEPS)
        wait_for(url, "b/.", STEPS)
        with Tab(browser, url) as tab:
            tab.open(run="clipcam@a/.", compare="clipcam@b/.")
            assert tab.options("Run") == ["a/. (alarm)", "b/. (alarm)"]
            expect(tab.grid).to_have_attribute("aria-rowcount", str(1 + 2 * len(NAMES)))
            assert tab.noise == []


@pytest.mark.parametrize("flag", ["true", "false"])
def test_a_log_directory_can_itself_be_a_run(browser: Browser, logs: Path, flag: str) -> None:
    with tensorboard("--logdir", logs / "known", f"--load_fast={flag}") as url:
        wait_for(url, ".", STEPS)
        with Tab(browser, url) as tab:
            tab.open(size=96)
            assert tab.options("Run") == [". (alarm)"]
            assert sorted(tab.order()) == sorted(NAMES)
            tab.view("Heat")
            tab.page.wait_for_function("location.hash.includes('p.clipcam.view=heat')")
            tab.open_at(tab.page.url)
            expect(tab.root.get_by_role("radio", name="Heat")).to_be_checked()
            assert tab.noise == []


def test_an_empty_log_directory_shows_what_to_do(browser: Browser, tmp_path: Path) -> None:
    with tensorboard("--logdir", tmp_path) as url, Tab(browser, url) as tab:
        tab.page.goto(url)
        tab.page.get_by_role("combobox", name="Inactive").click()
        tab.page.get_by_role("option", name="CLIP CAM").click()
        tab.root.wait_for()
        tab.ready()
        expect(tab.message).to_contain_text("There are no CLIP CAM maps in this log directory yet.")
        expect(tab.message).to_contain_text("ClipCamCallback()")
        expect(tab.root.get_by_role("toolbar")).to_be_hidden()
        expect(tab.grid).to_be_hidden()
        assert tab.noise == []
