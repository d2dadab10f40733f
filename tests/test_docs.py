"""The docs are whole: they build without a warning, their code runs, and they say what the code says."""

import inspect
import json
import os
import re
import shlex
import subprocess
import sys
from importlib.metadata import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import open_clip
import pytest
import timm
import torch
import yaml
from lightning.pytorch import LightningModule
from PIL import Image
from torch import nn
from transformers import BertConfig, BertModel

import clipcam_lightning
from benchmarks import gallery
from benchmarks.method_ranking import Result
from clipcam_lightning import METHODS, ClipCamCallback, ClipCamMonitor, evaluate, explain, find_clip
from clipcam_lightning.cli.parser import _make_commands, parse_arguments
from clipcam_lightning.monitoring.background import MIN_CORRELATION
from clipcam_lightning.shapes_world import WordTokenizer, draw_scenes, trained_clip
from clipcam_lightning.sinks.metrics import collect_metrics
from clipcam_lightning.sinks.tensorboard import MEANINGS
from tests.support.pages import DOCS, PAGES, ROOT, StudentAndTeacher, prepare_reader, read_blocks, read_table, write_run
from tests.support.suspicion import always_suspicious

MODULES = "guide/modules.md"  # each block of this page is a module of its own
WITH_CODE = [name for name, text in PAGES.items() if name != MODULES and read_blocks(text, "python")]
REPOSITORY = "https://github.com/clipcam-lightning/clipcam-lightning/"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built pages."""
    folder = tmp_path_factory.mktemp("site")
    # Not with --quiet, which also hides warnings from --strict.
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(site: Path) -> None:
    pages = [path.read_text() for path in site.rglob("*.html")]
    assert len(pages) >= len(PAGES)  # without the README, and the page for missing pages
    for page in pages:
        loaded = re.findall(r'<(?:script|img|iframe|source)[^>]* src="(\w+:|//)[^"]*"', page)
        styles = re.findall(r'<link rel="(?:stylesheet|preload|preconnect)"[^>]* href="(\w+:|//)[^"]*"', page)
        assert not [*loaded, *styles]


@pytest.mark.slow
def test_the_page_on_the_command_line_has_the_help_of_every_command(site: Path) -> None:
    page = (site / "reference" / "command-line" / "index.html").read_text()
    commands = [*_make_commands()]
    assert re.findall(r'<h2 id="clipcam-(\w+)">', page) == commands
    assert all(f"usage: clipcam {command}" in page for command in commands)


@pytest.mark.slow
def test_roles_and_formulas_of_docstrings_are_converted(site: Path) -> None:
    for page in (site / "reference").rglob("*.html"):
        assert not re.search(r":(class|func|meth|attr|data|math):", page.read_text()), page
    assert (site / "gallery" / "index.html").read_text().count("<math") >= len(METHODS) - 1  # FinerCAM is Grad-CAM's


def test_every_public_name_has_its_place_in_the_reference() -> None:
    reference = "".join(text for name, text in PAGES.items() if name.startswith("reference/"))
    shown = re.findall(r"^::: clipcam_lightning\.(\w+)$", reference, flags=re.M)
    assert sorted(shown) == sorted(clipcam_lightning.__all__)


def test_every_argument_of_the_callback_is_in_the_table() -> None:
    rows = read_table(PAGES["reference/callback.md"], "| Argument |")
    names = [name for row in rows for name in re.findall(r"`(\w+)`", row[0])]
    assert sorted(names) == sorted(inspect.signature(ClipCamCallback).parameters)


def test_every_metric_for_other_callbacks_is_in_the_table() -> None:
    rows = read_table(PAGES["reference/callback.md"], "| Metric |")
    assert {row[0].strip("`").removeprefix("clipcam/") for row in rows} == MEANINGS.keys()


def test_the_gallery_shows_every_method() -> None:
    shown = re.findall(r"^### (\w+)\n\n<!-- method (\w+) -->\n\n\*\*Good for\*\*", PAGES["gallery.md"], flags=re.M)
    assert [heading for heading, _ in shown] == [mark for _, mark in shown]
    assert sorted(mark for _, mark in shown) == sorted(METHODS)
    assert {path.stem for path in (DOCS / "gallery").iterdir()} == {"images", "auto", *METHODS}


def test_the_gallery_shows_the_maps_of_today() -> None:
    examples = gallery.list_examples()
    clips = {tower: find_clip(trained_clip(tower), tokenizer=WordTokenizer()) for tower in gallery.NAMES}
    for name in ("auto", "gradcam", "rollout"):
        drawn = np.asarray(gallery.draw_maps(name, examples, clips), dtype=float)
        shown = np.asarray(Image.open(DOCS / "gallery" / f"{name}.jpg"), dtype=float)
        assert np.abs(drawn - shown).mean() < 3  # of 255; JPEG alone makes 1
    other = np.asarray(Image.open(DOCS / "gallery" / "fem.jpg"), dtype=float)
    assert np.abs(drawn - other).mean() > 5


def test_every_method_is_in_the_table_of_the_guide() -> None:
    rows = read_table(PAGES["guide/methods.md"], "| Group |")
    assert sorted(name for row in rows for name in re.findall(r"`(\w+)`", row[1])) == sorted(METHODS)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::clipcam_lightning.errors.ClipCamWarning")  # of models that are not trained
@pytest.mark.filterwarnings("ignore::UserWarning")  # advice of Lightning for real trainings
@pytest.mark.parametrize("page", WITH_CODE)
def test_the_code_of_a_page_runs_block_after_block(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    names = prepare_reader(tmp_path, monkeypatch)
    if "s3://" in PAGES[page]:
        request.getfixturevalue("s3_server")
    if page == "how-to/two-models.md":
        names["module"] = StudentAndTeacher()
    if page in ("how-to/compare-runs.md", "reference/file-formats.md"):
        write_run(names["probes"])
    for block in read_blocks(PAGES[page], "python"):
        exec(compile(block, page, "exec"), names)


@pytest.mark.slow
@pytest.mark.parametrize(
    "block", read_blocks(PAGES[MODULES], "python"), ids=re.findall(r"class (\w+)\(", PAGES[MODULES])
)
def test_each_module_of_the_guide_is_read_with_the_line_beside_it(block: str, monkeypatch: pytest.MonkeyPatch) -> None:
    create_model = open_clip.create_model
    monkeypatch.setattr(open_clip, "create_model", lambda name, pretrained: create_model(name))
    names: dict[str, Any] = {
        **{each.__name__: each for each in (ClipCamCallback, LightningModule, BertModel, BertConfig)},
        **{"nn": nn, "timm": timm, "open_clip": open_clip},
    }
    exec(compile(block, MODULES, "exec"), names)
    module = next(
        value
        for value in names.values()
        if isinstance(value, type) and issubclass(value, LightningModule) and value is not LightningModule
    )()
    callback = names["callback"]
    clip = find_clip(module, encode_image=callback.encode_image, encode_text=callback.encode_text)
    images = torch.rand(2, 3, *clip.tower.input_size)
    embeddings = clip.embed_images(images)
    assert explain(clip, images, torch.rand(2, embeddings.shape[1])).maps.isfinite().all()
    if names.get("NAMES"):
        assert clip.embed_texts(names["NAMES"]).shape == embeddings.shape


def test_the_sink_of_the_page_on_loggers_prints_the_report(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    exec(compile(read_blocks(PAGES["guide/loggers.md"], "python")[0], "loggers.md", "exec"), names)
    scenes = draw_scenes(2)
    probes = list(zip(scenes.images, scenes.captions, strict=True))
    names["PrintingSink"]().write(evaluate(trained_clip("vit"), probes, tokenizer=WordTokenizer()))
    assert "no alarm at step 0" in capsys.readouterr().out


def test_the_yaml_of_a_callback_builds_it() -> None:
    (block,) = read_blocks(PAGES["how-to/yaml.md"], "yaml")
    (callback,) = yaml.safe_load(block)["trainer"]["callbacks"]
    target = callback["init_args"].pop("target")
    assert clipcam_lightning.Contrast(**target["init_args"]).negatives == ("a watermark",)
    assert callback["class_path"] == "clipcam_lightning.ClipCamCallback"
    assert ClipCamCallback(**callback["init_args"]).on_drift == "stop"


def test_the_lines_of_shell_blocks_can_be_typed() -> None:
    extras = metadata("clipcam-lightning").get_all("Provides-Extra")
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.M)
    lines = [
        (name, line) for name, text in PAGES.items() for block in read_blocks(text, "sh") for line in block.splitlines()
    ]
    assert len(lines) > 10
    for name, line in lines:
        program, *arguments = shlex.split(line, comments=True)
        if program == "clipcam":
            parse_arguments(arguments)
        elif program == "make":
            assert set(arguments) <= set(targets), f"{line} in {name}"
        else:
            assert program in ("pip", "tensorboard"), f"{line} in {name}"
        assert set(re.findall(r"clipcam-lightning\[(\w+)\]", line)) <= {*extras}


def test_named_programs_exist() -> None:
    for name, text in PAGES.items():
        for module in re.findall(r"python -m ([\w.]+)", text):
            assert find_spec(module), f"{module} in {name}"


def test_links_to_the_repository_and_elsewhere_are_well_formed() -> None:
    links = [(name, link) for name, text in PAGES.items() for link in re.findall(r"\]\((\w+:[^)\s]+)\)", text)]
    assert len(links) > 30
    for name, link in links:
        parts = urlsplit(link)
        assert (parts.scheme, "." in parts.netloc) == ("https", True), f"{link} in {name}"
        if link.startswith(REPOSITORY):
            path = re.sub(r"^(blob|tree)/main/", "", link.removeprefix(REPOSITORY))
            assert (ROOT / path).exists(), f"{link} in {name}"


def test_the_files_and_metrics_of_a_run_are_those_that_the_pages_list(tmp_path: Path) -> None:
    scenes = draw_scenes(2)
    probes = list(zip(scenes.images, scenes.captions, strict=True))
    with ClipCamMonitor(probes, tokenizer=WordTokenizer(), dirpath=tmp_path) as monitor:
        monitor.evaluate(trained_clip("vit"), 0)
    files = {path.name for path in tmp_path.iterdir()}
    for page in ("guide/loggers.md", "reference/file-formats.md"):
        listed = {row[0].strip("`").replace("<n>", "00000000") for row in read_table(PAGES[page], "| File |")}
        assert listed == files

    formats = PAGES["reference/file-formats.md"]
    line = json.loads((tmp_path / "history.jsonl").read_text())
    keys = [key for row in read_table(formats, "| Key |") for key in re.findall(r"`(\w+)`", row[0])]
    (others,) = re.findall(r"^In `history.jsonl` .*?\n\n", formats, flags=re.M | re.S)
    assert {*keys} <= line.keys() <= {*keys, *re.findall(r"`(\w+)`", others)}
    listed = {name for row in read_table(formats, "| Tensor |") for name in re.findall(r"`(\w+)`", row[0])}
    assert monitor.snapshot is not None
    tensors = {*monitor.snapshot.to_tensors()[0]}
    with (
        always_suspicious(),
        ClipCamMonitor(probes, tokenizer=WordTokenizer(), dirpath=tmp_path / "suspicious") as monitor,
    ):
        for _ in range(2):  # the first is the baseline
            monitor.evaluate(trained_clip("vit"), 0)
        assert monitor.snapshot is not None
        tensors |= monitor.snapshot.to_tensors()[0].keys()
    assert listed == tensors


def test_the_names_of_metrics_are_those_that_loggers_get() -> None:
    scenes = draw_scenes(2)
    rows = zip(scenes.images, scenes.captions, scenes.masks[:, 0], strict=True)
    probes = [clipcam_lightning.Probe(image, caption, mask=mask) for image, caption, mask in rows]
    evaluation = evaluate(trained_clip("vit"), probes, tokenizer=WordTokenizer())
    logged = {name.partition("/")[0] for name in collect_metrics(evaluation, "clipcam", per_probe=True)}
    listed = {row[0].strip("`").partition("/")[0] for row in read_table(PAGES["reference/file-formats.md"], "| Name |")}
    assert listed == logged


PROBE_SETS = {
    "8 probes": "8",
    "16 probes": "16",
    "64 probes": "64",
    "64 probes without the cue": "64 without the cue",
    "256 probes": "256",
    "256 probes, 5 with the cue": "5 of 256",
}
"""Names in the tables, by those in the results."""


def read_verdicts() -> dict[str, Any]:
    """Read what was measured of all detectors, by the names of towers and probes in the tables."""
    verdicts = json.loads((ROOT / "benchmarks" / "drift_detection.json").read_text())["verdicts"]
    named = ((*name.split(", ", 1), judged) for name, judged in verdicts.items())
    return {f"{tower.replace('resnet', 'ResNet')}, {PROBE_SETS[probes]}": judged for tower, probes, judged in named}


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


class TestBenchmarks:
    """The tables have the numbers of the JSON files that the benchmarks wrote."""

    page = PAGES["benchmarks.md"]

    def test_pointing(self) -> None:
        columns, *rows = json.loads((ROOT / "benchmarks" / "localisation.json").read_text())["rows"]
        results = [dict(zip(columns, row, strict=True)) for row in rows]
        towers = ("class token", "average pool", "attention pool", "resnet")
        measured = {
            (row["world"], row["tower"], row["method"]): f"{row['pointing']:.2f}"
            for row in results
            if row["part"] == "report" and row["objects"] == 2
            if row["target"] in ("similarity", None) and row["layers"] in (None, [-1], [0])
        }
        for world in ("shapes", "cut-outs"):
            table = read_table(self.page, f"| {world} | class token")
            for name, *values in table:
                method = name.strip("`").removesuffix(" of the image")
                expected = [measured.get((world.replace("-", ""), tower, method), "-") for tower in towers]
                assert values[:4] == expected, f"{method} in {world}"

    def test_method_ranking(self) -> None:
        measured = json.loads((ROOT / "benchmarks" / "method_ranking.json").read_text())["results"]
        rows = []
        for result in (Result(**each) for each in measured):
            chosen = (result.first["64"], result.first["16"], result.auto, "occlusion")
            shares = [f"{result.share_of_best(name):.2f}" for name in chosen]
            model = f"{result.world.replace('cutouts', 'cut-outs')}, {result.tower.replace('resnet', 'ResNet')}"
            first = f"`{chosen[0].partition(',')[0]}`"
            rows.append([model, str(result.seed), f"{result.methods[result.best]['pointing']:.2f}", first, *shares])
        assert read_table(self.page, "| model |") == rows

    def test_map_agreement(self) -> None:
        rows = json.loads((ROOT / "benchmarks" / "map_agreement.json").read_text())
        shares = {
            maps: [row["agreeing"][f"{MIN_CORRELATION:g}"] for row in rows if row["maps"] == maps and row["seed"]]
            for maps in ("auto", "other image")
        }
        text = " ".join(self.page.split())
        assert f"correlates by more than {MIN_CORRELATION:g} with" in text
        assert f"at least {min(shares['auto']):.0%}".replace("%", " %") in text
        assert f"at most {max(shares['other image']):.0%} of wrong".replace("%", " %") in text
        assert len(shares["auto"]) == 16

    @pytest.mark.parametrize(("head", "suffix"), [("| with masks |", ""), ("| without masks |", ", no masks")])
    def test_drift_detection(self, head: str, suffix: str) -> None:
        rows = {}
        for name, judged in read_verdicts().items():
            detectors = ("our rule", "the background", "shown", "at a rate of 0.05", "suspicious")
            rule, background, shown, tolerant, suspicious = (judged[f"{each}{suffix}"] for each in detectors)
            rows[name] = [
                f"{background['auc']:.2f}",
                f"{background['auc_twins']:.2f}",
                percent(rule["detected"]),
                percent(min(rule["by_kind"].values())),
                "–" if rule["delay"] is None else f"{rule['delay']:g}",
                percent(shown["detected"]),
                *(f"{each['false_alarms']:.1f}" for each in (background, rule, shown, tolerant)),
                f"{suspicious['false_alarms']:.0f}",
            ]
        assert {name: values for name, *values in read_table(self.page, head)} == rows

    def test_pooled_detections_and_false_alarms(self) -> None:
        pooled = json.loads((ROOT / "benchmarks" / "drift_detection.json").read_text())["pooled"]
        rows = {
            f"{towers.replace('ViT', 'ViTs').replace('ResNet', 'ResNets')}{suffix}": [
                str(counts["used"]),
                *(percent(counts[what] / counts["used"]) for what in ("detected", "shown")),
                str(counts["evaluations"]),
                *(f"{100 * counts[f'false at {rate} %'] / counts['evaluations']:.1f}" for rate in (1, 5)),
            ]
            for seeds, suffix in (("all seeds", ""), ("seed 2003", ", seed 2003"))
            for towers, counts in pooled[seeds].items()
            if counts["used"] and counts["evaluations"]
        }
        assert {name: values for name, *values in read_table(self.page, "| 16 probes or more |")} == rows

    def test_kinds_of_shortcuts(self) -> None:
        counts = json.loads((ROOT / "benchmarks" / "drift_detection.json").read_text())["detected"]
        rows: dict[str, list[str]] = {}
        for name, counted in counts.items():
            kind, probes = name.split(": ")
            if probes in ("16 probes", "64 probes"):
                rows.setdefault(kind, []).extend(
                    [
                        str(counted["used"]),
                        *(percent(counted[masks] / counted["used"]) for masks in ("masks", "no masks")),
                    ]
                )
        assert {name: values for name, *values in read_table(self.page, "| kind of shortcut |")} == rows

    def test_choice_of_limits(self) -> None:
        measured = json.loads((ROOT / "benchmarks" / "limit_choice.json").read_text())
        text, limits = " ".join(self.page.split()), measured["limits"]
        runs = measured["runs"]
        assert (
            f"{runs['class token']} of class-token ViTs, {runs['attention pool']} of ViTs with an attention pool and "
            f"{runs['resnet']} of ResNets" in text
        )
        with_masks, without = (limits["as it is"][masks] for masks in ("masks", "no masks"))
        assert (
            f"with masks {percent(with_masks['detected'])} of the shortcuts are detected and "
            f"{with_masks['false alarms per 100']:.1f} % of the harmless evaluations are false alarms, without "
            f"{percent(without['detected'])} and {without['false alarms per 100']:.1f} %" in text
        )
        changed = [
            each[masks]
            for name, each in limits.items()
            if name.endswith(("* 0.85", "* 1.2"))
            for masks in ("masks", "no masks")
        ]
        detected, false = ([each[what] for each in changed] for what in ("detected", "false alarms per 100"))
        assert f"between {percent(min(detected))} and {percent(max(detected))}".replace(" % and", " and") in text
        assert f"between {min(false):.1f} and {max(false):.1f} %" in text

    def test_boxes(self) -> None:
        measured = json.loads((ROOT / "benchmarks" / "boxes.json").read_text())
        head = f"| {measured['tower']}, seed {measured['seed']} |"
        rows = {}
        for name, judged in measured["verdicts"].items():
            rule, shown, tolerant = (judged[each] for each in ("our rule", "shown", "at a rate of 0.05"))
            rows[name] = [
                f"{rule['auc']:.2f}",
                f"{rule['auc_twins']:.2f}",
                percent(rule["detected"]),
                percent(shown["detected"]),
                *(f"{each['false_alarms']:.1f}" for each in (rule, shown, tolerant)),
            ]
        assert {name: values for name, *values in read_table(self.page, head)} == rows

    def test_plain_thresholds(self) -> None:
        verdicts = [judged for name, judged in read_verdicts().items() if name.endswith(", 64")]
        names = {"**our rule**, no masks": "our rule, no masks", "the conditions on the maps alone": "maps alone"}
        for title, *values in read_table(self.page, "| detector at 64 probes |"):
            name = names.get(title, title.removeprefix("mean "))
            assert values == [
                value
                for judged in verdicts
                for value in (
                    f"{judged[name]['auc']:.2f}",
                    percent(judged[name]["detected"]),
                    f"{judged[name]['false_alarms']:.1f}",
                )
            ], title
