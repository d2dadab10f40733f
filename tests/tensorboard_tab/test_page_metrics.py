"""The page shows what the callback measured: metrics, flags, alarms, the order of probes, and pairs of runs."""

import re
from collections.abc import Iterator
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from playwright.sync_api import Browser, Route, expect

from clipcam_lightning.drift.probe_drift import ProbeDrift
from clipcam_lightning.drift.report import DriftReport
from clipcam_lightning.monitoring.evaluation import Evaluation
from tests.support.boards import tensorboard, wait_for
from tests.support.known_maps import (
    BOTTOM_LEFT,
    NAMES,
    PROMPTS,
    STEPS,
    TOP_LEFT,
    images,
    known_evaluations,
    known_maps,
    lit,
)
from tests.support.synthetic_evaluations import evaluations_of, random_maps, write_run
from tests.support.tab_page import Tab, all_pixels, pixels

KNOWN, MANY, OTHER, SHUFFLED, STORED = (f"clipcam@{run}" for run in ("known", "many", "other", "shuffled", "stored"))
MANY_NAMES = [f"probe-{i}" for i in range(40)]
REPORTS = [evaluation.report for evaluation in known_evaluations()]
LAST = REPORTS[-1]
SHUFFLED_STEPS = (0, 20, 40)  # the known run has the first two of them, and others


def many_evaluations(seed: int, names: list[str] = MANY_NAMES) -> list[Evaluation]:
    """More probes than the first response holds."""
    return evaluations_of(random_maps(STEPS, 40, seed=seed), [f"a photo of {name}" for name in names], names)


def shuffled_evaluations() -> list[Evaluation]:
    """The known probes but one, in another order and with other names, and a new one."""
    order = [NAMES.index(name) for name in reversed(NAMES) if name != "slow"]
    maps_by_step = known_maps()
    maps = {step: maps_by_step[min(step, 30)][[*order, 0]] for step in SHUFFLED_STEPS}
    digests = [*(f"digest of {NAMES[i]}" for i in order), "digest of something new"]
    names = [*(f"my {NAMES[i]}" for i in order), "new"]
    return evaluations_of(maps, [*(PROMPTS[i] for i in order), "new"], names, images()[[*order, 0]], digests=digests)


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder: Path = tmp_path_factory.mktemp("logs")
    write_run(folder / "known", known_evaluations())
    write_run(folder / "many", many_evaluations(seed=1))
    write_run(folder / "other", many_evaluations(seed=2, names=[*MANY_NAMES[:-3], "x", "y", "z"]))
    write_run(folder / "shuffled", shuffled_evaluations())
    write_run(folder / "stored", known_evaluations(baseline=BOTTOM_LEFT)[1:2])
    still, near = lit(TOP_LEFT, 1.0), lit((0, 1), 1.0)  # in the same third of five columns
    write_run(folder / "vanished", evaluations_of({0: still[None], 10: 0 * still[None]}, ["a"]))
    write_run(folder / "near", evaluations_of({0: still[None], 10: near[None]}, ["a"]))
    with tensorboard("--logdir", folder) as url:
        for run in ("known", "many", "other"):
            wait_for(url, run, STEPS)
        wait_for(url, "shuffled", SHUFFLED_STEPS)
        wait_for(url, "stored", STEPS[1:2])
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


def rounded(value: float, digits: int = 2) -> str:
    """Format a float32 as JavaScript's ``toFixed``."""
    return str(Decimal(float(np.float32(value))).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP))


def drift_of(probe: ProbeDrift) -> str:
    return "unknown" if not probe.has_valid_baseline else rounded(probe.drift)


def by_drift(report: DriftReport) -> list[str]:
    """Sort the names by drift, descending, unknown drift last."""
    return [
        probe.name
        for probe in sorted(report.probes, key=lambda probe: (not probe.has_valid_baseline, -np.float32(probe.drift)))
    ]


def flagged_first(report: DriftReport) -> list[str]:
    """Sort the names: flagged first, unknown drift last, then by drift, descending."""
    return [report.probes[i].name for i in report.flagged_first]


def test_each_cell_shows_the_drift_of_its_probe_and_whether_it_is_flagged(tab: Tab) -> None:
    expected = {
        f"{probe.name}, step {report.step}, epoch {epoch}: drift {drift_of(probe)}"
        + (", flagged" if probe.flagged else "")
        + (f", {probe.state.words}" if probe.state.is_degenerate else "")
        for epoch, report in enumerate(REPORTS)
        for probe in report.probes
    }
    assert sorted(tab.labels()) == sorted(expected)
    assert any(label.endswith(", flagged") for label in expected)


