"""The HTML report: its text and images are those of the comparison, and user text stays inert. And the JSON report."""

import io
import json
import math
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from playwright.sync_api import Browser, Page
from torch import Tensor

from clipcam_lightning.cam.display.drawing import to_pixels
from clipcam_lightning.drift.compare import compare
from clipcam_lightning.drift.probe_drift import ProbeDrift
from clipcam_lightning.drift.report import DriftReport
from clipcam_lightning.drift.report_json import report_as_json, report_from_json
from clipcam_lightning.drift.rule import DriftRule
from clipcam_lightning.drift.snapshot import Snapshot, SnapshotInfo
from clipcam_lightning.drift.transplants import Transplants
from clipcam_lightning.errors import SnapshotError
from clipcam_lightning.storage.jpeg import encode_jpeg
from clipcam_lightning.visualization import report as report_module
from clipcam_lightning.visualization.evidence import draw_crop, draw_crops
from clipcam_lightning.visualization.report import METRICS, format_metrics, html_report
from tests.support.html_tree import Element, Tree, tags, words

TOP_LEFT, BOTTOM_RIGHT = torch.zeros(8, 8), torch.zeros(8, 8)
TOP_LEFT[:2, :2] = 3.0
BOTTOM_RIGHT[-2:, -2:] = 0.5
NOTHING = torch.zeros(8, 8)
GREY = torch.full((3, 64, 64), 128, dtype=torch.uint8)
HOSTILE = {
    "script": "<script>alert(1)</script>",
    "attribute": '"><img src=x onerror=alert(1)>',
    "end of style": "</style></title><svg onload=alert(1)>",
    "template": "{{ 7 * 7 }} {% raw %}",
    "link": "javascript:alert(1)",
}
TEXTS = {
    **HOSTILE,
    "long": "a photograph of a very long prompt " * 60,
    "one word": "x" * 2000,
    "right to left": "قطة على أريكة حمراء בחדר גדול " * 40,
    "overrides": "\u202e\u2066abc\u202d" * 60,
    "newlines": "one\ntwo\r\n" * 60,
    "surrogate": "\ud800 alone",
    "control": "\0\a\x1b[31m",
}


def snapshot(*maps: Tensor, prompts: list[str] | None = None, step: int = 0, **changes: Any) -> Snapshot:
    count = len(maps)
    info = SnapshotInfo(
        digest="d", step=step, epoch=0, method="hirescam", target="similarity", scales=(1.0, 1.5), flip=False,
        fuse="mean", layers=("blocks.1", "blocks.2"), fingerprint="f", dtype="float32",
        versions={"torch": "2.6.0", "numpy": "2.0"},
    )  # fmt: skip
    fields = {
        "maps": torch.stack(maps),
        "similarity": torch.linspace(-1, 1, count),
        "energy_inside_mask": torch.full((count,), torch.nan),
        "pointing": torch.full((count,), torch.nan),
        "names": tuple(f"probe-{i}" for i in range(count)),
        "prompts": tuple(prompts or [f"prompt {i}" for i in range(count)]),
        "info": info,
        **changes,
    }
    return Snapshot(**fields)


def page_of(before: Snapshot, now: Snapshot, max_drift: float | None = 0.5) -> str:
    return html_report(before, now, compare(before, now, DriftRule(max_drift)))


MIXED = [
    TOP_LEFT,
    0.7 * TOP_LEFT + 0.3 * BOTTOM_RIGHT / 0.5 * 3,
    BOTTOM_RIGHT,
    NOTHING,
    TOP_LEFT,
]  # drifts: none, some, largest, vanished, unknown
BEFORE = snapshot(
    *[TOP_LEFT] * 4,
    NOTHING,
    energy_inside_mask=torch.tensor([0.5, torch.nan, 0.75, torch.nan, torch.nan]),
    noise_floor=torch.tensor([0.1, 0.1, 0.25, torch.nan, 0.1]),
    images=(encode_jpeg(Image.fromarray(GREY.permute(1, 2, 0).numpy()), 90),) * 5,
)
NOW = snapshot(*MIXED, step=120, energy_inside_mask=torch.tensor([0.5, torch.nan, 0.125, torch.nan, torch.nan]))


