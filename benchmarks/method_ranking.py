"""Does ``rank_methods`` find the method that finds the objects, although it has no masks?

All methods are ranked on probes without masks, for models of both image worlds and every kind of tower. The masks,
which the ranking has not seen, then tell how often the hottest pixels of each method are on the objects. A ranking is
good if its first method points as well as the best one. For comparison: always ``auto``, always occlusion.

The rule of the ranking was chosen on models of seed 0. These are left out here: the models have other seeds, and the
scenes too. Half of the scenes have one object, half have two.

Run it: python -m benchmarks.method_ranking  (half an hour, once the models are trained; ``--quick``: one model and a
few probes, to check that it runs; writes nothing)
"""

import argparse
import json
import multiprocessing
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import torch
from rich.box import MARKDOWN
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.worlds.pretraining import pretrained_clip, retrieval_accuracy
from benchmarks.worlds.world import WORLDS, World
from clipcam_lightning import MethodRanking, Probe, ProbeSet, find_clip, rank_methods
from clipcam_lightning.analysis.map_quality import grade
from clipcam_lightning.cam.settings import MapSettings

RESULTS = Path(__file__).with_suffix(".json")
TOWERS = ("class token", "average pool", "attention pool", "resnet")
SEEDS, SCENES_SEED = (1, 2), 7000
PROBES = (64, 16)  # that methods are ranked on; the first have the masks that judge
PROCESSES = 2
METRICS = (
    "necessity", "sufficiency", "agreement", "insertion", "deletion", "randomization", "other_prompt", "degenerate",
)  # fmt: skip
PACKAGES = ("clipcam-lightning", "torch", "open_clip_torch", "timm", "numpy", "scikit-image", "scikit-learn")


@dataclass(frozen=True)
class Result:
    """The ranking of one model.

    Attributes:
        world, tower, seed: of the model.
        retrieval: share of new scenes, 0 to 1, whose caption is the closest of all.
        auto: the method that is the default; one with several settings is named with its layers.
        first: the first method, by number of probes.
        methods: what was measured with most probes, and the pointing accuracy with masks, by method in the order of the
            ranking.
    """

    world: str
    tower: str
    seed: int
    retrieval: float
    auto: str
    first: dict[str, str]
    methods: dict[str, dict[str, float]]

    @property
    def best(self) -> str:
        """The method that points best, among those without problems."""
        return max(self.methods, key=lambda name: (self.methods[name]["valid"], self.methods[name]["pointing"]))

    def share_of_best(self, method: str) -> float:
        """Pointing accuracy in units of that of the best method."""
        return self.methods[method]["pointing"] / self.methods[self.best]["pointing"]


def measure(world: World, tower: str, seed: int, probes: Sequence[int] = PROBES) -> Result:
    """Rank the methods on one model, and point with them.

    Args:
        world, tower, seed: of the model.
        probes: how many the methods are ranked on, the largest number first.
    """
    torch.set_num_threads(1)
    model = pretrained_clip(world, tower, seed)
    clip = find_clip(model, tokenizer=world.tokenizer)
    drawn = [draw_probes(world, seed, count) for count in probes]
    rankings = [rank_methods(clip, [Probe(each.image, each.prompt) for each in some]) for some in drawn]
    masks = drawn[0].prepare(clip).masks
    names = name_rows(rankings[0])
    method, layers, _ = MapSettings().resolve(clip.tower)
    (auto,) = (
        name
        for name, row in zip(names, rankings[0].rows, strict=True)
        if (row.method, row.layers) == (method.name, layers)
    )
    return Result(
        world.name,
        tower,
        seed,
        round(retrieval_accuracy(model, world), 3),
        auto=auto,
        first={str(count): name_rows(each)[0] for count, each in zip(probes, rankings, strict=True)},
        methods={
            name: {
                "pointing": round(float(grade(row.maps[:, None], masks[:, None]).pointing.mean()), 3),
                "valid": float(not row.problems),
                **{metric: round(getattr(row, metric), 4) for metric in METRICS},
            }
            for name, row in zip(names, rankings[0].rows, strict=True)
        },
    )


def draw_probes(world: World, seed: int, count: int) -> ProbeSet:
    """Draw scenes, half with one object and half with two; the prompt and the mask are of the first."""
    probes = []
    for objects in (1, 2):
        scenes = world.draw(count // 2, objects=objects, seed=SCENES_SEED + 10 * seed + objects)
        for i, (image, kinds, masks) in enumerate(zip(scenes.images, scenes.objects, scenes.masks, strict=True)):
            name = f"{objects}-objects-{i}"
            probes.append(Probe(image, world.captions[kinds[0]], mask=masks[0], name=name))
    return ProbeSet(probes)


def name_rows(ranking: MethodRanking) -> list[str]:
    """Name the methods, and those with several settings also by their first layer."""
    names = [row.method for row in ranking.rows]
    return [
        name if names.count(name) == 1 else f"{name}, {row.layers[0]}"
        for name, row in zip(names, ranking.rows, strict=True)
    ]


def make_table(results: Iterable[Result]) -> Table:
    """Tabulate, for each model, the first method and the best."""
    table = Table(box=MARKDOWN)
    firsts = [f"first on {count} probes" for count in PROBES]
    for column in ("world", "tower", "seed", "retrieval", "best", *firsts, "auto", "occlusion"):
        table.add_column(column)
    for result in in_order(results):
        best = f"{result.best} {result.methods[result.best]['pointing']:.2f}"
        methods = (*(result.first[str(count)] for count in PROBES), result.auto, "occlusion")
        chosen = (
            f"{name} {result.methods[name]['pointing']:.2f} ({result.share_of_best(name):.2f})" for name in methods
        )
        table.add_row(result.world, result.tower, str(result.seed), f"{result.retrieval:.2f}", best, *chosen)
    return table


def in_order(results: Iterable[Result]) -> list[Result]:
    """Sort by world, tower and seed."""
    return sorted(results, key=lambda each: ([*WORLDS].index(each.world), TOWERS.index(each.tower), each.seed))


def write(results: Iterable[Result]) -> None:
    """Write the results as JSON, with one line per model."""
    head: dict[str, Any] = {"probes": PROBES, "versions": {package: version(package) for package in PACKAGES}}
    lines = ",\n  ".join(json.dumps(asdict(each)) for each in in_order(results))
    RESULTS.write_text(f'{json.dumps(head, indent=1).removesuffix("}").rstrip()},\n "results": [\n  {lines}\n ]\n}}\n')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one model and a few probes; writes nothing")
    options = parser.parse_args()
    if options.quick:
        print(measure(WORLDS["shapes"], "class token", SEEDS[0], probes=(8,)))
        return
    with ProcessPoolExecutor(PROCESSES, multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(measure, *each) for each in product(WORLDS.values(), TOWERS, SEEDS)]
        done = track(as_completed(futures), "ranking", total=len(futures), transient=True)
        results = [future.result() for future in done]
    write(results)
    Console(width=200, highlight=False).print(make_table(results))


if __name__ == "__main__":
    main()
