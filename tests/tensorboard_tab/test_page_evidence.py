"""What the page shows of an alarm: which run, which prompt, where the maps went, masks, crops and other objects."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, expect
from torch.utils.tensorboard import SummaryWriter

from clipcam_lightning.sinks.tensorboard_tab import TabSink
from tests.support import shortcuts
from tests.support.boards import tensorboard, until, wait_for
from tests.support.known_maps import STEPS, known_evaluations
from tests.support.synthetic_evaluations import evaluations_of, random_maps, write_run
from tests.support.tab_page import Tab, pixels

RUN = "clipcam@shortcut"
LONG = range(0, 400, 10)
SEVERE = ("serious", "critical")


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("logs")
    write_run(folder / "shortcut", shortcuts.shortcut_evaluations())
    write_run(folder / "known", known_evaluations()[:2])
    still = random_maps([0], 2)[0]
    write_run(folder / "a-later", evaluations_of(dict.fromkeys(LONG, still), ["a", "b"]))
    return folder


@pytest.fixture(scope="module")
def board(logs: Path) -> Iterator[str]:
    with tensorboard("--logdir", logs) as url:
        wait_for(url, "shortcut", (0, 40))
        wait_for(url, "known", STEPS[:2])
        wait_for(url, "a-later", LONG)
        yield url


@pytest.fixture(scope="module")
def opened(browser: Browser, board: str) -> Iterator[Tab]:
    with Tab(browser, board) as tab:
        yield tab.open()


@pytest.fixture
def tab(opened: Tab) -> Iterator[Tab]:
    yield opened.fresh(run=RUN)
    noise, opened.noise = opened.noise, []
    assert noise == []


def test_a_run_with_an_alarm_is_listed_and_shown_first(tab: Tab) -> None:
    tab.fresh()
    assert tab.options("Run")[0].endswith(" (alarm)")
    assert tab.options("Run")[-1] == "a-later"
    assert tab.chosen("Run") != "clipcam@a-later", "although it is newer"


def test_the_end_of_the_address_in_the_warning_opens_the_first_flagged_probe(tab: Tab, logs: Path, board: str) -> None:
    _, alarm = shortcuts.shortcut_evaluations()
    with SummaryWriter(logs / "shortcut") as writer:
        text = TabSink(writer, "clipcam").describe_address(alarm.report)
    (fragment,) = re.findall(r"add (#\S+) to", text)
    with tensorboard("--logdir", logs / "shortcut") as url:
        wait_for(url, ".", (0, 40))
        tab.open_at(f"{url}/{fragment}")
        expect(tab.detail).to_have_accessible_name("fox")
        tab.noise.clear()  # of another address than that of the fixture
    tab.open(run=RUN)


def test_the_headline_names_the_prompt_that_all_flagged_probes_share(tab: Tab) -> None:
    expect(tab.headline).to_contain_text("4 of 4 probes are flagged.")
    tab.fresh(run="clipcam@known")
    flagged = known_evaluations()[1].report.flagged
    assert len(flagged) == 1
    expect(tab.headline).to_contain_text(f"1 of 6 probes is flagged, with the prompt {flagged[0].prompt}.")


def test_tiles_fill_the_width_or_have_the_chosen_size(tab: Tab) -> None:
    def gap() -> float:
        return float(
            tab.grid.evaluate(
                "grid => grid.getBoundingClientRect().left + grid.clientWidth"
                " - Math.max(...[...grid.querySelectorAll('.column')].map(head => head.getBoundingClientRect().right))"
            )
        )

    tab.fresh(run="clipcam@known", size="fit")
    tab.page.set_viewport_size({"width": 1100, "height": 1000})
    until(lambda: 0 <= gap() < 10, "the tiles fill 1100 pixels")
    tab.page.set_viewport_size({"width": 1300, "height": 1000})
    until(lambda: 0 <= gap() < 10, "the tiles fill 1300 pixels")
    tab.slide("Size", 128)
    until(lambda: pixels(tab.ready().cell("walks", 10)).shape[1] == 128, "the tiles have the chosen size")
    tab.page.wait_for_function("location.hash.includes('size=128')")
    tab.root.get_by_role("button", name="Fit").click()
    until(lambda: 0 <= gap() < 10, "the tiles fill 1300 pixels again")
    tab.page.set_viewport_size({"width": 1500, "height": 1000})


def test_the_baseline_stays_in_sight_while_evaluations_scroll(tab: Tab) -> None:
    tab.fresh(run="clipcam@a-later", view="heat")
    name = tab.order()[0]
    baseline = tab.row(name).locator(".baseline")
    tab.scroll(across=0)
    expected = pixels(tab.cell(name, 0))
    for across in (0, 0.5, 1):
        tab.scroll(across=across)
        expect(baseline).to_be_in_viewport()
        shown = pixels(baseline).astype(int)
        assert np.abs(shown - expected).max() <= 2, "a map is rounded to half floats, its baseline is not"
    expect(baseline).to_contain_text("step 0")


def test_the_place_of_a_row_is_never_blank(tab: Tab) -> None:
    for run in (RUN, "clipcam@known", "clipcam@a-later"):
        tab.fresh(run=run)
        for name in tab.order():
            expect(tab.row(name).locator(".place")).to_have_text(re.compile(r"\w{3}"))
    tab.fresh(run="clipcam@known")
    tab.head(0).click()
    expect(tab.row("unknown").locator(".place")).to_have_text("nothing in this image raises the similarity")
    expect(tab.row("still").locator(".place")).to_have_text(re.compile("^(at the|spread over)"))


def test_the_object_is_outlined_in_every_view(tab: Tab) -> None:
    top, left = shortcuts.CORNERS[0]
    for view in ("Overlay", "Heat", "Change", "Input"):
        tab.view(view)
        shown = pixels(tab.ready().cell("fox", 40))
        scale = shown.shape[0] / shortcuts.SIDE
        line = round(scale * top) - 1, round(scale * (left + shortcuts.EDGE / 2))
        assert (shown[line][:3] == 255).all(), view
        assert (shown[line[0] - 1, line[1], :3] == 0).all(), view


def test_the_large_view_has_all_views(tab: Tab) -> None:
    tab.cell("fox", 40).click()
    tab.stage.wait_for()
    seen = []
    for view in ("Heat", "Change", "Input", "Overlay"):
        tab.detail.get_by_role("radio", name=view, exact=True).click()
        expect(tab.detail.get_by_role("radio", name=view, exact=True)).to_be_checked()
        expect(tab.wipe).to_be_enabled(enabled=view in ("Heat", "Overlay"))
        seen.append(pixels(tab.detail.locator(".stage")).tobytes())
        tab.page.wait_for_function(
            "view => location.hash.includes(`view=${view}`) || view === 'overlay'", arg=view.lower()
        )
    assert len(set(seen)) == 4
    tab.page.keyboard.press("Escape")


def test_the_views_of_the_large_view_keep_the_focus_of_the_keyboard(tab: Tab) -> None:
    tab.cell("fox", 40).click()
    tab.stage.wait_for()
    tab.detail.get_by_role("radio", name="Overlay", exact=True).focus()
    for view in ("Heat", "Change", "Input", "Overlay"):
        tab.page.keyboard.press("ArrowDown")
        expect(tab.detail.get_by_role("radio", name=view, exact=True)).to_be_focused()
        expect(tab.detail).to_have_accessible_name("fox")
    tab.page.keyboard.press("Escape")


def test_the_large_view_shows_what_all_flagged_maps_looked_at_before_and_look_at_now(tab: Tab) -> None:
    tab.cell("hen", 40).click()
    pairs = tab.detail.locator(".pair")
    expect(pairs).to_have_count(4)
    expect(pairs.first).to_contain_text("hen")
    before, now = (pixels(crop) for crop in pairs.first.locator("canvas").all())
    green, grey = shortcuts.COLORS[1], (shortcuts.GREYS[1],) * 3
    assert np.abs(before[..., :3].astype(int) - green).sum(-1).min() < 40, "the object"
    assert np.abs(now[40:, :30, :3].astype(int) - grey).max() < 20, "the ground"
    tab.page.keyboard.press("Escape")


def test_the_large_view_says_what_covering_the_place_costs_that_a_map_turned_to(tab: Tab) -> None:
    tab.cell("hen", 40).click()
    lines = tab.detail.get_by_role("row").filter(has_text=re.compile("Loss by covering"))
    expect(lines.nth(0)).to_contain_text(re.compile(r"Loss by covering.*0\.300", re.S))
    expect(lines.nth(1)).to_contain_text(re.compile(r"another place.*0\.100", re.S))
    tab.page.keyboard.press("Escape")


def test_the_large_view_shows_what_other_objects_are_called_on_the_grounds(tab: Tab) -> None:
    tab.cell("hen", 40).click()
    grounds = tab.detail.locator(".ground")
    expect(grounds).to_have_count(4)
    expect(tab.detail).to_contain_text("7 of 8 other objects now get the prompt of the background they are pasted on")
    expect(grounds.first).to_contain_text("On the background of a hen (hen)")
    tiles = grounds.first.locator("figure")
    expect(tiles).to_have_count(3)
    expect(tiles.nth(0)).to_contain_text("without its object")
    expect(tiles.nth(1)).to_contain_text("a hen")
    expect(tiles.nth(1)).to_contain_text("before: a cow")
    expect(tiles.nth(2)).to_contain_text("a dog")
    expect(tiles.nth(2)).to_contain_text("as before")
    assert [tiles.nth(i).get_attribute("class") for i in range(3)] == ["tile", "tile follows", "tile"]
    of_dog = grounds.filter(has_text="On the background of a dog").locator("figure")
    expect(of_dog.nth(1)).to_contain_text("before: a fox")
    expect(of_dog.nth(2)).to_contain_text("before: not tried")
    shown = pixels(tiles.nth(1).locator("canvas"))
    top, left = shortcuts.CORNERS[2]
    assert np.abs(shown[top + 12, left + 12, :3].astype(int) - shortcuts.COLORS[2]).max() < 20, "the cow's object"
    tab.page.keyboard.press("Escape")


def test_an_evaluation_without_alarm_has_no_evidence(tab: Tab) -> None:
    tab.cell("hen", 0).click()
    expect(tab.detail.locator(".pair")).to_have_count(1)
    expect(tab.detail).not_to_contain_text("Evidence of the alarm")
    tab.page.keyboard.press("Escape")


def test_a_note_says_which_part_of_the_image_the_model_sees(tab: Tab) -> None:
    tab.cell("hen", 40).click()
    expect(tab.detail).to_contain_text("The model sees a centre crop: the middle 67\u00a0% of the image.")
    tab.page.keyboard.press("Escape")
    tab.cell("cow", 40).click()
    expect(tab.detail).to_have_accessible_name("cow")
    expect(tab.detail).not_to_contain_text("centre crop")
    tab.page.keyboard.press("Escape")


def test_the_speed_can_be_chosen(tab: Tab) -> None:
    tab.fresh(run="clipcam@a-later", evaluation=0)
    assert [text.strip() for text in tab.options("Speed")] == [
        f"{speed}\N{MULTIPLICATION SIGN}" for speed in ("0.5", "1", "2", "4")
    ]
    tab.choose("Speed", "4")
    tab.play.click()
    expect(tab.title).to_contain_text("(40 of 40)", timeout=15_000)
    tab.page.wait_for_function("location.hash.includes('speed=4')")


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize(
    "state", [{}, {"open": "hen"}, {"compare": "clipcam@known"}], ids=["grid", "large", "two runs"]
)
def test_axe_finds_nothing_serious(tab: Tab, state: dict[str, str], theme: str) -> None:
    tab.page.emulate_media(color_scheme=theme)
    tab.fresh(run=RUN, **state)
    tab.frame.evaluate("theme => { document.documentElement.dataset.theme = theme; }", theme)
    if "open" in state:
        expect(tab.detail.locator(".ground")).to_have_count(4)
    found = Axe().run(tab.frame).response["violations"]
    severe = [
        (each["id"], [(node["target"], node["failureSummary"]) for node in each["nodes"]][:5])
        for each in found
        if each["impact"] in SEVERE
    ]
    tab.page.keyboard.press("Escape")
    assert severe == []


def test_everything_can_be_reached_with_the_keyboard_and_the_focus_is_visible(tab: Tab) -> None:
    wanted = tab.root.locator("select, input, button:not([role]), [role=radio][tabindex='0'], [role=grid]")
    names = {
        control.evaluate("node => node.outerHTML.slice(0, 200)") for control in wanted.all() if control.is_visible()
    }
    tab.root.get_by_label("Run", exact=True).focus()
    reached, hidden = set(), []
    for _ in range(len(names) + 5):
        html, is_visible = tab.frame.evaluate(
            "() => { const node = document.activeElement, { outlineStyle, outlineWidth } = getComputedStyle(node);"
            " return [node.outerHTML.slice(0, 200), outlineStyle !== 'none' && parseFloat(outlineWidth) >= 1]; }"
        )
        reached.add(html)
        if not is_visible and not html.startswith("<body"):  # then an element of TensorBoard has the focus
            hidden.append(html)
        tab.page.keyboard.press("Tab")
    assert names <= reached
    assert hidden == []