def test_the_page_starts_with_the_verdict() -> None:
    root = Tree(page_of(BEFORE, NOW)).root
    assert words(root.all("p", "verdict")[0].text) == "✗ Alarm"
    assert words(root.all("h1")[0].text) == "2 of 5 probes are flagged"
    head = words(root.all("header")[0].text)
    report = compare(BEFORE, NOW, DriftRule(0.5))
    assert f"Mean drift {report.drift:.2f}" in head
    assert "Steps 0 → 120" in head
    assert f"Largest drift, {report.worst.drift:.2f} {report.worst.name}" in head
    (conditions,) = root.all("ul")
    assert words(conditions.text) == f"{DriftRule(0.5)}."
    assert "The drift of 1 probe is unknown, for lack of a valid baseline; it counts as 1 in the mean." in head
    assert root.all("title")[0].text.startswith("Alarm")


def test_the_page_lists_the_conditions_of_the_rule_one_per_line() -> None:
    rule = DriftRule()
    (conditions,) = Tree(page_of(BEFORE, NOW, None)).root.all("ul")
    assert [item.text.removesuffix("; or").removesuffix(".") for item in conditions.all("li")] == list(rule.conditions)


def test_the_page_says_if_there_is_no_alarm() -> None:
    root = Tree(page_of(BEFORE, replace(NOW, maps=BEFORE.maps))).root
    assert words(root.all("p", "verdict")[0].text) == "✓ No alarm"
    assert words(root.all("h1")[0].text) == "None of 5 probes is flagged"
    assert not root.all("p", "reasons")
    assert not root.all("article", "flagged")


def test_flagged_probes_are_marked_even_if_they_are_too_few_for_an_alarm() -> None:
    before, now = snapshot(*[TOP_LEFT] * 8), snapshot(BOTTOM_RIGHT, *[TOP_LEFT] * 7)
    report = compare(before, now)
    assert (report.alarm, len(report.flagged)) == (False, 1)
    root = Tree(html_report(before, now, report)).root
    assert words(root.all("p", "verdict")[0].text) == "✓ No alarm"
    assert words(root.all("h1")[0].text) == "1 of 8 probes is flagged"
    assert len(root.all("article", "flagged")) == 1


def test_flagged_probes_come_first_and_unknown_ones_last_both_by_drift() -> None:
    articles = Tree(page_of(BEFORE, NOW)).root.all("article")
    assert [article.all("bdi")[0].text for article in articles] == [f"probe-{i}" for i in (2, 3, 1, 0, 4)]
    assert [bool(article.all("article", "flagged")) for article in articles] == [True, True, False, False, False]
    reasons = [[words(each.text) for each in article.all("p", "reasons")] for article in articles]
    moved, vanished = "Flagged: its map drifted by more than 0.5", "Flagged: its map is all zero"
    assert reasons == [[moved], [vanished], [], [], []]
    assert articles[-1].all("p", "faint")[1].text.endswith("s map is all zero.")
    states = [[words(each.text) for each in article.all("p", "state")] for article in articles]
    nothing = "nothing in this image raises the similarity (map all zero)."
    assert states == [[], [f"Now: {nothing}"], [], [], [f"Baseline: {nothing}"]]


def test_the_legend_says_that_each_map_has_a_scale_of_its_own() -> None:
    (legend,) = Tree(page_of(BEFORE, NOW)).root.all("div", "legend")
    assert "each map is scaled to its own maximum" in words(legend.text)


