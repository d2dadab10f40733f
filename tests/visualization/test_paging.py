"""Reports of many probes are several files that link to each other."""

import posixpath
from collections.abc import Iterable
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
import torch

from clipcam_lightning import html_pages, html_report
from clipcam_lightning.cli import main
from clipcam_lightning.errors import ConfigError
from clipcam_lightning.monitoring.evaluation import Evaluation
from clipcam_lightning.monitoring.recorded_run import load_run
from clipcam_lightning.sinks import drawing
from clipcam_lightning.sinks.drawing import Drawer
from clipcam_lightning.sinks.files import FileSink, ImageFileSink
from clipcam_lightning.storage.paths import as_path
from clipcam_lightning.storage.run_folder import RunFolder
from clipcam_lightning.visualization import paging, report as report_module, run_comparison, run_report
from clipcam_lightning.visualization.paging import Pages
from clipcam_lightning.visualization.run_comparison import RunComparison, comparison_report
from tests.support.html_tree import Tree
from tests.support.synthetic_evaluations import evaluations_of

COUNT = 23
NAMES = [f"probe-{i}" for i in range(COUNT - 1)] + ["日本-50%.b"]
PROMPTS = [f"a photo of thing {i}" for i in range(COUNT)]


class Links(HTMLParser):
    """Collects the ids and links of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.ids += [values["id"] or ""] if "id" in values else []
        self.links += [values["href"] or ""] if "href" in values else []


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four probes per page; two pages with images, and tables of ten."""
    for module in (report_module, run_report, run_comparison):
        monkeypatch.setattr(module, "ILLUSTRATED", 4)
    monkeypatch.setattr(paging, "ILLUSTRATED_PAGES", 2)
    monkeypatch.setattr(paging, "LISTED", 10)


@pytest.fixture
def evaluations() -> list[Evaluation]:
    torch.manual_seed(0)
    maps = torch.rand(2, COUNT, 3, 5) ** 4
    return evaluations_of({0: maps[0], 10: maps[1]}, PROMPTS, NAMES)


def require_whole(pages: dict[str, str], first: str) -> None:
    """Every link leads to a page, and to a place on it; all pages can be reached; every probe is on one of them."""
    parsed = {path: Links(html) for path, html in pages.items()}
    assert sorted(name for each in parsed.values() for name in each.ids) == sorted(map(paging.probe_anchor, NAMES))
    reached = {first}
    for path, page in parsed.items():
        for link in page.links:
            target, _, anchor = link.partition("#")
            found = posixpath.normpath(posixpath.join(posixpath.dirname(path), unquote(target))) if target else path
            assert found in pages, link
            assert not anchor or anchor in parsed[found].ids, link
            reached |= {found} if path == first else set()
    assert reached == set(pages)


def pages_in(folder: Path, first: str) -> dict[str, str]:
    further = folder / f"{Path(first).stem}_pages"
    return {str(file.relative_to(folder)): file.read_text() for file in (folder / first, *further.iterdir())}


def comparison_of(evaluation: Evaluation, file: str = "report.html") -> list[tuple[str, str]]:
    return [*html_pages(evaluation.baseline, evaluation.snapshot, evaluation.report, file)]


@pytest.mark.parametrize("file", ["report.html", "my report #1.html"])
def test_a_comparison_is_divided_into_pages_that_link_to_each_other(evaluations: list[Evaluation], file: str) -> None:
    pages = comparison_of(evaluations[-1], file)

    stem = Path(file).stem
    assert [path for path, _ in pages] == [f"{stem}_pages/{i}.html" for i in (4, 3, 2)] + [file]
    require_whole(dict(pages), file)
    counts = [(html.count("<article"), html.count("<tr id=")) for _, html in reversed(pages)]
    assert counts == [(4, 0), (4, 0), (0, 10), (0, 5)]


