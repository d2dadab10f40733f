"""What do thousands of probes cost? Time per probe, memory, files, and how long reports of them take.

ViT-B-32 of open_clip with random weights evaluates 64, 1,024 and 10,000 crops of photographs with masks and eight
prompts, each number in a process of its own: the evaluation that becomes the baseline, a later one, for which the
weights of the image tower are slightly others, and one that looks suspicious, so that other objects are tried on all
backgrounds. So does a model of two narrow blocks for images of the same size, whose forward is so short that all other
work shows. The unit of time is the plain forward of a batch of 32 images, measured in the same process before and after
each evaluation.

Run it: python -m benchmarks.scale  (an hour on two cores; ``--only`` for some cases, which replaces their rows in the
JSON; ``--quick``: few probes, writes nothing)
"""

import argparse
import json
import logging
import multiprocessing
import resource
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any
from unittest.mock import patch

import open_clip
import torch
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from benchmarks.goals import Verdict
from benchmarks.memory import resident_megabytes, small_clip
from benchmarks.photographs import probe_set
from benchmarks.speed import THREADS, cpu_name, print_verdicts
from clipcam_lightning import DriftReport, find_clip, html_pages
from clipcam_lightning.monitoring.explainer import LocalExplainer
from clipcam_lightning.monitoring.monitor import Monitor
from clipcam_lightning.monitoring.recorded_run import load_run
from clipcam_lightning.shapes_world.models import WordTokenizer
from clipcam_lightning.sinks import LoggingSettings, make_sinks
from clipcam_lightning.storage.paths import as_path
from clipcam_lightning.storage.run_folder import HISTORY, RunFolder

RESULTS = Path(__file__).with_suffix(".json")
MODEL, BATCH, FORWARDS = "ViT-B-32", 32, 8
SMALL = "two blocks"
COUNTS, REPEATED = (64, 1024, 10_000), 1024  # probes; ViT-B-32 evaluates more than REPEATED once: it takes half an hour
CHANGE = 2e-4  # standard deviation of what is added to each weight before a later evaluation: no background stands out
FLAT = 0.1  # by how much the time per probe may differ from that of 64
MEGABYTES = 1.0  # per probe: model input as floats would take 0.6, and several copies of it a multiple
PACKAGES = ("clipcam-lightning", "torch", "open_clip_torch", "lightning", "pillow")


@dataclass(frozen=True)
class Scale:
    """What so many probes cost.

    Attributes:
        model: its name.
        probes: how many.
        threads: of torch.
        forward: milliseconds of a plain forward per image.
        first: forwards per probe of the evaluation that becomes the baseline.
        later: forwards per probe of a later one that is not suspicious; ``None`` if there was none.
        suspicious: forwards per probe of one that tries other objects on all backgrounds; ``None`` if there was none.
        probe_megabytes: of the probe set itself, whose images are in memory.
        evaluation_megabytes: peak memory beyond model and probe set.
        history: kilobytes of a line in the history.
        snapshot: megabytes of the baseline's snapshot with all images.
        load: seconds until the run is read.
        pages: seconds until all pages of the HTML report are made.
    """

    model: str
    probes: int
    threads: int
    forward: float
    first: float
    later: float | None
    suspicious: float | None
    probe_megabytes: float
    evaluation_megabytes: float
    history: float
    snapshot: float
    load: float
    pages: float