def test_a_flagged_probe_comes_before_one_that_drifted_further_but_is_not_flagged() -> None:
    before = snapshot(*[TOP_LEFT] * 4, energy_inside_mask=torch.tensor([torch.nan, torch.nan, 0.8, torch.nan]))
    before = replace(before, noise_floor=torch.tensor([9.0, 0.1, 0.1, 0.1]))
    half_gone = (TOP_LEFT + TOP_LEFT.flip(1)) / 2
    now = snapshot(BOTTOM_RIGHT, TOP_LEFT, half_gone, TOP_LEFT, energy_inside_mask=before.energy_inside_mask / 4)
    articles = Tree(html_report(before, now, compare(before, now))).root.all("article")
    assert articles[0].all("bdi")[0].text == "probe-2"
    assert "attention left the object" in articles[0].text


def shown(article: Element) -> dict[str, str]:
    rows = article.all("tr")
    assert all(row.all("th")[0].attributes["scope"] == "row" for row in rows)
    return {row.all("th")[0].text: row.all("td")[0].text for row in rows}


def test_the_metrics_are_those_of_the_comparison() -> None:
    report = compare(BEFORE, NOW, DriftRule(0.5))
    articles = {a.all("bdi")[0].text: a for a in Tree(html_report(BEFORE, NOW, report)).root.all("article")}
    for probe in report.probes:
        assert shown(articles[probe.name]) == format_metrics(probe)
        assert articles[probe.name].all("h3")[0].text == probe.prompt
    worst = report.probes[2]
    assert shown(articles["probe-2"]) == {
        "Drift": f"{worst.drift:.2f}",
        "Drift / noise floor": f"{worst.drift / 0.25:.1f}",
        "Top-20 % IoU": f"{worst.top_iou:.2f}",
        "Centre shift": "75 %",  # from 1/8 to 7/8 along the diagonal
        "JS distance": "1.00",
        "Similarity": "0.000 → 0.000",
        "Energy on object": "0.75 → 0.12",
    }


def test_each_metric_says_what_it_means_in_the_list_and_in_its_tooltip() -> None:
    root = Tree(page_of(BEFORE, NOW)).root

    _, details = root.all("details")
    listed = dict(zip([e.text for e in details.all("dt")], [e.text for e in details.all("dd")], strict=True))
    assert listed == METRICS
    rows = [row for article in root.all("article") for row in article.all("tr")]
    assert rows
    assert all(row.attributes["title"] == METRICS[row.all("th")[0].text] for row in rows)


def test_unknown_metrics_are_left_out() -> None:
    vanished, unknown = compare(BEFORE, NOW, DriftRule(0.5)).probes[3:]
    assert format_metrics(vanished) == {"Drift": "1.00", "Top-20 % IoU": "0.00", "Similarity": "0.500 → 0.500"}
    assert format_metrics(unknown) == {"Similarity": "1.000 → 1.000"}
    assert not re.search(r"\b(nan|inf)\b", page_of(BEFORE, NOW), flags=re.IGNORECASE)


def test_a_page_without_any_valid_baseline_shows_no_drift() -> None:
    root = Tree(page_of(snapshot(NOTHING, NOTHING), snapshot(TOP_LEFT, NOTHING))).root
    head = words(root.all("header")[0].text)
    assert "Mean drift unknown" in head
    assert "Largest drift" not in head
    assert not root.all("svg")


def test_the_settings_are_shown_and_packages_only_if_they_differ() -> None:
    later = replace(NOW.info, epoch=3, dtype="bfloat16", fingerprint="g", versions={"torch": "2.15.0", "numpy": "2.0"})
    root = Tree(page_of(BEFORE, replace(NOW, info=later))).root
    rows = {r.all("th")[0].text: [cell.text for cell in r.all("td")] for r in root.all("section")[-1].all("tr")[1:]}
    assert rows == {
        "Step": ["0", "120"],
        "Epoch": ["0", "3"],
        "Method": ["hirescam"],
        "Target": ["similarity"],
        "Score scale": ["1"],
        "Scales": ["1, 1.5"],
        "Flip": ["no"],
        "Shift": ["no"],
        "Precision": ["float32"],
        "Fuse": ["mean"],
        "Layers": ["blocks.1, blocks.2"],
        "Grid": ["8x8"],
        "Computed in": ["float32", "bfloat16"],
        "torch": ["2.6.0", "2.15.0"],
        "Model architecture": ["f", "g"],
    }


