"""The page in TensorBoard as users start it: both loaders, runs of all kinds, what it remembers, who can use it."""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect
from torch.utils.tensorboard import SummaryWriter

from clipcam_lightning import ClipCamCallback
from clipcam_lightning.monitoring.evaluation import Evaluation
from clipcam_lightning.sinks.tensorboard_tab import TabSink
from tests.support.boards import evaluations, tensorboard, until, wait_for
from tests.support.known_maps import BOTTOM_RIGHT, NAMES, STEPS, TOP_LEFT, known_evaluations, lit
from tests.support.modules import FineTuning, fit
from tests.support.synthetic_evaluations import evaluations_of, random_maps, write_run
from tests.support.tab_page import Tab, pixels

LOADERS = ("true", "false")  # what --load_fast says
LONG = range(0, 600, 10)
EVERY = [*STEPS, 40]


RUNS = re.compile("/clipcam/runs")  # the route


def corner_evaluations(corner: tuple[int, int], steps: tuple[int, ...]) -> list[Evaluation]:
    return evaluations_of({step: lit(corner, 1.0)[None] for step in steps}, ["a thing"], ["thing"])


def walking_evaluations() -> list[Evaluation]:
    """Lit to the left but for one look in the middle."""
    maps = {step: lit(BOTTOM_RIGHT if step == 300 else TOP_LEFT, 1.0)[None] for step in LONG}
    return evaluations_of(maps, ["a thing"], ["thing"])


def write_resumed(folder: Path) -> None:
    """A run that went to step 40, and was resumed at step 20 with another map."""
    for i, found in enumerate(
        [corner_evaluations(TOP_LEFT, (0, 10, 20, 30, 40)), corner_evaluations(BOTTOM_RIGHT, (20, 30))]
    ):
        write_run(folder, found)
        (written,) = (file for file in folder.iterdir() if not file.name.endswith("host"))
        written.rename(folder / f"events.out.tfevents.{i}.host")  # read in this order, whatever the writer called them


def is_lit(tab: Tab, name: str, step: int, corner: tuple[int, int]) -> bool:
    """Whether this corner is brighter than the opposite one, where heat alone is shown."""
    shown = pixels(tab.cell(name, step))[..., :3].astype(int)
    height, width = shown.shape[0] // 6, shown.shape[1] // 10
    first, last = shown[:height, :width].mean(), shown[-height:, -width:].mean()
    return bool(first > last + 50 if corner == TOP_LEFT else last > first + 50)


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("logs")
    write_run(folder / "known", known_evaluations(), panels=1)
    write_run(folder / "long", walking_evaluations())
    write_run(folder / "twice", corner_evaluations(TOP_LEFT, STEPS))
    write_run(folder / "twice", corner_evaluations(BOTTOM_RIGHT, STEPS), root="clipcam_words")
    write_resumed(folder / "resumed")
    fit(FineTuning(), folder / "trained", ClipCamCallback(num_probes=3))
    return folder


