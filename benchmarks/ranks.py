"""How much faster do two ranks explain a large probe set than one?

Two processes with one thread each, connected by gloo as under DDP on a CPU, have ViT-B-32 of open_clip with random
weights. They explain 1,024 images as an evaluation does, alternately on rank 0 alone and on both ranks. The images are
sent each time, as at the first evaluation; later evaluations of the same probes do not send them.

Run it: python -m benchmarks.ranks  (``--quick``: 16 images and a small model; writes nothing)
"""

import argparse
import json
import logging
import os
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from time import perf_counter

import open_clip
import torch
from rich.console import Console
from torch import Tensor, distributed, multiprocessing

from benchmarks.goals import Verdict
from benchmarks.speed import cpu_name, print_verdicts
from clipcam_lightning import find_clip
from clipcam_lightning.cam.settings import MapSettings
from clipcam_lightning.monitoring.explainer import Explainer, LocalExplainer
from clipcam_lightning.shapes_world.models import build_clip
from clipcam_lightning.training.distributed_explainer import DistributedExplainer
from clipcam_lightning.training.ranks import Ranks

RESULTS = Path(__file__).with_suffix(".json")
MODEL, IMAGES, ROUNDS, RANKS, PORT = "ViT-B-32", 1024, 3, 2, "29533"
GOAL = 0.6  # of one rank's time
PACKAGES = ("clipcam-lightning", "torch", "open_clip_torch")


def measure(rank: int, quick: bool, times: "multiprocessing.Queue[tuple[float, float]]") -> None:
    """Measure on one rank; to be called on both.

    Args:
        rank: of this process.
        quick: 16 images and a small model.
        times: receives the seconds of one rank and of two ranks, a pair per round, from rank 0.
    """
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": PORT}
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)  # open_clip warns of random weights, which are intended here
    distributed.init_process_group("gloo", rank=rank, world_size=RANKS)
    torch.manual_seed(0)
    clip = find_clip(build_clip() if quick else open_clip.create_model(MODEL))
    count = 16 if quick else IMAGES
    images = torch.randn(count, 3, *clip.preprocessing.size)
    with torch.no_grad():
        prompts = torch.randn(count, 1, clip.features(images[:1]).shape[1])
    ranks = Ranks()
    ranks.size = RANKS
    for i in range(-1, 1 if quick else ROUNDS):
        distributed.barrier()
        start = perf_counter()
        if rank == 0:
            explain(LocalExplainer(clip), images, prompts)
        alone = perf_counter() - start
        distributed.barrier()
        start = perf_counter()
        explainer = DistributedExplainer(clip, MapSettings(), ranks)  # a new one sends the images again
        with ranks.lending_buffers(clip.module):
            ranks.on_rank_zero(partial(explain, explainer, images, prompts), explainer.assist)
        if rank == 0 and i >= 0:  # the first round warms up
            times.put((alone, perf_counter() - start))
    distributed.destroy_process_group()


def explain(explainer: Explainer, images: Tensor, prompts: Tensor) -> None:
    """Explain without a result, which would be sent to the other rank."""
    explainer(images, prompts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="16 images and a small model; writes nothing")
    options = parser.parse_args()
    times = multiprocessing.get_context("spawn").Queue()
    multiprocessing.spawn(measure, (options.quick, times), nprocs=RANKS)
    rounds = [times.get() for _ in range(1 if options.quick else ROUNDS)]
    ratio = median(together / alone for alone, together in rounds)
    goal = f"time of two ranks in units of one: at most {GOAL:g}"
    verdict = Verdict(f"{MODEL}, {IMAGES} images", goal, f"{ratio:.2f}", ratio <= GOAL)
    console = Console(width=140, highlight=False)
    console.print("seconds of one rank, of two:", ", ".join(f"{one:.1f}, {two:.1f}" for one, two in rounds))
    print_verdicts(console, [verdict])
    if not options.quick:
        content = {
            "device": cpu_name(),
            "versions": {package: version(package) for package in PACKAGES},
            "seconds": rounds,
            "ratio": round(ratio, 3),
        }
        RESULTS.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