def test_a_package_of_only_one_snapshot_is_shown() -> None:
    info = replace(NOW.info, versions={"torch": "2.6.0", "timm": "1.0"})
    text = words(Tree(page_of(BEFORE, replace(NOW, info=info))).root.all("section")[-1].text)
    assert "timm none 1.0" in text
    assert "numpy 2.0 none" in text


@pytest.mark.parametrize("owner", ["baseline", "snapshot"])
def test_the_images_come_from_whichever_snapshot_has_them(owner: str) -> None:
    before, now = replace(BEFORE, images=()), NOW
    if owner == "baseline":
        before = BEFORE
    else:
        now = replace(NOW, images=BEFORE.images)
    article = Tree(page_of(before, now)).root.all("article")[0]
    assert [image.attributes["alt"] for image in article.all("img")] == [
        f"{name} of probe-2" for name in ("Input", "Baseline", "Now", "Change")
    ]


def test_the_heat_is_shown_alone_if_there_are_no_images() -> None:
    article = Tree(page_of(replace(BEFORE, images=()), NOW)).root.all("article")[0]
    captions = [words(caption.text) for caption in article.all("figcaption")]
    assert captions == ["Baseline (own scale)", "Now (own scale)", "Change"]


def test_the_message_names_the_probe_of_a_damaged_image() -> None:
    before = replace(BEFORE, images=(*BEFORE.images[:2], BEFORE.images[2][:40], *BEFORE.images[3:]))
    with pytest.raises(SnapshotError, match=r"image of probe 'probe-2' is damaged.*take the snapshot again"):
        page_of(before, NOW)


def test_beyond_the_limit_probes_are_shown_without_images_but_with_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_module, "ILLUSTRATED", 1)
    report = compare(BEFORE, NOW, DriftRule(0.5))
    root = Tree(html_report(BEFORE, NOW, report)).root

    (article,) = root.all("article")
    assert article.all("bdi")[0].text == "probe-2"
    table = root.all("table", "metrics")[0]
    head, *rows = table.all("tr")
    assert [cell.text for cell in head.all("th")] == ["Probe", "Prompt", *METRICS]
    assert all(cell.attributes["scope"] == "col" for cell in head.all("th"))
    assert [row.all("bdi")[0].text for row in rows] == ["probe-3", "probe-1", "probe-0", "probe-4"]
    for row in rows:
        probe = next(probe for probe in report.probes if probe.name == row.all("bdi")[0].text)
        assert [cell.text for cell in row.all("td")[1:]] == [
            format_metrics(probe).get(name, "\N{EN DASH}") for name in METRICS
        ]
    assert "its map is all zero" in rows[0].text
    assert not table.all("img")


def test_a_page_illustrates_at_most_two_hundred_probes() -> None:
    count = 203
    root = Tree(page_of(snapshot(*[TOP_LEFT] * count), snapshot(*[BOTTOM_RIGHT] * count))).root
    assert len(root.all("article")) == 200
    assert "The other 3 probes" in root.text
    assert len(root.all("svg")[0].all("rect")) == count


def test_each_bar_is_as_high_as_the_drift() -> None:
    report = compare(BEFORE, NOW, DriftRule(0.5))
    (svg,) = Tree(html_report(BEFORE, NOW, report)).root.all("svg")
    heights = [float(rect.attributes["height"] or 0) for rect in svg.all("rect")]
    assert heights == [report.probes[i].drift for i in (2, 3, 1, 0)]
    assert len(svg.all("g", "flagged")) == 2