@pytest.fixture(scope="module", params=LOADERS, ids=lambda flag: f"load_fast={flag}")
def board(logs: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    with tensorboard("--logdir", logs, f"--load_fast={request.param}") as url:
        wait_for(url, "known", STEPS)
        wait_for(url, "long", LONG)
        wait_for(url, "twice", STEPS)
        wait_for(url, "twice", STEPS, "clipcam_words")
        wait_for(url, "resumed", STEPS)
        until(lambda: evaluations(url, "trained/run"), "the trained run is read")
        yield url


@pytest.fixture(scope="module")
def opened(browser: Browser, board: str) -> Iterator[Tab]:
    with Tab(browser, board) as tab:
        yield tab.open()


@pytest.fixture
def tab(opened: Tab) -> Iterator[Tab]:
    yield opened.fresh(run="clipcam@known")
    noise, opened.noise = opened.noise, []
    assert noise == []


def test_every_callback_of_every_run_can_be_chosen(tab: Tab) -> None:
    assert {"known", "long", "resumed", "trained/run", "twice", "twice · words"} <= set(tab.options("Run"))
    tab.view("Heat")
    for run, corner in (("twice", TOP_LEFT), ("twice · words", BOTTOM_RIGHT)):
        tab.choose("Run", run)
        expect(tab.cell("thing", 10)).to_be_visible()
        until(partial(is_lit, tab, "thing", 10, corner), f"{run} is shown")
    tab.choose("Run", "known")
    expect(tab.cell("walks", 20)).to_be_visible()
    assert sorted(tab.order()) == sorted(NAMES)


def test_a_training_with_the_callback_is_shown(tab: Tab) -> None:
    tab.fresh(run="clipcam@trained/run")
    assert len(tab.order()) == 3
    expect(tab.grid).to_have_attribute("aria-colcount", str(1 + 3))
    assert all(pixels(tab.cell(name, 8)).std() > 5 for name in tab.order())


def test_the_newest_value_of_a_step_wins_and_stale_later_steps_are_gone(tab: Tab) -> None:
    tab.fresh(run="clipcam@resumed", view="heat")
    expect(tab.grid).to_have_attribute("aria-colcount", str(1 + len(STEPS)))
    expect(tab.title).to_have_text("step 30, epoch 1 (4 of 4)")
    assert [is_lit(tab, "thing", step, BOTTOM_RIGHT) for step in STEPS] == [False, False, True, True]
    assert [is_lit(tab, "thing", step, TOP_LEFT) for step in STEPS] == [True, True, False, False]


def test_sixty_evaluations_are_all_there(tab: Tab) -> None:
    tab.fresh(run="clipcam@long", view="heat")
    expect(tab.grid).to_have_attribute("aria-colcount", "61")
    expect(tab.cell("thing", LONG[-1])).to_be_in_viewport()
    expect(tab.title).to_contain_text("(60 of 60)")
    seen = set()
    for place in (0, 0.25, 0.5, 0.75, 1):
        tab.scroll(across=place)
        seen |= {label.split(",")[1] for label in tab.labels()}
    assert seen == {f" step {step}" for step in LONG}
    tab.slider.fill("30")
    expect(tab.cell("thing", 300)).to_be_in_viewport()
    assert is_lit(tab, "thing", 300, BOTTOM_RIGHT)
    assert is_lit(tab, "thing", 290, TOP_LEFT)
    tab.slider.fill("59")
    tab.scroll(across=0)
    with tab.page.expect_response("**/looks?*"):
        tab.reload_data()
    tab.ready()
    expect(tab.cell("thing", 0)).to_be_in_viewport()


def test_a_run_that_is_still_written_grows_and_the_player_follows_if_it_stood_at_the_end(
    tab: Tab, board: str, logs: Path, request: pytest.FixtureRequest
) -> None:
    run = f"written-{request.node.callspec.params['board']}"
    found = evaluations_of(random_maps(EVERY, 40), [f"thing {i}" for i in range(40)])
    writer = SummaryWriter(logs / run)
    sink = TabSink(writer, "clipcam")
    for evaluation in found[:2]:
        sink.write(evaluation)
    wait_for(board, run, EVERY[:2])
    tab.fresh(run=f"clipcam@{run}")
    expect(tab.title).to_contain_text("step 10, epoch 1 (2 of 2)")

    sink.write(found[2])
    wait_for(board, run, EVERY[:3])
    tab.reload_data()
    expect(tab.title).to_contain_text("step 20, epoch 2 (3 of 3)")
    name = tab.ready().order()[0]
    assert (pixels(tab.cell(name, 20)) == pixels(tab.present(name))).all()

    tab.grid.focus()
    tab.page.keyboard.press("ArrowLeft")
    tab.page.keyboard.press("ArrowDown")
    sink.write(found[3])
    wait_for(board, run, EVERY[:4])
    tab.reload_data(by="nobody")
    expect(tab.title).to_contain_text("step 10, epoch 1 (2 of 4)")
    focused = tab.frame.evaluate("document.activeElement.ariaLabel")
    assert focused.startswith(f"{tab.order()[1]}, step 10, "), "new data leave the keyboard where it is"

    sink.write(found[4])
    wait_for(board, run, EVERY)
    tab.scroll(down=1)  # no reload: but the rows that are asked for have one look more than the page knows
    expect(tab.title).to_contain_text("step 10, epoch 1 (2 of 5)")
    expect(tab.head(40)).to_be_visible()
    expect(tab.grid).to_have_attribute("aria-colcount", "6")
    writer.close()


def test_one_run_grows_while_the_other_cannot_be_read(
    tab: Tab, board: str, logs: Path, request: pytest.FixtureRequest
) -> None:
    run = f"beside-{request.node.callspec.params['board']}"
    found = corner_evaluations(TOP_LEFT, (0, 10, 20))
    writer = SummaryWriter(logs / run)
    sink = TabSink(writer, "clipcam")
    for evaluation in found[:2]:
        sink.write(evaluation)
    wait_for(board, run, (0, 10))
    tab.fresh(run=f"clipcam@{run}", beside="clipcam@long")
    expect(tab.grid).to_have_attribute("aria-colcount", "61")
    tab.scroll(across=0)
    sink.write(found[2])
    wait_for(board, run, (0, 10, 20))
    tab.page.route(
        "**/looks?*long*", lambda route: route.fulfill(status=500, content_type="text/plain", body="not now")
    )
    tab.reload_data()
    expect(tab.message).to_contain_text("not now")
    assert "no look" in (tab.cell("thing", 20).first.get_attribute("aria-label") or ""), "both as they were"
    tab.page.unroute("**/looks?*long*")
    tab.reload_data()
    expect(tab.message).to_be_hidden()
    label = tab.cell("thing", 20).first
    expect(label).to_have_accessible_name(re.compile("drift"))
    assert all("500" in noise for noise in tab.noise)
    tab.noise.clear()


def test_the_keys_reach_the_page_after_a_click_on_its_tab(tab: Tab, board: str) -> None:
    tab.page.goto("about:blank")
    tab.page.goto(f"{board}/#scalars")
    tab.page.get_by_role("tab", name="CLIP CAM").or_(tab.page.get_by_text("CLIP CAM", exact=True)).first.click()
    tab.root.wait_for()
    tab.ready()
    tab.choose("Run", "clipcam@known")
    tab.grid.evaluate("() => document.activeElement.blur()")
    expect(tab.title).to_contain_text("(4 of 4)")
    tab.page.keyboard.press("ArrowLeft")
    expect(tab.title).to_contain_text("(3 of 4)")


def test_a_log_directory_that_is_emptied_shows_nothing_of_what_was_there(tab: Tab) -> None:
    tab.page.route(RUNS, lambda route: route.fulfill(json={"runs": []}))
    tab.reload_data()
    expect(tab.message).to_contain_text("There are no CLIP CAM maps")
    expect(tab.grid).to_be_hidden()
    expect(tab.headline).to_be_hidden()
    tab.page.unroute(RUNS)
    tab.reload_data()
    expect(tab.cell("walks", 20)).to_be_visible()
    expect(tab.message).to_be_hidden()


def test_a_link_to_a_run_that_is_gone_says_so(tab: Tab) -> None:
    tab.fresh(run="clipcam@gone")
    expect(tab.headline).to_contain_text("There is no run \u2068gone\u2069 here")
    tab.choose("Run", "clipcam@known")
    expect(tab.headline).not_to_contain_text("gone")