def test_an_alarm_is_marked_in_the_column_head_and_below_the_player(tab: Tab) -> None:
    for report in REPORTS:
        label = tab.head(report.step).get_attribute("aria-label") or ""
        assert label.endswith(", alarm") == report.alarm
    expect(tab.player.locator(".marks span")).to_have_count(sum(report.alarm for report in REPORTS))


def test_probes_are_sorted_by_flag_drift_similarity_or_name(tab: Tab) -> None:
    assert tab.order() == flagged_first(LAST)
    tab.choose("Sort", "drift")
    assert tab.order() == by_drift(LAST)
    tab.choose("Sort", "similarity")
    assert tab.order() == [probe.name for probe in sorted(LAST.probes, key=lambda probe: probe.similarity)]
    tab.choose("Sort", "name")
    assert tab.order() == sorted(NAMES)


def test_many_probes_start_with_the_flagged_ones_and_end_with_the_last_after_scrolling(tab: Tab) -> None:
    tab.fresh(run=MANY)
    expected = flagged_first(many_evaluations(seed=1)[-1].report)
    top = tab.order()
    assert top == expected[: len(top)]
    tab.scroll(down=1)
    bottom = tab.order()
    assert bottom == expected[-len(bottom) :]
    assert bottom[-1] not in top
    tab.choose("Sort", "name")
    tab.scroll(down=0)
    assert tab.order()[:3] == ["probe-0", "probe-1", "probe-2"], "numbers in names sort by value"


def test_a_row_that_has_not_arrived_is_empty(tab: Tab) -> None:
    tab.fresh(run=MANY)
    before = tab.order()
    assert all(shown[..., 3].all() for shown in all_pixels(tab).values())
    tab.page.route("**/rows?*", lambda route: None)  # held until it is unrouted
    tab.scroll(down=1, wait=False)
    new = {key: shown for key, shown in all_pixels(tab).items() if key[0] not in before}
    assert len(new) > 4 * len(STEPS)
    assert not any(shown.any() for shown in new.values())
    tab.page.unroute("**/rows?*")
    tab.ready()
    assert all(shown[..., 3].all() for shown in all_pixels(tab).values())


def test_failed_rows_do_not_block_others_and_are_requested_again(tab: Tab) -> None:
    tab.fresh(run=MANY)
    requested: list[str] = []

    def respond(route: Route) -> None:
        requested.append(route.request.url)
        if len(requested) == 1:
            route.fulfill(status=500, content_type="text/plain", body="out of order")
        else:
            route.continue_()

    tab.page.route("**/rows?*", respond)
    tab.scroll(down=1, wait=False)
    expect(tab.message).to_contain_text("out of order")
    failed = set(parse_qs(urlsplit(requested[0]).query)["probe"])
    others = [name for name in tab.order() if name not in failed]
    for name in others[-3:]:
        expect(tab.cell(name, 0)).not_to_have_class(re.compile("waiting"))
    expect(tab.message).to_contain_text("out of order")
    tab.ready()
    expect(tab.message).to_be_hidden()
    tab.page.unroute("**/rows?*")
    assert all("500" in noise for noise in tab.noise)
    tab.noise.clear()


def test_a_run_whose_probes_have_changed_is_read_again(tab: Tab) -> None:
    tab.fresh(run=MANY)
    tab.page.route(
        "**/rows?*", lambda route: route.fulfill(status=404, content_type="text/plain", body="no such probe"), times=1
    )
    with tab.page.expect_request("**/evaluations?*"):
        tab.scroll(down=1, wait=False)
    expect(tab.message).to_contain_text("no such probe")  # until the rows arrive: the run itself is unchanged
    tab.ready()
    expect(tab.message).to_be_hidden()
    assert all("404" in noise for noise in tab.noise)
    tab.noise.clear()


def test_space_plays_in_the_large_view(tab: Tab) -> None:
    tab.cell("walks", 0).click()
    tab.stage.wait_for()
    tab.page.keyboard.press(" ")
    expect(tab.title).to_contain_text("(4 of 4)")
    expect(tab.detail).to_have_accessible_name("walks")
    tab.page.keyboard.press("Escape")
    tab.current("walks").click()
    expect(tab.detail).to_have_accessible_name("walks")