@pytest.mark.parametrize("where", ["prompt", "name"])
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_user_text_is_never_markup(text: str, where: str) -> None:
    plain = page_of(BEFORE, NOW)
    texts = (text,) * 5
    odd = replace(NOW, **({"prompts": texts} if where == "prompt" else {"names": texts}))

    html = page_of(BEFORE, odd)

    html.encode()
    assert tags(html) == tags(plain)


def test_the_page_has_no_script_forbids_scripts_and_loads_nothing() -> None:
    html = page_of(BEFORE, NOW)
    root = Tree(html).root
    assert not root.all("script") + root.all("link") + root.all("iframe")
    (policy,) = [m.attributes["content"] or "" for m in root.all("meta") if "http-equiv" in m.attributes]
    assert "default-src 'none'" in policy
    assert "script-src" not in policy
    assert all((image.attributes["src"] or "").startswith("data:image/") for image in root.all("img"))
    assert not re.search(r"url\(|@import|https?:", html)


def test_the_page_works_with_a_screen_reader() -> None:
    root = Tree(page_of(BEFORE, NOW)).root
    assert root.all("html")[0].attributes["lang"] == "en"
    assert all(image.attributes["alt"] for image in root.all("img"))
    assert all(svg.attributes["aria-label"] for svg in root.all("svg"))
    assert len(root.all("h1")) == len(root.all("main")) == 1
    assert all(heading.attributes["dir"] == "auto" for heading in root.all("h3"))


def test_the_json_holds_the_report_with_null_for_unknown_values() -> None:
    report = compare(BEFORE, NOW, DriftRule(0.5))

    values = json.loads(json.dumps(report_as_json(report), allow_nan=False))

    assert values == report_as_json(report), "only values that JSON can represent"
    probes = values.pop("probes")
    assert values == {
        "alarm": True,
        "severity": "inf",
        "summary": str(report),
        "finding": str(report.finding),
        "grounds": "",
        "evidence": None,
        "rule": str(report.rule),
        "max_drift": 0.5,
        "false_alarm_rate": 0.01,
        "step": 120,
        "baseline_step": 0,
        "drift": pytest.approx(report.drift, rel=1e-6),
        "worst": "probe-2",
        "flagged": ["probe-2", "probe-3"],
    }
    for probe, row in zip(report.probes, probes, strict=True):
        assert row.pop("flagged") is probe.flagged
        assert row.keys() == ProbeDrift.__dataclass_fields__.keys()
        for name, value in row.items():
            expected = getattr(probe, name)
            if isinstance(expected, float) and not math.isfinite(expected):
                assert value == (None if math.isnan(expected) else "inf"), name
            elif isinstance(expected, float):
                assert value == pytest.approx(expected, rel=1e-6), name
                assert len(f"{value!r}".replace("-", "").replace(".", "").lstrip("0")) <= 7, name
            else:
                assert value == (asdict(expected) if isinstance(expected, Transplants) else expected), name
    assert probes[1]["energy_inside_mask"] is None


@pytest.mark.parametrize("max_drift", [0.5, None])
def test_a_report_is_the_same_after_a_way_through_json(max_drift: float | None) -> None:
    report = compare(BEFORE, NOW, DriftRule(max_drift))

    again = report_from_json(json.loads(json.dumps(report_as_json(report))))

    for probe, read in zip(report.probes, again.probes, strict=True):
        for name, value in asdict(probe).items():
            expected = pytest.approx(value, rel=1e-6, nan_ok=True) if isinstance(value, float) else value
            assert asdict(read)[name] == expected, name
    assert (str(again), again.flagged_first) == (str(report), report.flagged_first)


def test_no_severity_is_rounded_across_the_limit_of_an_alarm() -> None:
    for severity in (1.0, 1 + 1e-12, 1 - 1e-12):
        probe = replace(compare(BEFORE, NOW).probes[0], severity=severity)
        report = DriftReport((probe,), DriftRule(), 1, 0)
        again = report_from_json(json.loads(json.dumps(report_as_json(report))))
        assert again.probes[0].flagged is probe.flagged


