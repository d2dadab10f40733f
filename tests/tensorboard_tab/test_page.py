"""The page in TensorBoard as users start it: both loaders, runs of all kinds, runs that grow or disappear."""

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

LOADERS = ("true", "false")  # values of --load_fast
LONG = range(0, 600, 10)
EVERY = [*STEPS, 40]
RUNS = re.compile("/clipcam/runs")  # the route


def corner_evaluations(corner: tuple[int, int], steps: tuple[int, ...]) -> list[Evaluation]:
    return evaluations_of({step: lit(corner, 1.0)[None] for step in steps}, ["a thing"], ["thing"])


def walking_evaluations() -> list[Evaluation]:
    """Lit at the top left, but for one evaluation in the middle."""
    maps = {step: lit(BOTTOM_RIGHT if step == 300 else TOP_LEFT, 1.0)[None] for step in LONG}
    return evaluations_of(maps, ["a thing"], ["thing"])


def write_resumed(folder: Path) -> None:
    """Write a run that went to step 40 and was resumed at step 20 with another map."""
    for i, part in enumerate(
        [corner_evaluations(TOP_LEFT, (0, 10, 20, 30, 40)), corner_evaluations(BOTTOM_RIGHT, (20, 30))]
    ):
        write_run(folder, part)
        (written,) = (file for file in folder.iterdir() if not file.name.endswith("host"))
        written.rename(folder / f"events.out.tfevents.{i}.host")  # so that TensorBoard reads them in this order


def is_lit(tab: Tab, name: str, step: int, corner: tuple[int, int]) -> bool:
    """Whether this corner is brighter than the opposite one in the view of heat."""
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
    listed = {name.removesuffix(" (alarm)") for name in tab.options("Run")}
    assert {"known", "long", "resumed", "trained/run", "twice", "twice · words"} <= listed
    tab.view("Heat")
    for run, corner in (("clipcam@twice", TOP_LEFT), ("clipcam_words@twice", BOTTOM_RIGHT)):
        tab.choose("Run", run)
        expect(tab.cell("thing", 10)).to_be_visible()
        until(partial(is_lit, tab, "thing", 10, corner), f"{run} is shown")
    tab.choose("Run", "clipcam@known")
    expect(tab.cell("walks", 20)).to_be_visible()
    assert sorted(tab.order()) == sorted(NAMES)


def test_shows_a_training_with_the_callback(tab: Tab) -> None:
    tab.fresh(run="clipcam@trained/run")
    assert len(tab.order()) == 3
    expect(tab.grid).to_have_attribute("aria-colcount", str(1 + 3))
    assert all(pixels(tab.cell(name, 8)).std() > 5 for name in tab.order())


def test_a_resumed_run_replaces_the_later_steps_of_the_run_before(tab: Tab) -> None:
    tab.fresh(run="clipcam@resumed", view="heat")
    expect(tab.grid).to_have_attribute("aria-colcount", str(1 + len(STEPS)))
    expect(tab.title).to_have_text("step 30, epoch 1 (4 of 4)")
    assert [is_lit(tab, "thing", step, BOTTOM_RIGHT) for step in STEPS] == [False, False, True, True]
    assert [is_lit(tab, "thing", step, TOP_LEFT) for step in STEPS] == [True, True, False, False]


def test_shows_all_of_sixty_evaluations(tab: Tab) -> None:
    tab.fresh(run="clipcam@long", view="heat")
    expect(tab.grid).to_have_attribute("aria-colcount", "61")
    expect(tab.cell("thing", LONG[-1])).to_be_in_viewport()
    expect(tab.title).to_contain_text("(60 of 60)")
    steps = set()
    for place in (0, 0.25, 0.5, 0.75, 1):
        tab.scroll(across=place)
        steps |= {label.split(",")[1] for label in tab.labels()}
    assert steps == {f" step {step}" for step in LONG}
    tab.slider.fill("30")
    expect(tab.cell("thing", 300)).to_be_in_viewport()
    assert is_lit(tab, "thing", 300, BOTTOM_RIGHT)
    assert is_lit(tab, "thing", 290, TOP_LEFT)
    tab.slider.fill("59")
    tab.scroll(across=0)
    with tab.page.expect_response("**/evaluations?*"):
        tab.reload_data()
    tab.ready()
    expect(tab.cell("thing", 0)).to_be_in_viewport()


