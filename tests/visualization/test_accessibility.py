"""Every HTML page: usable by keyboard and screen reader, on a phone, in light and in dark, whatever a prompt holds."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import open_clip
import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page

from clipcam_lightning.analysis.method_ranking import rank_methods
from clipcam_lightning.cam.display.drawing import to_image
from clipcam_lightning.drift.snapshot import Snapshot
from clipcam_lightning.monitoring.evaluation import Evaluation
from clipcam_lightning.monitoring.recorded_run import RecordedRun, load_run
from clipcam_lightning.shapes_world.models import WordTokenizer
from clipcam_lightning.shapes_world.scenes import draw_scenes
from clipcam_lightning.storage.jpeg import encode_jpeg
from clipcam_lightning.storage.paths import as_path
from clipcam_lightning.visualization import (
    paging,
    report as report_module,
    run_comparison,
    run_report as run_report_module,
)
from clipcam_lightning.visualization.ranking_report import ranking_report
from clipcam_lightning.visualization.report import html_report
from clipcam_lightning.visualization.run_comparison import RunComparison, comparison_report
from clipcam_lightning.visualization.run_report import run_report
from tests.support.html_tree import Tree, words
from tests.support.synthetic_evaluations import evaluations_of, ramps, random_maps, write_files

pytestmark = pytest.mark.slow

PROMPTS = [
    "<script>window.ran = true</script>",
    '"><img src=x onerror="window.ran = true">',
    "</style></title><svg onload=alert(1)>",
    "一只猫坐在红色的沙发上" * 27,
    "قطة على أريكة حمراء " * 15,
    "Кошка на красном диване, фотография " * 9,
    "a 🐈‍⬛ on a 🛋️ " * 25,
    "x" * 300,
    "{{ 7 * 7 }} {% raw %}",
    "a photograph of a small dog",
]
SCHEMES = [(390, "light"), (390, "dark"), (1400, "light"), (1400, "dark")]


def evaluations(seed: int = 0) -> list[Evaluation]:
    """Make a run in which probes are flagged and one map vanishes, with images."""
    maps = random_maps([0, 10, 20, 30], len(PROMPTS), (4, 4), seed)
    maps[30][1] = 0.0
    maps[0][2] = 0.0
    pixels = ramps(len(PROMPTS))
    made = evaluations_of(maps, PROMPTS, pixels=pixels)
    images = tuple(encode_jpeg(to_image(each), 90) for each in pixels)
    first: Snapshot = replace(made[0].snapshot, images=images)
    return [replace(each, baseline=first, snapshot=first if each is made[0] else each.snapshot) for each in made]


def recorded(folder: Path, seed: int = 0) -> RecordedRun:
    write_files(folder, evaluations(seed))
    (folder / "run.json").write_text("{")  # a page with problems to list
    return load_run(as_path(folder))


def callback_page(_folder: Path, _clip: open_clip.CLIP) -> str:
    last = evaluations()[-1]
    return html_report(last.baseline, last.snapshot, last.report)


def training_pages(folder: Path) -> list[str]:
    return [html for _, html in run_report(recorded(folder / "a"), "page.html")]


def comparison_pages(folder: Path) -> list[str]:
    runs = recorded(folder / "a"), recorded(folder / "b", 1)
    return [html for _, html in comparison_report(RunComparison.of(*runs), "page.html")]


def ranking_page(_folder: Path, clip: open_clip.CLIP) -> str:
    scenes = draw_scenes(3, seed=5)
    probes = list(zip(scenes.images, scenes.captions, strict=True))
    ranking = rank_methods(clip, probes, methods=["gradcam", "eigencam"], tokenizer=WordTokenizer())
    return ranking_report(ranking, torch.from_numpy(scenes.images).permute(0, 3, 1, 2))


PAGES: dict[str, Callable[[Path, open_clip.CLIP], str]] = {
    "report of the callback": callback_page,
    "training": lambda folder, _clip: training_pages(folder)[-1],
    "table of a training": lambda folder, _clip: training_pages(folder)[0],
    "comparison of runs": lambda folder, _clip: comparison_pages(folder)[-1],
    "table of a comparison": lambda folder, _clip: comparison_pages(folder)[0],
    "ranking": ranking_page,
}

WITH_MAPS = [name for name in PAGES if not name.startswith("table")]


@dataclass
class Opened:
    """A page in the browser, and everything it did besides showing itself."""

    page: Page
    html: str
    noise: list[str] = field(default_factory=list)


@pytest.fixture(scope="module", params=PAGES)
def opened(
    browser: Browser,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
    shapes_vit: open_clip.CLIP,
) -> Iterator[Opened]:
    folder = tmp_path_factory.mktemp("page")
    with pytest.MonkeyPatch.context() as patch:  # so that there are tables of the other probes
        patch.setattr(paging, "ILLUSTRATED_PAGES", 1)
        for module in (report_module, run_report_module, run_comparison):
            patch.setattr(module, "ILLUSTRATED", len(PROMPTS) - 2)
        html = PAGES[request.param](folder, shapes_vit)
    (folder / "page.html").write_text(html, encoding="utf-8")
    context = browser.new_context()
    opened = Opened(context.new_page(), html)
    opened.page.on("console", lambda message: opened.noise.append(f"console: {message.text}"))
    opened.page.on("pageerror", lambda error: opened.noise.append(f"error: {error}"))
    opened.page.on("request", lambda sent: opened.noise.append(sent.url))
    opened.page.on("dialog", lambda dialog: (opened.noise.append("dialog"), dialog.dismiss()))
    opened.page.goto((folder / "page.html").as_uri())
    yield opened
    context.close()


@pytest.mark.parametrize(("width", "scheme"), SCHEMES)
def test_axe_finds_nothing_serious(opened: Opened, width: int, scheme: str) -> None:
    opened.page.set_viewport_size({"width": width, "height": 900})
    opened.page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    opened.page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true; })")
    found = Axe().run(opened.page).response["violations"]
    serious = [
        f"{each['id']}: {each['nodes'][0]['html'][:200]}" for each in found if each["impact"] in ("serious", "critical")
    ]
    assert serious == []
    assert opened.page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def test_no_prompt_runs_or_loads_anything(opened: Opened) -> None:
    assert opened.page.evaluate("window.ran") is None
    assert [url for url in opened.noise[1:] if not url.startswith("data:")] == []
    root = Tree(opened.html).root
    assert not root.all("script") + root.all("link") + root.all("iframe")
    assert all((image.attributes["src"] or "").startswith("data:image/") for image in root.all("img"))
    assert all(image.attributes["alt"] for image in root.all("img"))


@pytest.mark.parametrize("opened", WITH_MAPS, indirect=True)
def test_a_page_says_on_which_scale_its_maps_are(opened: Opened) -> None:
    assert "own scale: each map is scaled to its own maximum" in words(Tree(opened.html).root.text)


@pytest.mark.parametrize("opened", WITH_MAPS, indirect=True)
def test_following_the_link_of_a_probe_shows_its_whole_prompt(opened: Opened) -> None:
    page = opened.page
    page.set_viewport_size({"width": 390, "height": 900})
    heading = page.locator("article h3").nth(-1)
    link = heading.locator("a")
    target = link.get_attribute("href")
    assert target is not None
    link.focus()
    page.keyboard.press("Enter")
    assert page.url.endswith(target)
    assert page.evaluate("document.querySelector(':target').tagName") == "ARTICLE"
    assert link.evaluate("node => node.scrollHeight <= node.clientHeight + 1"), "nothing of it is clipped"
