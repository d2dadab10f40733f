"""What is said of maps is what the callback found: figures, alarms, orders, and which probe of which run is which."""

import re
from collections.abc import Iterator
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from playwright.sync_api import Browser, Route, expect

from clipcam_lightning.drift.compare import DriftReport, ProbeDrift
from clipcam_lightning.monitoring.evaluation import Evaluation
from tests.support.boards import tensorboard, wait_for
from tests.support.known_maps import (
    BOTTOM_LEFT,
    NAMES,
    PROMPTS,
    STEPS,
    TOP_LEFT,
    known_evaluations,
    known_maps,
    lit,
    pictures,
)
from tests.support.synthetic_evaluations import evaluations_of, random_maps, write_run
from tests.support.tab_page import Tab, all_pixels, pixels

KNOWN, MANY, OTHER, SHUFFLED, FILED = (f"clipcam@{run}" for run in ("known", "many", "other", "shuffled", "filed"))
MANY_NAMES = [f"probe-{i}" for i in range(40)]
REPORTS = [evaluation.report for evaluation in known_evaluations()]
LAST = REPORTS[-1]
SHUFFLED_STEPS = (0, 20, 40)  # of which the other run has all but the last, and steps of its own besides


def many_evaluations(seed: int, names: list[str] = MANY_NAMES) -> list[Evaluation]:
    """More probes than come with the first answer."""
    return evaluations_of(random_maps(STEPS, 40, seed=seed), [f"a photo of {name}" for name in names], names)


def shuffled_evaluations() -> list[Evaluation]:
    """The known probes but one, in another order and under other names, and one that is new."""
    order = [NAMES.index(name) for name in reversed(NAMES) if name != "slow"]
    own = known_maps()
    maps = {step: own[min(step, 30)][[*order, 0]] for step in SHUFFLED_STEPS}
    digests = [*(f"digest of {NAMES[i]}" for i in order), "digest of something new"]
    names = [*(f"my {NAMES[i]}" for i in order), "new"]
    return evaluations_of(maps, [*(PROMPTS[i] for i in order), "new"], names, pictures()[[*order, 0]], digests=digests)


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder: Path = tmp_path_factory.mktemp("logs")
    write_run(folder / "known", known_evaluations())
    write_run(folder / "many", many_evaluations(seed=1))
    write_run(folder / "other", many_evaluations(seed=2, names=[*MANY_NAMES[:-3], "x", "y", "z"]))
    write_run(folder / "shuffled", shuffled_evaluations())
    write_run(folder / "filed", known_evaluations(baseline=BOTTOM_LEFT)[1:2])
    still, near = lit(TOP_LEFT, 1.0), lit((0, 1), 1.0)  # in the same third of five columns
    write_run(folder / "vanished", evaluations_of({0: still[None], 10: 0 * still[None]}, ["a"]))
    write_run(folder / "near", evaluations_of({0: still[None], 10: near[None]}, ["a"]))
    with tensorboard("--logdir", folder) as url:
        for run in ("known", "many", "other"):
            wait_for(url, run, STEPS)
        wait_for(url, "shuffled", SHUFFLED_STEPS)
        wait_for(url, "filed", STEPS[1:2])
        for run in ("vanished", "near"):
            wait_for(url, run, (0, 10))
        yield url


@pytest.fixture(scope="module")
def opened(browser: Browser, board: str) -> Iterator[Tab]:
    with Tab(browser, board, viewport={"width": 1500, "height": 1800}) as tab:
        yield tab.open(run=KNOWN)


@pytest.fixture
def tab(opened: Tab) -> Iterator[Tab]:
    yield opened.fresh(run=KNOWN)
    noise, opened.noise = opened.noise, []
    assert noise == []


def said(value: float, digits: int = 2) -> str:
    """A float32, rounded as JavaScript does."""
    return str(Decimal(float(np.float32(value))).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP))


def drift_of(probe: ProbeDrift) -> str:
    return "unknown" if not probe.has_valid_baseline else said(probe.drift)


def by_drift(report: DriftReport) -> list[str]:
    """The furthest first, who cannot be judged last."""
    return [
        probe.name
        for probe in sorted(report.probes, key=lambda probe: (not probe.has_valid_baseline, -np.float32(probe.drift)))
    ]


def test_each_cell_tells_drift_and_alarm_of_its_probe_at_its_evaluation(tab: Tab) -> None:
    expected = {
        f"{probe.name}, step {report.step}, epoch {epoch}: drift {drift_of(probe)}"
        + (", breaks the rule" if probe.flagged else "")
        for epoch, report in enumerate(REPORTS)
        for probe in report.probes
    }
    assert sorted(tab.labels()) == sorted(expected)
    assert "breaks the rule" in "".join(expected)