def test_a_growing_run_shows_new_evaluations_and_the_player_follows_from_the_last_one(
    tab: Tab, board: str, logs: Path, request: pytest.FixtureRequest
) -> None:
    run = f"written-{request.node.callspec.params['board']}"
    written = evaluations_of(random_maps(EVERY, 40), [f"thing {i}" for i in range(40)])
    writer = SummaryWriter(logs / run)
    sink = TabSink(writer, "clipcam")
    for evaluation in written[:2]:
        sink.write(evaluation)
    wait_for(board, run, EVERY[:2])
    tab.fresh(run=f"clipcam@{run}")
    expect(tab.title).to_contain_text("step 10, epoch 1 (2 of 2)")

    sink.write(written[2])
    wait_for(board, run, EVERY[:3])
    tab.reload_data()
    expect(tab.title).to_contain_text("step 20, epoch 2 (3 of 3)")
    name = tab.ready().order()[0]
    assert (pixels(tab.cell(name, 20)) == pixels(tab.current(name))).all()

    tab.grid.focus()
    tab.page.keyboard.press("ArrowLeft")
    tab.page.keyboard.press("ArrowDown")
    sink.write(written[3])
    wait_for(board, run, EVERY[:4])
    tab.reload_data(by="timer")
    expect(tab.title).to_contain_text("step 10, epoch 1 (2 of 4)")
    focused = tab.frame.evaluate("document.activeElement.ariaLabel")
    assert focused.startswith(f"{tab.order()[1]}, step 10, "), "new data must not move the focus"

    sink.write(written[4])
    wait_for(board, run, EVERY)
    tab.scroll(down=1)  # without a reload: the rows that arrive have one more evaluation than the page
    expect(tab.title).to_contain_text("step 10, epoch 1 (2 of 5)")
    expect(tab.head(40)).to_be_visible()
    expect(tab.grid).to_have_attribute("aria-colcount", "6")
    writer.close()


def test_a_run_that_cannot_be_read_leaves_the_comparison_as_it_was(
    tab: Tab, board: str, logs: Path, request: pytest.FixtureRequest
) -> None:
    run = f"compared-{request.node.callspec.params['board']}"
    written = corner_evaluations(TOP_LEFT, (0, 10, 20))
    writer = SummaryWriter(logs / run)
    sink = TabSink(writer, "clipcam")
    for evaluation in written[:2]:
        sink.write(evaluation)
    wait_for(board, run, (0, 10))
    tab.fresh(run=f"clipcam@{run}", compare="clipcam@long")
    expect(tab.grid).to_have_attribute("aria-colcount", "61")
    tab.scroll(across=0)
    sink.write(written[2])
    wait_for(board, run, (0, 10, 20))
    tab.page.route(
        "**/evaluations?*long*", lambda route: route.fulfill(status=500, content_type="text/plain", body="not now")
    )
    tab.reload_data()
    expect(tab.message).to_contain_text("not now")
    assert "no evaluation" in (tab.cell("thing", 20).first.get_attribute("aria-label") or ""), (
        "both runs stay as they were"
    )
    tab.page.unroute("**/evaluations?*long*")
    tab.reload_data()
    expect(tab.message).to_be_hidden()
    label = tab.cell("thing", 20).first
    expect(label).to_have_accessible_name(re.compile("drift"))
    assert all("500" in noise for noise in tab.noise)
    tab.noise.clear()


def test_keys_work_after_a_click_on_the_tab(tab: Tab, board: str) -> None:
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


def test_an_emptied_log_directory_shows_no_old_run(tab: Tab) -> None:
    tab.page.route(RUNS, lambda route: route.fulfill(json={"runs": []}))
    tab.reload_data()
    expect(tab.message).to_contain_text("There are no CLIP CAM maps")
    expect(tab.grid).to_be_hidden()
    expect(tab.headline).to_be_hidden()
    tab.page.unroute(RUNS)
    tab.reload_data()
    expect(tab.cell("walks", 20)).to_be_visible()
    expect(tab.message).to_be_hidden()


def test_a_link_to_a_missing_run_shows_another_and_a_note(tab: Tab) -> None:
    tab.fresh(run="clipcam@gone")
    expect(tab.headline).to_contain_text("There is no run \u2068gone\u2069 in this log directory")
    tab.choose("Run", "clipcam@long")  # another than the one with an alarm, which is shown
    expect(tab.headline).not_to_contain_text("gone")
