"""What does a map cost? Time and memory of every method of ``explain``, and of Grad-CAM in three other libraries.

The unit is one plain ``no_grad`` forward of the image tower. All contenders take turns in one process, and each time is
divided by that of the forward in the same round, so that a machine that slows down for a while slows down all of them.
The weights are random, which does not change the time, and trainable, as in a fine-tuning.

Run it: python -m benchmarks.speed  (half an hour on two cores; ``--models`` for some of them, which replaces their
rows in the JSON; ``--quick``: two images and one round, to check that it runs; writes nothing)
"""

import argparse
import json
import logging
import platform
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import version
from itertools import product
from pathlib import Path
from time import perf_counter

import open_clip
import torch
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from benchmarks import goals
from benchmarks.contenders import contenders
from benchmarks.growth import Growth, growth, print_growth
from benchmarks.measure import FORWARD, Case, Cost, costs_of, print_profile
from clipcam_lightning import find_clip

RESULTS = Path(__file__).with_suffix(".json")
MODELS, IMAGES, PROMPTS = ("ViT-B-32", "ViT-B-16", "RN50"), (goals.IMAGES, 1), (1, 8, 32)
GROWTH = "growth"
THREADS = 2
PACKAGES = ("clipcam-lightning", "torch", "open_clip_torch", "grad-cam", "captum", "torchcam", "numpy")
MEMORY = {
    "cpu": "the peak of torch's allocator by its profiler; without memory of numpy and of the matrix libraries",
    "cuda": "torch.cuda.max_memory_allocated",
}
NOTES = """\
P: prompts per image. The unit is one plain forward of the image tower; times are medians.
x limit: time in units of what every pass has to compute, a forward whose last block computes only the class token
if only that is pooled. Memory is {memory}.
-: the method does not fit, compares prompts and there is only one, or would take too long."""

Costs = dict[Case, dict[str, Cost]]


def measure(
    console: Console, cases: Sequence[Case], rounds: int, device: torch.device
) -> Iterator[tuple[Case, dict[str, Cost]]]:
    """Measure the contenders on the cases of one model, and profile those that miss a goal.

    Args:
        console: for profiles.
        cases: of one model.
        rounds: turns of each contender.
        device: of the model.

    Yields:
        Each case with the costs of its contenders by name.
    """
    torch.manual_seed(0)
    clip = find_clip(open_clip.create_model(cases[0].model).eval().to(device))
    for case in cases:
        field = dict(contenders(clip, case, device))
        costs = costs_of(field, rounds, device, str(case))
        for name in {goal.contender for goal in goals.goals_of(case) if not goal.met(costs)}:
            print_profile(console, f"{name}, {case}", field[name].run, field[FORWARD].run, device)
        yield case, costs


def print_costs(console: Console, costs: Costs) -> None:
    """Print one table per model and number of images."""
    for model, images in dict.fromkeys((case.model, case.images) for case in costs):
        by_prompts = {case.prompts: costs[case] for case in costs if (case.model, case.images) == (model, images)}
        table = Table(title=f"{model}, images: {images}", box=MARKDOWN)
        table.add_column("contender")
        for unit, prompts in product(("time", "x limit", "memory"), by_prompts):
            table.add_column(f"{unit} P={prompts}", justify="right")
        for name in dict.fromkeys(name for column in by_prompts.values() for name in column):
            row = [column.get(name) for column in by_prompts.values()]
            times = [cost and cost.ratio for cost in row]
            over_limit = [cost and cost.over_limit for cost in row]
            memory = [cost and cost.memory for cost in row]
            cells = ("-" if value is None else f"{value:.2f}" for value in (*times, *over_limit, *memory))
            table.add_row(name, *cells)
        console.print(table)


def print_verdicts(console: Console, verdicts: Sequence[goals.Verdict]) -> None:
    """Print one row per goal."""
    table = Table(title="Goals", box=MARKDOWN)
    for column in ("where", "goal", "measured", "met"):
        table.add_column(column)
    for verdict in verdicts:
        table.add_row(verdict.where, verdict.goal, verdict.measured, "yes" if verdict.met else "no")
    console.print(table)


def read_record(device: torch.device) -> tuple[Costs, list[Growth]]:
    """Read what was measured before on this device; nothing if there is none."""
    content = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"device": None}
    if content["device"] != device_name(device):
        return {}, []
    costs: Costs = defaultdict(dict)
    for row in content["results"]:
        case, contender = Case(*(row.pop(name) for name in ("model", "images", "prompts"))), row.pop("contender")
        costs[case][contender] = Cost(**row)
    return dict(costs), [Growth(**row) for row in content["growth"]]


def device_name(device: torch.device) -> str:
    """Get the name of the GPU, or of the processor."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()


def record(costs: Costs, rows: Sequence[Growth], verdicts: Sequence[goals.Verdict], device: torch.device) -> str:
    """Format everything that was measured as JSON."""
    content = {
        "device": device_name(device),
        "threads": THREADS,
        "memory": MEMORY[device.type],
        "versions": {package: version(package) for package in PACKAGES},
        "results": [
            {**asdict(case), "contender": name, **asdict(cost)}
            for case, field in costs.items()
            for name, cost in field.items()
        ],
        "growth": [asdict(row) for row in rows],
        "goals": [asdict(verdict) for verdict in verdicts],
    }
    return json.dumps(content, indent=2) + "\n"


def cpu_name() -> str:
    """Get the name of the processor, on Linux from ``/proc/cpuinfo``."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.partition(": ")[2] for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", nargs="+", choices=(*MODELS, GROWTH), default=(*MODELS, GROWTH), help="by default all, then growth"
    )
    parser.add_argument(
        "--rounds", type=int, default=3, help="turns of each contender, fewer for a slow one (default 3)"
    )
    parser.add_argument("--quick", action="store_true", help="two images and one round; writes nothing")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="cpu (default) or cuda")
    options = parser.parse_args()
    sizes, rounds = (((2,), PROMPTS[:2]), 1) if options.quick else ((IMAGES, PROMPTS), options.rounds)

    start, console = perf_counter(), Console(width=140, highlight=False)
    torch.set_num_threads(THREADS)
    logging.disable(logging.WARNING)  # open_clip warns of random weights, which are intended here
    costs, rows = ({}, []) if options.quick else read_record(options.device)
    for model in filter(options.models.__contains__, MODELS):
        cases = [Case(model, images, prompts) for images, prompts in product(*sizes)]
        by_case = dict(measure(console, cases, rounds, options.device))
        print_costs(console, by_case)
        costs.update(by_case)
    if GROWTH in options.models and not options.quick:
        rows = growth(options.device)
        print_growth(console, rows)

    console.print(NOTES.format(memory=MEMORY[options.device.type]))
    verdicts = goals.verdicts(costs) + (goals.growth_verdicts(rows) if rows else [])
    if not options.quick:
        RESULTS.write_text(record(costs, rows, verdicts, options.device))
    if verdicts:
        print_verdicts(console, verdicts)
    console.print(f"{THREADS} threads, {(perf_counter() - start) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