def test_runs_without_a_common_probe_show_a_message(tab: Tab) -> None:
    tab.fresh(run=KNOWN, compare=MANY)
    expect(tab.grid.get_by_text("The two runs have no probe in common.")).to_be_in_viewport()


def test_the_filter_keeps_probes_with_all_its_words_in_name_or_prompt(tab: Tab) -> None:
    entry = tab.root.get_by_label("Filter")
    entry.fill("FADES photo")
    assert tab.order() == ["fades"]
    entry.fill("photo w")
    assert set(tab.order()) == set(NAMES), "each prompt contains both"
    entry.fill("no such name")
    assert tab.order() == []
    expect(tab.grid.get_by_text("No probe has all the words of the filter")).to_be_in_viewport()
    tab.grid.focus()
    tab.page.keyboard.press("Enter")  # there is nothing to open
    expect(tab.grid).to_contain_text("0 of 6 probes")
    entry.fill("")
    assert set(tab.order()) == set(NAMES)


def test_the_headline_names_the_alarm_the_largest_drift_and_where_the_map_went(tab: Tab) -> None:
    text = tab.headline.inner_text()
    first = next(report for report in REPORTS if report.alarm)
    assert f"Alarm since step {first.step}" in text
    assert f"{len(LAST.flagged)} of {len(NAMES)} probes are flagged" in text
    assert f"{LAST.worst.name} moved most: drift {rounded(LAST.worst.drift)}" in text
    assert "between steps 0 and 10" in text
    assert re.search(r"to the bottom right \(\+\d+\s% .*from the top left \(\N{MINUS SIGN}\d+\s%", text)


@pytest.mark.parametrize(
    ("run", "words"),
    [
        ("vanished", "; its map or that of its baseline has no positive value."),
        ("near", "; no part of the image gained 5\N{NO-BREAK SPACE}% of the map."),
    ],
)
def test_the_headline_names_no_place_if_the_map_has_none(tab: Tab, run: str, words: str) -> None:
    tab.fresh(run=f"clipcam@{run}")
    text = tab.headline.inner_text()
    assert "moved most" in text
    assert words in text
    assert "to the" not in text


def test_the_headline_states_that_there_is_no_alarm(tab: Tab) -> None:
    tab.fresh(run=MANY)
    last = many_evaluations(seed=1)[-1].report
    assert not last.alarm, "otherwise this test checks nothing"
    text = tab.headline.inner_text()
    assert "No alarm at the last evaluation" in text
    assert f"{last.worst.name} moved most: drift {rounded(last.worst.drift)}" in text


def test_a_single_evaluation_is_compared_with_a_stored_baseline(tab: Tab) -> None:
    tab.fresh(run=STORED)
    (evaluation,) = known_evaluations(baseline=BOTTOM_LEFT)[1:2]
    text = tab.headline.inner_text()
    assert f"{evaluation.report.worst.name} moved most: drift {rounded(evaluation.report.worst.drift)}" in text
    assert "Alarm since step 10" in text


def test_slider_and_arrow_keys_move_all_probes_through_time(tab: Tab) -> None:
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
        assert np.array_equal(pixels(tab.current(name)), pixels(tab.cell(name, 0)))
    tab.head(20).click()
    expect(tab.title).to_have_text("step 20, epoch 2 (3 of 4)")
    assert tab.slider.input_value() == "2"


def test_space_plays_all_evaluations_in_order_and_stops(tab: Tab) -> None:
    tab.title.evaluate(
        "title => { window.titles = []; new MutationObserver(() => window.titles.push(title.textContent))"
        ".observe(title, { childList: true }); }"
    )
    tab.grid.focus()
    tab.page.keyboard.press(" ")
    tab.frame.wait_for_function("window.titles.at(-1)?.includes('(4 of 4)')")
    expect(tab.play).to_have_accessible_name(re.compile("^Play"))
    titles = tab.frame.evaluate("window.titles.filter((text, i, all) => text !== all[i - 1])")
    assert titles == [f"step {step}, epoch {i} ({i + 1} of 4)" for i, step in enumerate(STEPS)]


def test_space_pauses(tab: Tab) -> None:
    tab.grid.focus()
    tab.page.keyboard.press(" ")
    expect(tab.play).to_have_accessible_name(re.compile("^Pause"))
    expect(tab.title).to_have_attribute("aria-live", "off")
    tab.page.keyboard.press(" ")
    expect(tab.play).to_have_accessible_name(re.compile("^Play"))
    expect(tab.title).to_have_attribute("aria-live", "polite")
    before = tab.title.inner_text()
    tab.frame.evaluate("new Promise(done => setTimeout(done, 600))")  # more than two evaluations
    assert tab.title.inner_text() == before != "step 30, epoch 3 (4 of 4)"


