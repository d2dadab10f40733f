"""How much faster do two ranks explain a big probe set than one?

Two processes of one thread each, connected by gloo as under DDP on a CPU, hold ViT-B-32 of open_clip, random weights.
They explain 1,024 images, as the explain part of a look does: rank 0 alone, both together, in turn. The images are sent
anew each time, as at the first look; later looks at the same probes save that.

Run it:  python benchmarks/ranks.py  (``--quick``: 16 images of a small model, writes nothing)
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
from clipcam_lightning import ClipModel, find_clip
from clipcam_lightning.monitoring.explainer import explain_in_memory
from clipcam_lightning.shapes_world.models import build_clip
from clipcam_lightning.training.ranks import Explainer, Ranks

RESULTS = Path(__file__).with_suffix(".json")
MODEL, IMAGES, ROUNDS, RANKS, PORT = "ViT-B-32", 1024, 3, 2, "29533"
GOAL = 0.6  # of one rank's time
SETTINGS = {"method": "auto"}
PACKAGES = ("clipcam-lightning", "torch", "open_clip_torch")


def measure(rank: int, quick: bool, times: "multiprocessing.Queue[tuple[float, float]]") -> None:
    """What one process does; rank 0 notes the seconds of one and of two ranks, a pair a round."""
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": PORT}
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)  # open_clip warns of random weights, which are wanted here
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
            explain(clip, images, prompts, explain_in_memory)
        alone = perf_counter() - start
        distributed.barrier()
        start = perf_counter()
        ranks.forget()
        ranks.evaluate(clip, clip.module, SETTINGS, partial(explain, clip, images, prompts))
        if rank == 0 and i >= 0:  # the first round is for warming up
            times.put((alone, perf_counter() - start))
    distributed.destroy_process_group()


def explain(clip: ClipModel, images: Tensor, prompts: Tensor, explainer: Explainer) -> None:
    explainer(clip, images, prompts, **SETTINGS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small model and few images; writes nothing")
    options = parser.parse_args()
    times = multiprocessing.get_context("spawn").Queue()
    multiprocessing.spawn(measure, (options.quick, times), nprocs=RANKS)
    rounds = [times.get() for _ in range(1 if options.quick else ROUNDS)]
    ratio = median(together / alone for alone, together in rounds)
    verdict = Verdict(f"{MODEL}, {IMAGES} images", f"two ranks of one: at most {GOAL:g}", f"{ratio:.2f}", ratio <= GOAL)
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
