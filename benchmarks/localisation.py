"""Do maps find what a prompt names? Every method, layer and target is graded against exact masks.

On both image worlds and every kind of tower, held-out scenes have one or two objects. The captions of all objects in a
scene are the prompts of one call, so that the target ``contrast`` contrasts each object with the others; a single
object is contrasted with all captions. Everything is measured twice: models of one seed and scenes of one seed are to
choose by, others are to report on.

In reported scenes with two objects, the maps of ``similarity`` are also tested without masks: deletion and insertion
(of the first object), and parameter randomization. Edges of the image are graded like a map, as a baseline for each
metric and as a control that must fail parameter randomization.

Run it: python -m benchmarks.localisation  (about an hour on two cores, once the models are trained; ``--quick``: a few
scenes, to check that it runs; writes nothing)
"""

import argparse
import multiprocessing
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from copy import deepcopy
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from rich.progress import track
from torch import Tensor

from benchmarks.grading import randomize_parameters, relative_area
from benchmarks.localisation_maps import (
    CHANNELWISE,
    SCORE_METHODS,
    Inputs,
    Maps,
    Setting,
    cheap_maps,
    score_maps,
    targets_for,
)
from benchmarks.localisation_report import Results, Row, print_tables, write
from benchmarks.worlds.pretraining import pretrained_clip
from benchmarks.worlds.towers import build_clip
from benchmarks.worlds.world import WORLDS, World
from clipcam_lightning import ClipModel, find_clip
from clipcam_lightning.analysis.map_quality import LIKE_BEFORE, grade, likeness, perturbation_curves

RESULTS = Path(__file__).with_suffix(".json")
OBJECTS, TESTED = (1, 2), 2  # objects per scene; those of the tests without masks
RANDOM_SEED = 3000
_RESBLOCKS = ("ln_post|proj", *(rf"transformer\.resblocks\.{i}" for i in (2, 1, 0)), "")
STAGES = {  # from the top down; "" is all that remains
    "class token": _RESBLOCKS,
    "average pool": _RESBLOCKS,
    "attention pool": (r"trunk\.attn_pool", r"trunk\.norm", *(rf"trunk\.blocks\.{i}" for i in (2, 1, 0)), ""),
    "resnet": ("attnpool", "layer4", "layer3", "layer2", "layer1", ""),
}
CONTROL = Setting("edges", None, None)
PROCESSES = 2
PACKAGES = ("clipcam-lightning", "torch", "open_clip_torch", "timm", "numpy", "pillow", "scikit-image", "scikit-learn")


class Part(NamedTuple):
    """A half of the measurement.

    Attributes:
        name: ``"choice"`` or ``"report"``.
        seeds: of the training of the models.
        scenes_seed: of the scenes; the models were trained on scenes of other seeds.
    """

    name: str
    seeds: tuple[int, ...]
    scenes_seed: int


PARTS = (Part("choice", (0,), 2000), Part("report", (1, 2), 1000))


@dataclass(frozen=True)
class Counts:
    """How many scenes with each number of objects; fewer for slow methods.

    Attributes:
        one_pass: scenes for methods that take few passes.
        regionwise: scenes for methods that take one pass per region.
        channelwise: scenes for methods that take one pass per channel.
        tested: scenes for the tests without masks, or all with maps if these are fewer.
    """

    one_pass: int = 100
    regionwise: int = 100
    channelwise: int = 3
    tested: int = 10


QUICK = Counts(one_pass=6, regionwise=2, channelwise=1, tested=2)


def make_inputs(
    clip: ClipModel, world: World, count: int, objects: int, seed: int
) -> tuple[Inputs, Bool[Tensor, "n k y x"]]:
    """Draw scenes and make them input of a model.

    Args:
        clip: the model.
        world: of the scenes.
        count: how many scenes.
        objects: per scene.
        seed: of the scenes.

    Returns:
        The input, and the masks at the size of the scenes.
    """
    scenes = world.draw(count, objects=objects, seed=seed)
    images = torch.stack([clip.preprocessing.image(image) for image in scenes.images])
    prompts = [[world.captions[kind] for kind in kinds] for kinds in scenes.objects]
    return Inputs(images, prompts, targets_for(objects, world.captions)), torch.from_numpy(scenes.masks)


def all_maps(clip: ClipModel, inputs: Inputs, counts: Counts) -> Iterator[Maps]:
    """Make the maps of every setting; slow methods get fewer scenes."""
    yield from cheap_maps(clip, inputs)
    for method in SCORE_METHODS:
        count = counts.channelwise if method.name in CHANNELWISE else counts.regionwise
        yield from score_maps(clip, inputs.first(count), method)


