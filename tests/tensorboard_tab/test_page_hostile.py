"""Text of a run is never parsed as markup; unreadable data gives a message and leaves other tabs alone."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from playwright.sync_api import Browser, expect
from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_TENSOR, Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_FLOAT, DT_STRING
from torch.utils.tensorboard import SummaryWriter

from clipcam_lightning.tensorboard_tab import events
from tests.support import hostile
from tests.support.boards import runs, tensorboard, until, wait_for
from tests.support.known_maps import BOTTOM_RIGHT, NAMES, STEPS, TOP_LEFT, known_evaluations, lit
from tests.support.synthetic_evaluations import evaluations_of, random_maps, write_run
from tests.support.tab_page import Tab

TEXTS = {
    **hostile.TEXTS,
    "image": "<img src=x onerror=alert(1)>",
    "end of script": "</script><script>alert(2)</script>",
    "addresses": "<link rel=stylesheet href=http://example.org/x><a ping=http://example.org href=javascript:alert(3)>",
    "override": "\u202eevil",
}
PROMPTS = tuple(TEXTS.values())
NAMES_IN_TAGS = tuple(re.sub("[\ud800-\udfff]", "?", text) for text in PROMPTS if text)  # a tag is UTF-8
RUNS = ("<img src=x onerror=alert(1)>", "\u202eevil", "a\nb", "%2e%2e&run=x#y", "</script><script>alert(2)<", "x" * 200)


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder: Path = tmp_path_factory.mktemp("logs")
    maps = random_maps(STEPS, len(PROMPTS))
    write_run(folder / "prompts", evaluations_of(maps, PROMPTS))
    write_run(
        folder / "names",
        evaluations_of({step: maps[step][: len(NAMES_IN_TAGS)] for step in STEPS}, NAMES_IN_TAGS, NAMES_IN_TAGS),
    )
    override = {0: torch.stack([lit(TOP_LEFT, 1.0)] * 2), 10: torch.stack([lit(BOTTOM_RIGHT, 1.0), lit(TOP_LEFT, 1.0)])}
    write_run(folder / "override", evaluations_of(override, ["a", "b"], ["\u202eevil", "still"]))
    for run in RUNS:
        write_run(folder / run, evaluations_of(random_maps(STEPS, 1), ["a"]))
    with tensorboard("--logdir", folder) as url:
        wait_for(url, "prompts", STEPS)
        wait_for(url, "names", STEPS)
        wait_for(url, "override", (0, 10))
        until(lambda: {run for run, _ in runs(url)} >= set(RUNS), "all runs are read")
        yield url


@pytest.fixture(scope="module")
def opened(browser: Browser, board: str) -> Iterator[Tab]:
    with Tab(browser, board, viewport={"width": 1500, "height": 3600}) as tab:
        yield tab.open(run="clipcam@prompts")


@pytest.fixture
def tab(opened: Tab) -> Iterator[Tab]:
    yield opened
    assert (
        opened.frame.evaluate("document.querySelectorAll('main :is(img, script, a, link, iframe, style)').length") == 0
    )
    assert opened.frame.evaluate("document.documentElement.scrollWidth <= innerWidth")
    noise, opened.noise = opened.noise, []
    assert noise == []


def as_shown(text: str) -> str:
    """Replace lone surrogates as a browser does."""
    return re.sub("[\ud800-\udfff]", "\ufffd", text)


@pytest.mark.parametrize(("run", "texts", "part"), [("prompts", PROMPTS, ".prompt"), ("names", NAMES_IN_TAGS, ".name")])
def test_prompts_and_names_are_shown_as_text_in_rows_of_equal_height(
    tab: Tab, run: str, texts: tuple[str, ...], part: str
) -> None:
    tab.fresh(run=f"clipcam@{run}")
    shown = tab.grid.locator(f"[role=rowheader] {part}").evaluate_all("parts => parts.map(part => part.textContent)")
    assert sorted(map(as_shown, shown)) == sorted(map(as_shown, texts))
    boxes = tab.grid.get_by_role("rowheader").evaluate_all(
        "heads => heads.map(head => head.getBoundingClientRect()).map(({ width, height }) => [width, height])"
    )
    assert len({tuple(box) for box in boxes}) == 1
    parts = tab.grid.locator(f"[role=rowheader] {part}").evaluate_all("parts => parts.map(part => part.clientHeight)")
    assert max(parts) < 30 * (1 if part == ".name" else 3), "few lines"


def test_the_large_view_shows_any_text(tab: Tab) -> None:
    tab.fresh(run="clipcam@names")  # its prompts are the same texts
    for number in range(tab.grid.get_by_role("rowheader").count()):
        tab.grid.locator(f"[data-row='{number}'][data-column='3']").click()
        tab.stage.wait_for()
        assert tab.detail.evaluate("detail => detail.scrollWidth <= detail.clientWidth")
        tab.page.keyboard.press("Escape")
        expect(tab.detail).to_be_hidden()


def test_a_run_of_any_name_can_be_chosen(tab: Tab) -> None:
    for run in RUNS:
        tab.fresh(run=f"clipcam@{run}", compare="clipcam@override")
        assert tab.chosen("Run") == f"clipcam@{run}"
        expect(tab.headline.locator("p")).to_have_count(2)
    tab.fresh(run=f"clipcam@{RUNS[0]}")
    assert tab.order() == ["probe-0"]


def test_a_name_does_not_change_the_direction_of_the_headline(tab: Tab) -> None:
    """An unclosed right-to-left override would turn the text after it."""
    tab.fresh(run="clipcam@override")
    first, last = tab.headline.evaluate(
        """headline => {
          const walker = document.createTreeWalker(headline, NodeFilter.SHOW_TEXT);
          while (!walker.nextNode().textContent.includes('moved most')) continue;
          const start = walker.currentNode.textContent.indexOf('moved');
          return [start, start + 9].map(at => {
            const range = document.createRange();
            range.setStart(walker.currentNode, at);
            range.setEnd(walker.currentNode, at + 1);
            return range.getBoundingClientRect().left;
          });
        }"""
    )
    assert first < last


def value(tag: str, tensor: TensorProto, content: bytes = events.METADATA) -> Summary.Value:
    plugin = SummaryMetadata.PluginData(plugin_name=events.PLUGIN, content=content)
    return Summary.Value(
        tag=tag, tensor=tensor, metadata=SummaryMetadata(plugin_data=plugin, data_class=DATA_CLASS_TENSOR)
    )


def text(content: bytes) -> TensorProto:
    return TensorProto(dtype=DT_STRING, string_val=[content])


def floats(*shape: int, content: bytes | None = None) -> TensorProto:
    sizes = TensorShapeProto(dim=[TensorShapeProto.Dim(size=size) for size in shape])
    content = np.zeros(shape, np.float32).tobytes() if content is None else content
    return TensorProto(dtype=DT_FLOAT, tensor_shape=sizes, tensor_content=content)


def write_broken(folder: Path, kind: str) -> None:
    """Write a run with valid scalars and invalid data for the tab."""
    write_run(folder, known_evaluations(), tab=False, panels=1)
    evaluation, metrics, probes = (
        events.tag("clipcam", kind) for kind in (events.EVALUATION, events.METRICS, events.PROBES)
    )
    values = {
        "future": [value(evaluation, text(b'{"version": 99}'), b"99")],
        "nameless": [value(evaluation, text(b"{}"), b"\xff not JSON")],
        "garbage": [
            value(evaluation, text(b"\xff\xfe{")),
            value(probes, text(b"[" * 100_000)),
            value(metrics, floats(3)),
        ],
        "torn": [value(evaluation, text(b"{}")), value(metrics, floats(6, 13, content=b"abc"))],
        "typed": [value(evaluation, floats(2)), value(probes, floats()), value(metrics, text(b"no metrics"))],
    }[kind]
    writer = SummaryWriter(folder)
    writer._get_file_writer().add_summary(Summary(value=values), 0)
    writer.close()


BROKEN = {
    "future": "It was written by a later version (format 99): update clipcam-lightning.",
    "nameless": "Its data is damaged: the format version is missing.",
    "garbage": "has no readable evaluation",
    "torn": "has no readable evaluation",
    "typed": "has no readable evaluation",
}


@pytest.fixture(scope="module", params=["true", "false"], ids=lambda flag: f"load_fast={flag}")
def broken(browser: Browser, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Tab]:
    folder: Path = tmp_path_factory.mktemp("logs")
    write_run(folder / "valid", known_evaluations())
    for kind in BROKEN:
        write_broken(folder / f"z-{kind}", kind)
    with tensorboard("--logdir", folder, f"--load_fast={request.param}") as url:
        wait_for(url, "valid", STEPS)
        until(lambda: len(runs(url)) == 1 + len(BROKEN), "all runs are read")
        with Tab(browser, url) as tab:
            yield tab.open(run="clipcam@valid")


def has_only_refusals(tab: Tab) -> bool:
    """Whether the only noise is the browser's note of a 404 response."""
    noise, tab.noise = tab.noise, []
    return all("404" in text and "clipcam/evaluations" in text for text in noise)