def test_a_evaluation_that_is_an_alarm_is_marked_at_its_head_and_below_the_player(tab: Tab) -> None:
    for report in REPORTS:
        label = tab.head(report.step).get_attribute("aria-label") or ""
        assert label.endswith(", alarm") == report.alarm
    expect(tab.player.locator(".marks span")).to_have_count(sum(report.alarm for report in REPORTS))


def test_probes_are_sorted_by_drift_similarity_or_name(tab: Tab) -> None:
    assert tab.order() == by_drift(LAST)
    tab.choose("Sort", "similarity")
    assert tab.order() == [probe.name for probe in sorted(LAST.probes, key=lambda probe: probe.similarity)]
    tab.choose("Sort", "name")
    assert tab.order() == sorted(NAMES)


def test_of_many_probes_the_first_by_drift_are_in_sight_and_the_last_when_one_scrolls(tab: Tab) -> None:
    tab.fresh(run=MANY)
    expected = by_drift(many_evaluations(seed=1)[-1].report)
    top = tab.order()
    assert top == expected[: len(top)]
    tab.scroll(down=1)
    bottom = tab.order()
    assert bottom == expected[-len(bottom) :]
    assert bottom[-1] not in top
    tab.choose("Sort", "name")
    tab.scroll(down=0)
    assert tab.order()[:3] == ["probe-0", "probe-1", "probe-2"], "numbers in names count as numbers"


def test_a_row_that_is_still_to_come_shows_nothing_of_the_rows_before(tab: Tab) -> None:
    tab.fresh(run=MANY)
    before = tab.order()
    assert all(shown[..., 3].all() for shown in all_pixels(tab).values())
    tab.page.route("**/rows?*", lambda route: None)  # which goes on at the end
    tab.scroll(down=1, wait=False)
    came = {key: shown for key, shown in all_pixels(tab).items() if key[0] not in before}
    assert len(came) > 4 * len(STEPS)
    assert not any(shown.any() for shown in came.values())
    tab.page.unroute("**/rows?*")
    tab.ready()
    assert all(shown[..., 3].all() for shown in all_pixels(tab).values())


def test_rows_that_fail_hold_no_other_up_and_are_asked_for_again(tab: Tab) -> None:
    tab.fresh(run=MANY)
    asked: list[str] = []

    def answer(route: Route) -> None:
        asked.append(route.request.url)
        if len(asked) == 1:
            route.fulfill(status=500, content_type="text/plain", body="out of order")
        else:
            route.continue_()

    tab.page.route("**/rows?*", answer)
    tab.scroll(down=1, wait=False)
    expect(tab.message).to_contain_text("out of order")
    failed = set(parse_qs(urlsplit(asked[0]).query)["probe"])
    others = [name for name in tab.order() if name not in failed]
    for name in others[-3:]:
        expect(tab.cell(name, 0)).not_to_have_class(re.compile("waiting"))
    expect(tab.message).to_contain_text("out of order")
    tab.ready()
    expect(tab.message).to_be_hidden()
    tab.page.unroute("**/rows?*")
    assert all("500" in noise for noise in tab.noise)
    tab.noise.clear()


def test_a_run_that_has_other_probes_by_now_is_read_again(tab: Tab) -> None:
    tab.fresh(run=MANY)
    tab.page.route(
        "**/rows?*", lambda route: route.fulfill(status=404, content_type="text/plain", body="no such probe"), times=1
    )
    with tab.page.expect_request("**/looks?*"):
        tab.scroll(down=1, wait=False)
    expect(tab.message).to_contain_text("no such probe")  # which is still true: nothing is new
    tab.ready()
    expect(tab.message).to_be_hidden()
    assert all("404" in noise for noise in tab.noise)
    tab.noise.clear()


def test_space_plays_in_the_large_view_too(tab: Tab) -> None:
    tab.cell("walks", 0).click()
    tab.stage.wait_for()
    tab.page.keyboard.press(" ")
    expect(tab.title).to_contain_text("(4 of 4)")
    expect(tab.detail).to_have_accessible_name("walks")
    tab.page.keyboard.press("Escape")
    tab.present("walks").click()
    expect(tab.detail).to_have_accessible_name("walks")


def test_runs_without_a_probe_in_common_say_so(tab: Tab) -> None:
    tab.fresh(run=KNOWN, beside=MANY)
    expect(tab.grid.get_by_text("The two runs have no probe in common.")).to_be_in_viewport()