def test_a_link_to_a_probe_leads_to_it_whatever_its_name() -> None:
    names = ("plain", "a b/c?#%", "катя", "\ud800 alone", '"><img src=x>')
    root = Tree(page_of(replace(BEFORE, names=names), replace(NOW, names=names))).root
    anchors = [article.attributes["id"] for article in root.all("article")]
    assert len(set(anchors)) == 5
    assert "probe-plain" in anchors
    for article in root.all("article"):
        assert article.all("a")[0].attributes["href"] == f"#{article.attributes['id']}"


@dataclass
class Opened:
    """A page in the browser, and everything it did besides showing itself."""

    page: Page
    noise: list[str] = field(default_factory=list)


@pytest.fixture
def opened(browser: Browser, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Opened]:
    build, width = request.param
    file = tmp_path / "report.html"
    file.write_text(build(), encoding="utf-8")
    context = browser.new_context(viewport={"width": width, "height": 900})
    opened = Opened(context.new_page())
    opened.page.on("console", lambda message: opened.noise.append(f"console: {message.text}"))
    opened.page.on("pageerror", lambda error: opened.noise.append(f"error: {error}"))
    opened.page.on("request", lambda request: opened.noise.append(request.url))
    opened.page.on("dialog", lambda dialog: (opened.noise.append("dialog"), dialog.dismiss()))
    opened.page.goto(file.as_uri())
    yield opened
    context.close()


def mixed_page() -> str:
    return page_of(BEFORE, NOW)


def bare_page() -> str:
    return page_of(replace(BEFORE, images=()), NOW)


def hostile_page() -> str:
    texts = tuple(TEXTS.values())
    maps = [BOTTOM_RIGHT if i % 2 else TOP_LEFT for i in range(len(texts))]
    images = (encode_jpeg(Image.fromarray(GREY.permute(1, 2, 0).numpy()), 90),) * len(texts)
    before, now = snapshot(*[TOP_LEFT] * len(texts), images=images), snapshot(*maps)
    return page_of(before, replace(now, names=texts, prompts=texts))


@pytest.mark.parametrize("opened", [(hostile_page, 1200), (hostile_page, 400)], ids=["desktop", "phone"], indirect=True)
def test_a_page_of_hostile_texts_runs_and_loads_nothing_and_fits_the_screen(opened: Opened) -> None:
    page = opened.page
    assert [url for url in opened.noise if not url.startswith(("file:", "data:"))] == []
    assert len([url for url in opened.noise if url.startswith("file:")]) == 1
    widths = page.evaluate("[...document.images].map(image => image.complete && image.naturalWidth)")
    assert len(widths) == 4 * len(TEXTS) + 2 * opened.page.locator("article.flagged").count() + 2
    assert min(widths) > 0
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    headings = page.locator("h3").all_text_contents()
    assert {HOSTILE["script"], HOSTILE["attribute"], HOSTILE["template"]} <= set(headings)
    tallest = page.evaluate("Math.max(...[...document.querySelectorAll('h3')].map(h => h.clientHeight))")
    assert tallest < 250, "a long prompt pushes its images off the screen"


@pytest.mark.parametrize("opened", [(mixed_page, 1200)], ids=["desktop"], indirect=True)
def test_an_injected_script_does_not_run(opened: Opened) -> None:
    opened.page.evaluate("""() => {
        const script = document.createElement('script');
        script.textContent = 'window.ran = true';
        document.body.append(script);
    }""")
    assert opened.page.evaluate("window.ran") is None