TABLE = {  # start of a line's label, its metric, and digits after the point
    "Drift from": ("drift", 2),
    "Drift in units": ("noise_ratio", 1),
    "Shared gain": ("shared_gain", 2),
    "Concentration": ("concentration", 2),
    "Top-20 % IoU": ("top_iou", 2),
    "Centre shift": ("center_shift", 2),
    "Similarity": ("similarity", 3),
}


@pytest.mark.parametrize(("name", "step"), [("walks", 20), ("fades", 10), ("vanishes", 30), ("unknown", 30)])
def test_the_large_view_shows_the_metrics_of_the_report(tab: Tab, name: str, step: int) -> None:
    report = REPORTS[STEPS.index(step)]
    probe = next(probe for probe in report.probes if probe.name == name)
    tab.cell(name, step).click()
    expect(tab.detail).to_be_visible()
    expect(tab.detail).to_have_accessible_name(name)
    expect(tab.detail.get_by_text(probe.prompt, exact=True)).to_be_visible()
    expect(tab.detail.get_by_text(f"step {step}, epoch {STEPS.index(step)}")).to_be_visible()
    expect(tab.detail.get_by_text("baseline: step 0")).to_be_visible()
    expected = {label: getattr(probe, metric) for label, (metric, _) in TABLE.items()}
    if not probe.has_valid_baseline:
        expected |= {"Drift from": np.nan, "Top-20 % IoU": np.nan}
    if probe.degenerate:
        expected["Centre shift"] = np.nan
    metrics = tab.metrics()
    for label, value in expected.items():
        shown = [text for key, text in metrics.items() if key.startswith(label)]
        assert shown == ([] if np.isnan(value) else [rounded(value, TABLE[label][1])]), label
    for term in tab.detail.get_by_role("table").locator("th > [tabindex]").all():
        term.focus()
        expect(term).to_have_accessible_description(re.compile(r"\w+.*\.$"))
        expect(term.get_by_role("tooltip")).to_be_visible()
    text = tab.detail.inner_text()
    assert ("Flagged: " in text) == probe.flagged
    assert probe.reason in text
    assert probe.degenerate in text


def test_arrows_move_the_large_view_from_probe_to_probe_and_escape_closes_it(tab: Tab) -> None:
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


def test_probes_of_two_runs_are_paired_by_digest_whatever_their_name_or_order(tab: Tab) -> None:
    tab.choose("Compare with", SHUFFLED)
    expect(tab.grid).to_have_attribute("aria-rowcount", "11")
    matched = [name for name in flagged_first(LAST) if name != "slow"]
    assert tab.order() == [label for name in matched for label in (name, f"my {name}")]
    assert "1 probe of the first run is not in the second" in tab.root.inner_text()
    for name in matched:
        assert np.array_equal(pixels(tab.cell(name, 20)), pixels(tab.cell(f"my {name}", 20)))
    lines = tab.headline.locator("p").all_inner_texts()
    assert "walks moved most" in lines[0]
    assert "my " in lines[1]


def test_a_step_of_one_run_has_no_evaluation_in_the_other(tab: Tab) -> None:
    tab.choose("Compare with", SHUFFLED)
    expect(tab.grid).to_have_attribute("aria-colcount", str(1 + 5))
    for step in (0, 10, 20, 30, 40):
        for name, steps in (("walks", STEPS), ("my walks", SHUFFLED_STEPS)):
            label = tab.cell(name, step).get_attribute("aria-label") or ""
            assert ("has no evaluation" in label) == (step not in steps)
    tab.cell("walks", 40).click()
    expect(tab.stage).to_have_count(2)
    expect(tab.detail).to_contain_text("now: step 30")  # its last one
    expect(tab.detail).to_contain_text("now: step 40")
    tab.page.keyboard.press("Escape")


def test_the_number_of_unpaired_probes_stays_shown_when_rows_arrive(tab: Tab) -> None:
    tab.fresh(run=MANY, compare=OTHER)
    for place in (1, 0.5, 0):
        tab.scroll(down=place)
        expect(tab.headline).to_contain_text("3 probes of the first run are not in the second")