def measure(name: str, count: int, threads: int) -> Scale:
    """Measure in this process, whose peak memory must not be that of something else.

    Args:
        name: of the model.
        count: of the probes.
        threads: of torch.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    logging.disable(logging.WARNING)  # open_clip warns of random weights, which are intended here
    model: Any = small_clip() if name == SMALL else open_clip.create_model(MODEL)
    tokenizer = WordTokenizer() if name == SMALL else None
    clip = find_clip(model.eval(), tokenizer=tokenizer)
    side = clip.preprocessing.size[0]
    seconds = [time_forward(model, side)]
    before = resident_megabytes()
    probes = probe_set(count, side, masks=True)
    probe_megabytes = resident_megabytes() - before
    monitor, times = Monitor(probes), []
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(as_path(folder), monitor.run_id)
        monitor.sinks = make_sinks([], run, LoggingSettings())
        for step, suspicious in enumerate((False,) if name == MODEL and count > REPEATED else (False, False, True)):
            start = perf_counter()
            with patch.object(DriftReport, "suspicious", True) if suspicious else nullcontext():
                problems = monitor.evaluate(LocalExplainer(clip), step=step, epoch=step).problems
            times.append(perf_counter() - start)
            assert not problems, problems
            assert suspicious or not (monitor.last and monitor.last.report.suspicious)
            seconds.append(time_forward(model, side))
            with torch.no_grad():
                for parameter in model.visual.parameters():
                    parameter.add_(CHANGE * torch.randn_like(parameter))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        last = monitor.last
        assert last is not None
        problems = monitor.close()
        assert not problems, problems
        start = perf_counter()
        assert len(load_run(run.path).evaluations) == len(times)
        load = perf_counter() - start
        start = perf_counter()
        list(html_pages(last.baseline, last.snapshot, last.report))
        pages = perf_counter() - start
        lines = (run.path / HISTORY).read_bytes().splitlines()
        snapshot = max(file.stat().st_size for file in run.path.glob("*.safetensors"))
    forward = median(seconds)
    first, later, suspicious = (*(round(each / count / forward, 3) for each in times), None, None)[:3]
    return Scale(
        model=name,
        probes=count,
        threads=threads,
        forward=round(1e3 * forward, 1),
        first=first,
        later=later,
        suspicious=suspicious,
        probe_megabytes=round(probe_megabytes),
        evaluation_megabytes=round(peak - before - probe_megabytes),
        history=round(len(lines[-1]) / 1e3, 1),
        snapshot=round(snapshot / 1e6, 1),
        load=round(load, 2),
        pages=round(pages, 2),
    )


@torch.no_grad()
def time_forward(model: Any, side: int) -> float:
    """Measure the seconds of a plain forward per image: the median of some batches."""
    pixels, seconds = torch.randn(BATCH, 3, side, side), []
    for _ in range(FORWARDS):
        start = perf_counter()
        model.encode_image(pixels)
        seconds.append(perf_counter() - start)
    return median(seconds) / BATCH


def verdicts(rows: Sequence[Scale]) -> list[Verdict]:
    """Judge whether time and memory per probe are flat."""
    judged = []
    for row in rows:
        base = next(each for each in rows if each.model == row.model)
        if row is base:
            continue
        where = f"{row.model}, {row.probes:,} probes"
        for what in ("first", "later", "suspicious"):
            value, reference = getattr(row, what), getattr(base, what)
            if value is None or reference is None:
                continue
            goal = f"{what} evaluation: time per probe at most {1 + FLAT:g} times that of {base.probes} probes"
            ratio = value / reference
            judged.append(Verdict(where, goal, f"{ratio:.2f}", ratio <= 1 + FLAT))
        per_probe = row.evaluation_megabytes / row.probes
        goal = f"peak memory of the evaluations beyond model and probe set: at most {MEGABYTES:g} MB per probe"
        judged.append(Verdict(where, goal, f"{per_probe:.2f}", per_probe <= MEGABYTES))
    return judged


def print_rows(console: Console, rows: Sequence[Scale]) -> None:
    table = Table(box=MARKDOWN)
    table.add_column("")
    for row in rows:
        table.add_column(f"{row.model}, {row.probes:,} probes", justify="right")
    for title, show in (
        ("first evaluation, forwards per probe", lambda row: f"{row.first:.2f}"),
        ("later evaluation, forwards per probe", lambda row: "-" if row.later is None else f"{row.later:.2f}"),
        ("suspicious evaluation, the same", lambda row: "-" if row.suspicious is None else f"{row.suspicious:.2f}"),
        ("forward of an image, ms", lambda row: f"{row.forward:.1f}"),
        ("probe set, MB", lambda row: f"{row.probe_megabytes:,.0f}"),
        ("peak of the evaluations, MB", lambda row: f"{row.evaluation_megabytes:,.0f}"),
        ("line of the history, kB", lambda row: f"{row.history:,.0f}"),
        ("snapshot with all images, MB", lambda row: f"{row.snapshot:,.1f}"),
        ("reading the run, s", lambda row: f"{row.load:.1f}"),
        ("pages of the HTML report, s", lambda row: f"{row.pages:.1f}"),
    ):
        table.add_row(title, *map(show, rows))
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cases = {f"{name}, {count}": (name, count) for name in (SMALL, MODEL) for count in COUNTS}
    parser.add_argument(
        "--only", nargs="+", choices=cases, default=cases, metavar="CASE", help="by default all: %(choices)s"
    )
    parser.add_argument("--quick", action="store_true", help="few probes; writes nothing")
    options = parser.parse_args()

    console = Console(width=120, highlight=False)
    rows: list[Scale] = []
    if RESULTS.exists() and not options.quick:
        content = json.loads(RESULTS.read_text())
        if content["device"] == cpu_name() and content["versions"] == versions():
            rows = [Scale(**row) for row in content["results"]]
    order = [*cases.values()]
    for name, count in ((SMALL, 16), (SMALL, 48)) if options.quick else map(cases.__getitem__, options.only):
        # A process of its own: the peak memory of a process never falls.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            row = pool.submit(measure, name, count, THREADS).result()
        print_rows(console, [row])
        if not options.quick:
            others = [each for each in rows if (each.model, each.probes) != (name, count)]
            rows = sorted([*others, row], key=lambda each: order.index((each.model, each.probes)))
            write(rows)
    if not options.quick:
        print_rows(console, rows)
        print_verdicts(console, verdicts(rows))


def versions() -> dict[str, str]:
    """Get the versions of the packages that took part."""
    return {package: version(package) for package in PACKAGES}


def write(rows: Sequence[Scale]) -> None:
    """Write everything that was measured as JSON."""
    content = {
        "device": cpu_name(),
        "batch": BATCH,
        "versions": versions(),
        "results": [asdict(row) for row in rows],
        "goals": [asdict(verdict) for verdict in verdicts(rows)],
    }
    RESULTS.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
