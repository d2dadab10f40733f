"""What does a map cost? Every method of ``explain``, and Grad-CAM of three other libraries, in time and in memory.

The unit is one plain ``no_grad`` forward of the image tower. All contenders take turns in one process, and each is
divided by the forward of its own round, so that a machine that slows down for a while slows all of them. The weights
are random, which does not change the time, and trainable, as in a fine-tuning.

Run it:  python benchmarks/speed.py  (``--quick``: two images, one round, to see that it runs; writes nothing)
"""

import argparse
import json
import logging
import platform
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
THREADS = 2
PACKAGES = ("clipcam-lightning", "torch", "open_clip_torch", "grad-cam", "captum", "torchcam", "numpy")
MEMORY = {
    "cpu": "the peak of torch's allocator as its profiler saw it; numpy and the matrix libraries have their own",
    "cuda": "torch.cuda.max_memory_allocated",
}
NOTES = """\
P: prompts per image. Units are those of one plain forward of the image tower; times are medians.
x limit: time in units of the least that a pass has to compute, a forward whose last block stops at the class token
where only that is pooled. Memory is {memory}.
-: the method does not fit, compares prompts and has only one, or would take too long."""

Costs = dict[Case, dict[str, Cost]]


def measured(
    console: Console, cases: Sequence[Case], rounds: int, device: torch.device
) -> Iterator[tuple[Case, dict[str, Cost]]]:
    """The contenders on the cases of one model; who misses a goal is profiled at once, while the model is there."""
    torch.manual_seed(0)
    clip = find_clip(open_clip.create_model(cases[0].model).eval().to(device))
    for case in cases:
        field = dict(contenders(clip, case, device))
        costs = costs_of(field, rounds, device, str(case))
        for name in {goal.contender for goal in goals.goals_of(case) if not goal.met(costs)}:
            print_profile(console, f"{name}, {case}", field[name].run, field[FORWARD].run, device)
        yield case, costs


def print_costs(console: Console, costs: Costs) -> None:
    """A table for each model and number of images."""
    for model, images in dict.fromkeys((case.model, case.images) for case in costs):
        by_prompts = {case.prompts: costs[case] for case in costs if (case.model, case.images) == (model, images)}
        table = Table(title=f"{model}, images: {images}", box=MARKDOWN)
        table.add_column("contender")
        for figure, prompts in product(("time", "x limit", "memory"), by_prompts):
            table.add_column(f"{figure} P={prompts}", justify="right")
        for name in dict.fromkeys(name for column in by_prompts.values() for name in column):
            row = [column.get(name) for column in by_prompts.values()]
            times = [cost and cost.ratio for cost in row]
            over_limit = [cost and cost.over_limit for cost in row]
            memory = [cost and cost.memory for cost in row]
            cells = ("-" if figure is None else f"{figure:.2f}" for figure in (*times, *over_limit, *memory))
            table.add_row(name, *cells)
        console.print(table)


def print_verdicts(console: Console, verdicts: Sequence[goals.Verdict]) -> None:
    """Goal, measured, met."""
    table = Table(title="Goals", box=MARKDOWN)
    for column in ("where", "goal", "measured", "met"):
        table.add_column(column)
    for verdict in verdicts:
        table.add_row(verdict.where, verdict.goal, verdict.measured, "yes" if verdict.met else "no")
    console.print(table)


def record(costs: Costs, rows: Sequence[Growth], verdicts: Sequence[goals.Verdict], device: torch.device) -> str:
    """Everything that was measured, as JSON."""
    content = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
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
    """The processor as Linux calls it, elsewhere as Python does."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.partition(": ")[2] for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS, help="by default all, and then growth")
    parser.add_argument(
        "--rounds", type=int, default=3, help="turns of each contender, fewer if it is slow (default 3)"
    )
    parser.add_argument("--quick", action="store_true", help="two images, one round")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="cpu (default) or cuda")
    options = parser.parse_args()
    sizes, rounds = (((2,), PROMPTS[:2]), 1) if options.quick else ((IMAGES, PROMPTS), options.rounds)
    complete = not options.quick and set(options.models) == set(MODELS)

    start, console = perf_counter(), Console(width=140, highlight=False)
    torch.set_num_threads(THREADS)
    logging.disable(logging.WARNING)  # open_clip warns of random weights, which are wanted here
    costs: Costs = {}
    for model in options.models:
        cases = [Case(model, images, prompts) for images, prompts in product(*sizes)]
        found = dict(measured(console, cases, rounds, options.device))
        print_costs(console, found)
        costs.update(found)
    rows = growth(options.device) if complete else []

    console.print(NOTES.format(memory=MEMORY[options.device.type]))
    verdicts = goals.verdicts(costs)
    if complete:
        print_growth(console, rows)
        verdicts += goals.growth_verdicts(rows)
        RESULTS.write_text(record(costs, rows, verdicts, options.device))
    if verdicts:
        print_verdicts(console, verdicts)
    console.print(f"{THREADS} threads, {(perf_counter() - start) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