@torch.no_grad()
def areas(clip: ClipModel, inputs: Inputs, maps: Float[Tensor, "n k h w"]) -> tuple[float, float]:
    """Measure deletion and insertion of the first object."""
    texts = clip.embed_texts([prompts[0] for prompts in inputs.prompts])
    deletion, insertion = perturbation_curves(
        lambda images: (clip.embed_images(images) * texts).sum(dim=1), inputs.images, maps[:, 0]
    )
    whole, blank = deletion[:, 0], deletion[:, -1]
    return relative_area(deletion, whole, blank), relative_area(insertion, whole, blank)


def likeness_by_stage(
    world: World,
    tower: str,
    clip: ClipModel,
    inputs: Inputs,
    before: Mapping[Setting, Float[Tensor, "n k h w"]],
    counts: Counts,
) -> dict[Setting, list[float]]:
    """Measure how like maps are before and after the randomization of parameters, stage by stage.

    Args:
        world: of the model.
        tower: of the model.
        clip: the trained model.
        inputs: what to explain.
        before: the maps of the trained model.
        counts: of scenes.

    Returns:
        One value per stage; for perturbation-based methods that of the last stage only.
    """
    torch.manual_seed(RANDOM_SEED)
    randomized, untrained = deepcopy(clip), build_clip(tower, world)
    visual = randomized.module.get_submodule("visual")
    likenesses = defaultdict(list)
    for stage in randomize_parameters(visual, untrained.visual, STAGES[tower]):
        after = cheap_maps(randomized, inputs) if stage else all_maps(randomized, inputs, counts)
        for setting, maps in after:
            likenesses[setting].append(likeness(before[setting].flatten(0, 1), maps.flatten(0, 1)))
    return likenesses


def results_of(world: World, tower: str, part: Part, objects: int, counts: Counts) -> dict[Setting, Results]:
    """Measure every setting on scenes with so many objects.

    Args:
        world: of the models and the scenes.
        tower: of the models.
        part: which models and scenes.
        objects: per scene.
        counts: of scenes.
    """
    torch.set_num_threads(1)
    clips = [find_clip(pretrained_clip(world, tower, seed), tokenizer=world.tokenizer) for seed in part.seeds]
    inputs, masks = make_inputs(clips[0], world, counts.one_pass, objects, part.scenes_seed)
    few = inputs.first(counts.tested)
    tested = objects == TESTED and part.name == "report"
    results: dict[Setting, Results] = defaultdict(Results)
    for clip in clips:
        before = {}
        for setting, maps in all_maps(clip, inputs, counts):
            results[setting].grades.append(grade(maps, masks[: len(maps)]))
            if tested and setting.target in ("similarity", None):
                before[setting] = maps[: counts.tested]
                results[setting].areas.append(areas(clip, few.first(len(maps)), before[setting]))
        if tested:
            likenesses = likeness_by_stage(world, tower, clip, few.only("similarity"), before, counts)
            for setting, each in likenesses.items():
                results[setting].parameter_randomization.append(each)
    return results


def all_rows(counts: Counts) -> Iterator[Row]:
    """Measure every world, tower, part and number of objects in ``PROCESSES`` processes."""
    runs = [*product(WORLDS.values(), STAGES, PARTS, OBJECTS)]
    with ProcessPoolExecutor(PROCESSES, multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(results_of, *run, counts) for run in runs]
        for (world, tower, part, objects), future in track([*zip(runs, futures, strict=True)], "localisation"):
            results = future.result()
            control = results[CONTROL].parameter_randomization
            if control and results[CONTROL].likeness_after_randomization() < LIKE_BEFORE:
                sys.exit("edges of the image pass parameter randomization, so the test is broken.")
            for setting, each in results.items():
                yield each.row(world.name, tower, part.name, objects, setting)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few scenes; writes nothing")
    quick: bool = parser.parse_args().quick

    counts = QUICK if quick else Counts()
    rows = [*all_rows(counts)]
    print_tables(rows, TESTED)
    if quick:
        return
    head = {
        "counts": asdict(counts),
        "parts": {part.name: part._asdict() for part in PARTS},
        "random weights": RANDOM_SEED,
        "versions": {package: version(package) for package in PACKAGES},
        "stages": STAGES,
    }
    write(RESULTS, head, rows)


if __name__ == "__main__":
    main()