@pytest.mark.parametrize("kind", BROKEN)
def test_an_unreadable_run_gives_a_message_and_another_can_be_chosen(broken: Tab, kind: str) -> None:
    broken.fresh(run=f"clipcam@z-{kind}")
    expect(broken.message).to_contain_text(BROKEN[kind])
    expect(broken.message).to_contain_text(f"z-{kind}")
    expect(broken.grid).to_be_hidden()
    assert broken.chosen("Run") == f"clipcam@z-{kind}"
    broken.choose("Run", "clipcam@valid")
    expect(broken.cell("walks", 20)).to_be_visible()
    expect(broken.message).to_have_count(0)
    assert sorted(broken.order()) == sorted(NAMES)
    broken.choose("Run", f"clipcam@z-{kind}")
    expect(broken.message).to_contain_text(BROKEN[kind])
    expect(broken.grid).to_be_hidden()
    assert has_only_refusals(broken)


def test_all_runs_are_offered_even_if_unreadable(broken: Tab) -> None:
    broken.fresh()
    assert len(broken.options("Run")) == 1 + len(BROKEN)
    assert has_only_refusals(broken)


def test_the_other_tabs_work_with_unreadable_data(broken: Tab) -> None:
    page = broken.page
    broken.fresh(run="clipcam@z-torn")
    page.get_by_role("tab", name="Scalars").click()
    expect(page.get_by_text("clipcam", exact=False).first).to_be_visible()
    expect(page.locator("scalar-card, tf-scalar-card, card-view").first).to_be_visible()
    page.get_by_role("tab", name="Images").click()
    expect(page.locator("image-card, tf-image-loader, tf-image-dashboard").first).to_be_visible()
    assert has_only_refusals(broken)