def corners(page: Page, alt: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean colour on the screen of the top left and the bottom right cell of 8x8, without the rounded corner."""
    shot = Image.open(io.BytesIO(page.get_by_alt_text(alt, exact=True).screenshot())).convert("RGB")
    pixels, cell = np.asarray(shot).astype(int), shot.width // 8
    return pixels[8:cell, 8:cell].mean((0, 1)), pixels[-cell:-8, -cell:-8].mean((0, 1))


def colourfulness(color: np.ndarray) -> float:
    return float(np.ptp(color))


@pytest.mark.parametrize("opened", [(mixed_page, 1200), (mixed_page, 400)], indirect=True, ids=["desktop", "phone"])
def test_the_heat_is_drawn_where_the_map_is_hot(opened: Opened) -> None:
    shown, baseline, now, change = (
        corners(opened.page, f"{name} of probe-2") for name in ("Input", "Baseline", "Now", "Change")
    )
    assert max(map(colourfulness, shown)) < 5
    assert colourfulness(baseline[0]) > 50 > 20 > colourfulness(baseline[1])
    assert colourfulness(now[1]) > 50 > 20 > colourfulness(now[0])
    assert change[1][0] > change[1][2] + 50, "more is red"
    assert change[0][2] > change[0][0] + 50, "less is blue"


@pytest.mark.parametrize("opened", [(bare_page, 1200)], indirect=True, ids=["bare"])
def test_heat_alone_is_bright_where_the_map_is_hot(opened: Opened) -> None:
    baseline, now, change = (corners(opened.page, f"{name} of probe-2") for name in ("Baseline", "Now", "Change"))
    assert baseline[0].mean() > 150 > 30 > baseline[1].mean()
    assert now[1].mean() > 150 > 30 > now[0].mean()
    assert change[1][0] > change[1][2] + 50
    assert change[0][2] > change[0][0] + 50


@pytest.mark.parametrize("opened", [(mixed_page, 1200)], indirect=True, ids=["desktop"])
def test_the_page_is_readable_in_light_and_in_dark(opened: Opened) -> None:
    for scheme in ("light", "dark"):
        opened.page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        grounds = {True: "light", False: "dark"}
        ground = luminance(opened.page, "body", "backgroundColor")
        assert grounds[ground > 0.5] == scheme
        for selector, behind in (("h1", "body"), (".faint", "body"), (".reasons", ".probe"), ("td", ".probe")):
            text = luminance(opened.page, selector, "color")
            around = luminance(opened.page, behind, "backgroundColor")
            lighter, darker = max(text, around), min(text, around)
            assert (lighter + 0.05) / (darker + 0.05) >= 4.5, f"{selector} is hard to read in the {scheme}"


def luminance(page: Page, selector: str, prop: str) -> float:
    """Relative luminance of a colour, as WCAG 2 defines it."""
    css = page.locator(selector).first.evaluate(f"element => getComputedStyle(element).{prop}")
    channels = [int(value) / 255 for value in re.findall(r"\d+", css)[:3]]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_a_report_of_one_probe_is_a_page() -> None:
    before, now = snapshot(TOP_LEFT), snapshot(BOTTOM_RIGHT)
    report: DriftReport = compare(before, now, DriftRule(0.5))
    assert words(Tree(html_report(before, now, report)).root.all("h1")[0].text) == "1 of 1 probe is flagged"


def evidence_of(named: list[list[int]]) -> tuple[Snapshot, Snapshot]:
    """Four probes, on whose grounds other objects are named as given, and after themselves at the baseline."""
    file = encode_jpeg(Image.fromarray(GREY.permute(1, 2, 0).numpy()), 90)
    donors = torch.tensor([[1, 2], [2, 3], [3, 0], [0, 1]])
    objects = torch.zeros(4, *GREY.shape[1:], dtype=torch.bool)
    objects[:, :20, :20] = True
    before = snapshot(
        *[TOP_LEFT] * 4,
        images=(file,) * 4,
        objects=objects,
        donors=donors,
        transplants_named=donors,
        background_score=torch.zeros(4),
        named_without_object=torch.zeros(4),
    )
    now = replace(
        before,
        maps=torch.stack([BOTTOM_RIGHT] * 4),
        images=(),
        objects=None,
        transplants_named=torch.tensor(named),
        background_score=torch.full((4,), 20.0),
        named_without_object=torch.ones(4),
    )
    return before, now


def test_the_page_opens_with_what_the_flagged_maps_look_at() -> None:
    before, now = evidence_of([[0, 0], [1, 3], [2, 2], [3, 3]])
    root = Tree(page_of(before, now, None)).root

    assert [words(each.text) for each in root.all("h2")][:3] == [
        "What the flagged maps look at",
        "What other objects are called on these backgrounds",
        "Probes",
    ]
    (sheet,) = root.all("div", "sheet")
    crops = sheet.all("img")
    assert [image.attributes["alt"] for image in crops[:2]] == [
        "Hottest place of probe-0, baseline",
        "Place with the largest gain of probe-0, now",
    ]
    assert len(crops) == 2 * 4
    (reasons,) = root.all("header")[0].all("p", "reasons")
    assert words(reasons.text) == (
        "The background predicts the prompt: 7 of 8 other objects now get the prompt of the background they are pasted "
        "on (0 before)."
    )


def test_objects_that_are_called_after_their_ground_are_marked() -> None:
    before, now = evidence_of([[0, 0], [1, 3], [2, 2], [3, 3]])
    root = Tree(page_of(before, now, None)).root

    rows = root.all("div", "ground")
    assert len(rows) == 4
    assert [len(row.all("figure", "follows")) for row in rows] == [2, 2, 2, 1], "the most conspicuous grounds first"
    last = rows[-1].all("figure")
    names = [[each.text for each in item.all("bdi")] for item in last]
    assert names == [["prompt 1", "probe-1"], ["prompt 1", "prompt 2"], ["prompt 3", "prompt 3"]]


def test_of_an_object_that_was_not_tried_at_the_baseline_the_page_says_so() -> None:
    before, now = evidence_of([[0, 0], [1, 3], [2, 2], [3, 3]])
    tried = torch.tensor([[1, 2], [2, 3], [3, 0], [0, -1]])
    root = Tree(page_of(replace(before, donors=tried, transplants_named=tried), now, None)).root

    captions = [words(each.text) for each in root.all("figcaption")]
    assert captions.count("prompt 3 not tried before") == 1
    assert captions.count("prompt 3 before: prompt 0") == 1
    assert "7 of 8 other objects" in words(root.text)
    assert "(0 of 7 before)" in words(root.text)


def test_without_evidence_no_transplants_are_drawn() -> None:
    before, now = evidence_of([[1, 2], [2, 3], [3, 0], [0, 1]])
    root = Tree(page_of(before, now, None)).root

    assert compare(before, now).alarm
    assert not root.all("div", "ground")


def test_a_crop_shows_a_third_of_the_image_around_the_hottest_place() -> None:
    pixels = torch.zeros(3, 90, 120, dtype=torch.uint8)
    pixels[0, 60:, 80:] = 200
    corner = torch.zeros(6, 6)
    corner[5, 5] = 1.0

    crop = to_pixels(draw_crop(pixels, corner))
    vanished = to_pixels(draw_crop(pixels, torch.zeros(6, 6)))

    assert crop.shape == (3, 208, 208)
    assert crop[0].min() > 150, "the corner alone, which is a third of the shorter side"
    assert not vanished[0].gt(220).all(), "in place of the crop stand the words of the state"
    assert (vanished.float().std(dim=(1, 2)) > 5).all()


def test_the_second_crop_shows_where_the_map_gained_most_although_it_is_still_hottest_elsewhere() -> None:
    pixels = torch.zeros(3, 90, 90, dtype=torch.uint8)
    pixels[0, 60:, 60:] = 200
    pixels[1, :30, :30] = 200
    before, now = torch.zeros(2, 6, 6)
    before[0, 0] = 1.0
    now[0, 0], now[5, 5] = 1.0, 0.9

    first, second = map(to_pixels, draw_crops(pixels, before, now))
    unmoved = draw_crops(pixels, before, before)[1]

    assert first[1].min() > 150
    assert second[0].min() > 150
    assert torch.equal(to_pixels(unmoved), first)
