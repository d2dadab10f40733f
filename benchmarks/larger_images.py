"""Do maps of larger images cost what their forward costs, times the same factor?

ViT-B-32 of open_clip, built for 224 pixels, explains images of 224 and of 352 pixels, which are 2.5 times as many; for
the larger ones positions are interpolated. The unit at 352 pixels is the plain forward of a model built for them.
All take turns in one process.

Run it: python -m benchmarks.larger_images  (two minutes on two cores; ``--quick``: two images and one round; writes
nothing)
"""

import argparse
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median

import open_clip
import torch
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F

from benchmarks.goals import Verdict
from benchmarks.measure import FORWARD, seconds_of
from benchmarks.peers import image_tower
from benchmarks.speed import THREADS, cpu_name, print_verdicts
from clipcam_lightning import explain, find_clip

RESULTS = Path(__file__).with_suffix(".json")
MODEL, SIDES, IMAGES, ROUNDS = "ViT-B-32", (224, 352), 16, 7
METHODS = (("gradcam", 1), ("gradcam", 8), ("decomposition", 32), ("clip_surgery", 32), ("attnlrp", 1))  # with prompts
SAME = 0.1  # by how much the factor of larger images may be above that of others
DEVICE = torch.device("cpu")
PACKAGES = ("clipcam-lightning", "torch", "open_clip_torch")


@dataclass(frozen=True)
class Factor:
    """What a method costs at both sizes.

    Attributes:
        method: its name.
        prompts: per image.
        factors: time in units of the plain forward of images of that size, the smaller size first; medians.
        milliseconds: per image; medians.
    """

    method: str
    prompts: int
    factors: Sequence[float]
    milliseconds: Sequence[float]


def measure(images: int, rounds: int) -> tuple[list[Factor], float]:
    """Measure all methods in turns.

    Args:
        images: per call.
        rounds: turns.

    Returns:
        One row per method, and the time of the larger forward in units of the other one.
    """
    torch.manual_seed(0)
    clip = find_clip(open_clip.create_model(MODEL).eval())
    larger = find_clip(open_clip.create_model(MODEL, force_image_size=SIDES[1]).eval())
    runs: dict[tuple[object, ...], Callable[[], object]] = {}
    for side, own in zip(SIDES, (clip, larger), strict=True):
        pixels = torch.randn(images, 3, side, side)
        runs[side, FORWARD] = torch.no_grad()(partial(image_tower(own), pixels))
        for method, prompts in METHODS:
            texts = F.normalize(torch.randn(images, prompts, image_tower(clip).output_dim), dim=-1)
            runs[side, method, prompts] = partial(explain, clip, pixels, texts, method=method)
    seconds: dict[tuple[object, ...], list[float]] = {name: [] for name in runs}
    for i in range(rounds + 1):
        for name, run in runs.items():
            time = seconds_of(run, DEVICE)
            if i:  # the first round warms up
                seconds[name].append(time)
    rows = []
    for method, prompts in METHODS:
        own = [seconds[side, method, prompts] for side in SIDES]
        units = [seconds[side, FORWARD] for side in SIDES]
        factors = [median(a / b for a, b in zip(*pair, strict=True)) for pair in zip(own, units, strict=True)]
        milliseconds = [1e3 * median(each) / images for each in own]
        rows.append(
            Factor(method, prompts, [round(each, 3) for each in factors], [round(each, 2) for each in milliseconds])
        )
    small, large = (seconds[side, FORWARD] for side in SIDES)
    return rows, round(median(b / a for a, b in zip(small, large, strict=True)), 3)


def verdicts(rows: list[Factor]) -> list[Verdict]:
    """Judge whether each factor is the same at both sizes."""
    goal = f"time at {SIDES[1]} px in its own forwards: at most {1 + SAME:g} times that at {SIDES[0]} px"
    return [
        Verdict(
            f"{row.method}, P = {row.prompts}",
            goal,
            f"{row.factors[1]:.2f} against {row.factors[0]:.2f}",
            row.factors[1] <= (1 + SAME) * row.factors[0],
        )
        for row in rows
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two images and one round; writes nothing")
    quick: bool = parser.parse_args().quick
    torch.set_num_threads(THREADS)
    logging.disable(logging.WARNING)  # open_clip warns of random weights, which are intended here
    rows, forward = measure(2, 1) if quick else measure(IMAGES, ROUNDS)
    console = Console(width=140, highlight=False)
    table = Table(title=f"{MODEL}, {IMAGES} images; the forward takes {forward:.2f} times as long", box=MARKDOWN)
    for column in (
        "method",
        "P",
        *(f"forwards at {side} px" for side in SIDES),
        *(f"ms at {side} px" for side in SIDES),
    ):
        table.add_column(column)
    for row in rows:
        table.add_row(row.method, str(row.prompts), *map(str, (*row.factors, *row.milliseconds)))
    console.print(table)
    judged = verdicts(rows)
    print_verdicts(console, judged)
    if not quick:
        content = {
            "device": cpu_name(),
            "threads": THREADS,
            "model": MODEL,
            "images": IMAGES,
            "sides": SIDES,
            "forward": forward,
            "versions": {package: version(package) for package in PACKAGES},
            "results": [asdict(row) for row in rows],
            "goals": [asdict(verdict) for verdict in judged],
        }
        RESULTS.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