def test_a_filter_leaves_the_probes_with_all_of_its_words_in_name_or_prompt(tab: Tab) -> None:
    entry = tab.root.get_by_label("Filter")
    entry.fill("FADES photo")
    assert tab.order() == ["fades"]
    entry.fill("photo w")
    assert set(tab.order()) == set(NAMES), "each prompt says what"
    entry.fill("nothing is called so")
    assert tab.order() == []
    expect(tab.grid.get_by_text("No probe has all the words of the filter")).to_be_in_viewport()
    tab.grid.focus()
    tab.page.keyboard.press("Enter")  # there is nothing to open
    expect(tab.grid).to_contain_text("0 of 6 probes")
    entry.fill("")
    assert set(tab.order()) == set(NAMES)


def test_the_headline_names_the_alarm_the_worst_probe_and_where_its_map_went(tab: Tab) -> None:
    text = tab.headline.inner_text()
    first = next(report for report in REPORTS if report.alarm)
    assert f"Alarm since step {first.step}" in text
    assert f"{len(LAST.flagged)} of {len(NAMES)} probes break the rule" in text
    assert f"{LAST.worst.name} moved most: drift {said(LAST.worst.drift)}" in text
    assert "between steps 0 and 10" in text, "when it moved"
    assert re.search(r"to the bottom right \(\+\d+\s% .*from the top left \(\N{MINUS SIGN}\d+\s%", text)


@pytest.mark.parametrize(
    ("run", "words"),
    [
        ("vanished", "has no heat to follow."),
        ("near", "; no part of the picture gained 5\N{NO-BREAK SPACE}% of its map."),
    ],
)
def test_the_headline_names_no_place_where_there_is_none(tab: Tab, run: str, words: str) -> None:
    tab.fresh(run=f"clipcam@{run}")
    text = tab.headline.inner_text()
    assert "moved most" in text
    assert words in text
    assert "to the" not in text


def test_the_headline_says_that_there_is_no_alarm(tab: Tab) -> None:
    tab.fresh(run=MANY)
    last = many_evaluations(seed=1)[-1].report
    assert not last.alarm, "or the test is of no use"
    text = tab.headline.inner_text()
    assert "No alarm at the last look" in text
    assert f"{last.worst.name} moved most: drift {said(last.worst.drift)}" in text


def test_one_evaluation_against_a_baseline_of_a_file_is_something_to_compare(tab: Tab) -> None:
    tab.fresh(run=FILED)
    (evaluation,) = known_evaluations(baseline=BOTTOM_LEFT)[1:2]
    text = tab.headline.inner_text()
    assert f"{evaluation.report.worst.name} moved most: drift {said(evaluation.report.worst.drift)}" in text
    assert "Alarm since step 10" in text


def test_the_slider_and_the_arrows_move_all_probes_through_time(tab: Tab) -> None:
    expect(tab.title).to_have_text("step 30, epoch 3 (4 of 4)")
    tab.slider.fill("1")
    expect(tab.title).to_have_text("step 10, epoch 1 (2 of 4)")
    tab.page.keyboard.press("ArrowRight")
    expect(tab.title).to_have_text("step 20, epoch 2 (3 of 4)")
    tab.grid.focus()
    tab.page.keyboard.press("ArrowLeft")
    tab.page.keyboard.press("ArrowLeft")
    tab.page.keyboard.press("ArrowLeft")
    expect(tab.title).to_have_text("step 0, epoch 0 (1 of 4)")
    for name in NAMES:
        assert np.array_equal(pixels(tab.present(name)), pixels(tab.cell(name, 0)))
    tab.head(20).click()
    expect(tab.title).to_have_text("step 20, epoch 2 (3 of 4)")
    assert tab.slider.input_value() == "2"


def test_space_plays_all_evaluations_in_order_and_then_stops(tab: Tab) -> None:
    tab.title.evaluate(
        "title => { window.told = []; new MutationObserver(() => window.told.push(title.textContent))"
        ".observe(title, { childList: true }); }"
    )
    tab.grid.focus()
    tab.page.keyboard.press(" ")
    tab.frame.wait_for_function("window.told.at(-1)?.includes('(4 of 4)')")
    expect(tab.play).to_have_accessible_name(re.compile("^Play"))
    told = tab.frame.evaluate("window.told.filter((text, i, all) => text !== all[i - 1])")
    assert told == [f"step {step}, epoch {i} ({i + 1} of 4)" for i, step in enumerate(STEPS)]


def test_space_pauses(tab: Tab) -> None:
    tab.grid.focus()
    tab.page.keyboard.press(" ")
    expect(tab.play).to_have_accessible_name(re.compile("^Pause"))
    expect(tab.title).to_have_attribute("aria-live", "off")
    tab.page.keyboard.press(" ")
    expect(tab.play).to_have_accessible_name(re.compile("^Play"))
    expect(tab.title).to_have_attribute("aria-live", "polite")
    before = tab.title.inner_text()
    tab.frame.evaluate("new Promise(done => setTimeout(done, 600))")  # two looks' time
    assert tab.title.inner_text() == before != "step 30, epoch 3 (4 of 4)"