def test_flagged_probes_come_first_and_each_page_says_what_it_holds(evaluations: list[Evaluation]) -> None:
    report = evaluations[-1].report
    *further, (_, first) = comparison_of(evaluations[-1])

    order = [NAMES[i] for i in report.flagged_first]
    shown = [each.attributes["id"] for each in Tree(first).root.all("article")]
    assert shown == [paging.probe_anchor(name) for name in order[:4]]
    assert "Probes 1 to 4 of 23" in first
    assert [f"Probes {first} to {last} of 23" in html for (_, html), (first, last) in zip(
        further, [(19, 23), (9, 18), (5, 8)], strict=True)] == [True] * 3  # fmt: skip
    assert "Drift of the probes on this page" in first
    assert all("✗ Alarm" not in html.split("<main>")[0].split("<header>")[1] for _, html in further)


def test_a_single_file_holds_all_probes(evaluations: list[Evaluation]) -> None:
    last = evaluations[-1]
    html = html_report(last.baseline, last.snapshot, last.report)
    require_whole({"": html}, "")
    assert (html.count("<article"), html.count("<tr id=")) == (4, 19)


def test_few_probes_make_one_page_without_links_to_others() -> None:
    (only,) = Pages(NAMES[:4], 4, "report.html")
    assert ([*only.illustrated], [*only.listed], str(only.path)) == ([0, 1, 2, 3], [], "report.html")
    assert [str(page.path) for page in Pages([], 4, "report.html")] == ["report.html"]


def test_the_callback_writes_all_pages_of_its_report(
    evaluations: list[Evaluation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drawing, "ILLUSTRATED", 4)
    sink = ImageFileSink(RunFolder(as_path(tmp_path), "id"), Drawer(4))
    sink.write(evaluations[-1])
    sink.close()
    require_whole(pages_in(tmp_path, "report.html"), "report.html")


def write_run(evaluations: Iterable[Evaluation], folder: Path) -> None:
    sink = FileSink(RunFolder(as_path(folder), folder.name))
    for evaluation in evaluations:
        sink.write(evaluation)


def test_commands_write_all_pages(
    evaluations: list[Evaluation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for run in ("a", "b"):
        write_run(evaluations, tmp_path / run)
    for name, evaluation in zip(("before", "now"), evaluations, strict=True):
        evaluation.snapshot.save(tmp_path / f"{name}.safetensors")

    main(["report", "a"])
    main(["report", "a", "b", "--html", "both.html"])
    main(["compare", "before.safetensors", "now.safetensors", "--html", "compared.html"])

    for folder, first in ((tmp_path / "a", "training.html"), (tmp_path, "both.html"), (tmp_path, "compared.html")):
        require_whole(pages_in(folder, first), first)
    written = [line for line in capsys.readouterr().out.splitlines() if line.startswith("wrote")]
    assert len(written) == 3, "only the first page is named"


def test_a_comparison_of_runs_is_divided_as_well(evaluations: list[Evaluation], tmp_path: Path) -> None:
    for run in ("a", "b"):
        write_run(evaluations, tmp_path / run)
    runs = (load_run(as_path(tmp_path / run)) for run in ("a", "b"))
    require_whole(dict(comparison_report(RunComparison.of(*runs), "c.html")), "c.html")


def test_a_probe_that_the_report_does_not_hold_has_a_link_to_nowhere() -> None:
    """A run that was resumed with other names has alarms of the earlier ones."""
    page = Pages(NAMES, 4, "report.html")[1]
    assert page.href("renamed") == "#probe-renamed"
    assert page.href(NAMES[0]) == "../report.html#probe-probe-0"
    assert page.href(NAMES[9]) == "3.html#probe-probe-9"


def test_the_name_of_the_first_page_names_no_folder(evaluations: list[Evaluation]) -> None:
    with pytest.raises(ConfigError, match=r"a name without a folder \(got 'out/report.html'\)"):
        comparison_of(evaluations[-1], "out/report.html")


def test_an_error_on_the_first_page_comes_before_anything_is_written() -> None:
    made: list[int] = []

    def render(page: paging.Page) -> str:
        made.append(page.number)
        if page.is_first:
            raise ValueError("a damaged image")
        return ""

    with pytest.raises(ValueError, match="damaged"):
        next(Pages(NAMES, 4, "report.html").render(render))
    assert made == [1]
