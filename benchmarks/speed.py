"""What does a map cost? ``explain`` and pytorch-grad-cam, in units of one plain forward of the image tower.

All contenders take turns in one process, and each is divided by the forward of its own round, so that a machine that
slows down for a while slows both sides. The weights of the ViT-B-32 are random: they do not change the time.

Run it:  python benchmarks/speed.py
"""

import argparse
import json
import logging
import platform
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from time import perf_counter

import open_clip
import torch
from jaxtyping import Float
from pytorch_grad_cam import GradCAM
from rich.box import MARKDOWN
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from clipcam_lightning import METHODS, ClipModel, explain, find_clip

RESULTS = Path(__file__).with_suffix(".json")
MODEL, IMAGES, THREADS, WARM_UP = "ViT-B-32", 16, 2, 2
PROMPTS = [f"a photo of a {thing}" for thing in ("dog", "cat", "car", "tree", "house", "boat", "cup", "child")]
PACKAGES = ("clipcam-lightning", "torch", "open_clip_torch", "grad-cam", "numpy")


@dataclass(frozen=True)
class Contender:
    """Something to be timed.

    Attributes:
        prompts: maps per image that one run makes.
        run: does the work once.
        every: how many rounds apart its runs are; a slow one sits most rounds out.
    """

    name: str
    prompts: int
    run: Callable[[], object]
    every: int = 1


@dataclass(frozen=True)
class Timing:
    """Medians over the rounds of one contender.

    Attributes:
        ratio: its seconds in units of the plain forward of the same round.
        rounds: how many rounds it took part in.
    """

    contender: str
    prompts: int
    ratio: float
    seconds: float
    rounds: int


def plain_forward(clip: ClipModel, images: Float[Tensor, "n 3 y x"]) -> None:
    """The unit: embed the images, keep nothing for a gradient."""
    with torch.no_grad():
        clip.module.visual(images)


def peer_maps(clip: ClipModel, images: Float[Tensor, "n 3 y x"], texts: Float[Tensor, "n p d"]) -> None:
    """Grad-CAM by pytorch-grad-cam, which has one target an image: it is called once a prompt."""
    visual = clip.module.visual
    height, width = visual.grid_size

    def patches(tokens: Float[Tensor, "n t c"]) -> Float[Tensor, "n c h w"]:
        return tokens[:, 1:].transpose(1, 2).unflatten(2, (height, width))

    def cosine(text: Float[Tensor, "d"], image: Float[Tensor, "d"]) -> Float[Tensor, ""]:
        return F.cosine_similarity(image, text, dim=0)

    # Made anew each time, because its hooks stay on the model and would slow the other contenders.
    with GradCAM(visual, [visual.transformer.resblocks[-1].ln_1], reshape_transform=patches) as cam:
        for column in texts.unbind(1):
            cam(images, [partial(cosine, text) for text in column])


def contenders(clip: ClipModel) -> Iterator[Contender]:
    """Everything that is compared with the plain forward."""
    images = torch.randn(IMAGES, 3, *clip.tower.input_size)
    texts = F.normalize(torch.randn(IMAGES, len(PROMPTS), clip.module.visual.output_dim), dim=-1)
    yield Contender("plain forward", 0, partial(plain_forward, clip, images))
    for count in (1, len(PROMPTS)):
        for method in METHODS:
            run = partial(explain, clip, images, texts[:, :count], method=method)
            yield Contender(f"explain, {method}, text embeddings", count, run)
        run = partial(explain, clip, images, PROMPTS[:count], method="gradcam")
        yield Contender("explain, gradcam, strings", count, run)
        run = partial(peer_maps, clip, images, texts[:, :count])
        yield Contender("pytorch-grad-cam, text embeddings", count, run, every=1 if count == 1 else 5)


def timings(clip: ClipModel, rounds: int) -> list[Timing]:
    """Let the contenders take turns; the first one, in every round, is the unit of the others."""
    field = list(contenders(clip))
    seconds: list[dict[int, float]] = [{} for _ in field]  # by round
    for turn in track(range(-WARM_UP, rounds), f"timing on {THREADS} threads", transient=True):
        for contender, taken in zip(field, seconds, strict=True):
            if turn % contender.every == 0:
                start = perf_counter()
                contender.run()
                taken[turn] = perf_counter() - start
    measured = [{turn: time for turn, time in taken.items() if turn >= 0} for taken in seconds]
    return [
        Timing(
            contender=contender.name,
            prompts=contender.prompts,
            ratio=round(median(time / measured[0][turn] for turn, time in taken.items()), 3),
            seconds=round(median(taken.values()), 4),
            rounds=len(taken),
        )
        for contender, taken in zip(field, measured, strict=True)
    ]


def print_tables(results: list[Timing]) -> None:
    """Print the results twice, for the terminal and for the README."""
    table = Table(title=f"{MODEL}, {IMAGES} images, {THREADS} threads: medians")
    table.add_column("contender")
    for column in ("P", "ratio", "seconds"):
        table.add_column(column, justify="right")
    for row in results:
        table.add_row(row.contender, str(row.prompts or "-"), f"{row.ratio:.2f}", f"{row.seconds:.3f}")
    console = Console(width=120)
    console.print(table)
    table.title, table.box = None, MARKDOWN
    console.print(table)
    console.print(
        "P: prompts per image. The limit is about one plain forward, 1.00; explain computes only the CLS row\n"
        "of the last block, so it can lie under 1.",
        highlight=False,
    )


def cpu_name() -> str:
    """The processor as Linux calls it, elsewhere as Python does."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.partition(": ")[2] for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help=f"measured rounds, after {WARM_UP} more (default 15)")
    rounds: int = parser.parse_args().rounds

    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    logging.disable(logging.WARNING)  # open_clip warns of random weights, which are wanted here
    results = timings(find_clip(open_clip.create_model(MODEL).eval()), rounds)

    print_tables(results)
    record = {
        "model": MODEL,
        "images": IMAGES,
        "threads": THREADS,
        "cpu": cpu_name(),
        "versions": {package: version(package) for package in PACKAGES},
        "results": [asdict(timing) for timing in results],
    }
    RESULTS.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