TABLE = {  # what a line's label begins with, which figure it tells, and with how many digits
    "Drift from": ("drift", 2),
    "Drift in units": ("noise_ratio", 1),
    "Common gain": ("shared_gain", 2),
    "Gain in one spot": ("concentration", 2),
    "Top-20 % IoU": ("top_iou", 2),
    "Centre shift": ("center_shift", 2),
    "Similarity": ("similarity", 3),
}


@pytest.mark.parametrize(("name", "step"), [("walks", 20), ("fades", 10), ("vanishes", 30), ("blind", 30)])
def test_the_detail_tells_what_the_report_does(tab: Tab, name: str, step: int) -> None:
    report = REPORTS[STEPS.index(step)]
    probe = next(probe for probe in report.probes if probe.name == name)
    tab.cell(name, step).click()
    expect(tab.detail).to_be_visible()
    expect(tab.detail).to_have_accessible_name(name)
    expect(tab.detail.get_by_text(probe.prompt, exact=True)).to_be_visible()
    expect(tab.detail.get_by_text(f"step {step}, epoch {STEPS.index(step)}")).to_be_visible()
    expect(tab.detail.get_by_text("baseline: step 0")).to_be_visible()
    expected = {label: getattr(probe, figure) for label, (figure, _) in TABLE.items()}
    if not probe.has_valid_baseline:
        expected["Drift from"] = np.nan
    figures = tab.figures()
    for label, value in expected.items():
        shown = [text for key, text in figures.items() if key.startswith(label)]
        assert shown == ([] if np.isnan(value) else [said(value, TABLE[label][1])]), label
    words = tab.detail.inner_text()
    assert ("Breaks the rule" in words) == probe.flagged
    assert probe.reason in words
    assert probe.degenerate in words


def test_arrows_go_from_probe_to_probe_and_escape_goes_back(tab: Tab) -> None:
    order = tab.order()
    cell = tab.cell(order[2], 10)
    cell.click()
    expect(tab.detail).to_have_accessible_name(order[2])
    tab.page.keyboard.press("ArrowDown")
    expect(tab.detail).to_have_accessible_name(order[3])
    tab.page.keyboard.press("ArrowUp")
    tab.page.keyboard.press("ArrowUp")
    expect(tab.detail).to_have_accessible_name(order[1])
    for _ in order:
        tab.page.keyboard.press("ArrowUp")
    expect(tab.detail).to_have_accessible_name(order[0])
    tab.page.keyboard.press("Escape")
    expect(tab.detail).to_be_hidden()
    expect(cell).to_be_focused()
    tab.page.keyboard.press("ArrowDown")
    expect(tab.cell(order[3], 10)).to_be_focused()


def test_two_runs_are_matched_by_what_their_probes_are_not_by_name_or_order(tab: Tab) -> None:
    tab.choose("Beside", SHUFFLED)
    expect(tab.grid).to_have_attribute("aria-rowcount", "11")
    matched = [name for name in by_drift(LAST) if name != "slow"]
    assert tab.order() == [label for name in matched for label in (name, f"my {name}")]
    assert "1 probe of the first run is not in the second" in tab.root.inner_text()
    for name in matched:
        assert np.array_equal(pixels(tab.cell(name, 20)), pixels(tab.cell(f"my {name}", 20)))
    lines = tab.headline.locator("p").all_inner_texts()
    assert "walks moved most" in lines[0]
    assert "my " in lines[1]


def test_a_step_that_only_one_run_has_is_absent_in_the_other(tab: Tab) -> None:
    tab.choose("Beside", SHUFFLED)
    expect(tab.grid).to_have_attribute("aria-colcount", str(1 + 5))
    for step in (0, 10, 20, 30, 40):
        for name, steps in (("walks", STEPS), ("my walks", SHUFFLED_STEPS)):
            label = tab.cell(name, step).get_attribute("aria-label") or ""
            assert ("has no look" in label) == (step not in steps)
    tab.cell("walks", 40).click()
    expect(tab.stage).to_have_count(2)
    expect(tab.detail).to_contain_text("now: step 30")  # the last that it has
    expect(tab.detail).to_contain_text("now: step 40")
    tab.page.keyboard.press("Escape")


def test_how_many_probes_have_no_partner_stays_said_when_more_rows_have_come(tab: Tab) -> None:
    tab.fresh(run=MANY, beside=OTHER)
    for place in (1, 0.5, 0):
        tab.scroll(down=place)
        expect(tab.headline).to_contain_text("3 probes of the first run are not in the second")
