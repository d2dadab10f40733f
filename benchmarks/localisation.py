"""Do the maps find what a prompt names? Every tower, method and target, graded against exact masks.

Held-out scenes of the shapes world show one to three objects and are asked about each of them: the captions are the
prompts of one call, so that the target ``contrast`` sets each object against the others. A single object is set
against all captions. Of two objects, the maps of ``similarity`` are also tested without masks: does the model miss
the hottest pixels (deletion and insertion, of the first object), and does the map change when the weights become
random? Edges of the picture are graded like a map, so that each figure has something to beat and the last test
something that fails it.

What ``method="auto"`` should be is decided here. Of the methods that ask for a prompt and get by with a forward and a
backward pass for it, under the target ``similarity``, which works for a prompt that is alone: first those whose
pointing accuracy over all scenes is within one standard error of the best one's, the error over the models, because
it is for other models that a default is chosen; then of these the one of the best mean rank in energy, IoU, deletion
and insertion. The decision is made on scenes of another seed than those that are reported.

Run it:  python benchmarks/localisation.py  (``--quick``: a few scenes, to see that it runs; writes nothing)
"""

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from jaxtyping import Bool, Float
from rich.progress import track
from torch import Tensor

from benchmarks.grading import (
    LIKE_BEFORE,
    best_mean_rank,
    close_to_best,
    graded,
    likeness,
    mean_and_error,
    perturbation_curves,
    randomized,
    relative_area,
)
from benchmarks.questions import (
    CANDIDATES,
    CHANNELWISE,
    LAST_THREE,
    SCORE_METHODS,
    Asked,
    Maps,
    Question,
    cheap_maps,
    score_maps,
    targets_for,
)
from benchmarks.report import Results, Row, print_tables, write
from clipcam_lightning import METHODS, ClipModel, explain, find_clip
from clipcam_lightning.cam.towers.tower import Recipe
from clipcam_lightning.shapes_world.models import VISION, WordTokenizer, build_clip
from clipcam_lightning.shapes_world.pretraining import pretrained_clip
from clipcam_lightning.shapes_world.scenes import CAPTIONS, draw_scenes

RESULTS = Path(__file__).with_suffix(".json")
OBJECTS, TESTED = (1, 2, 3), 2  # objects a scene; those of the tests without masks
SCENES_SEED, SELECTION_SEED, RANDOM_SEED = 1000, 2000, 3000  # the models were trained on scenes of their own seed
STAGES = {  # from the top down; "" is what is left
    "vit": ("ln_post|proj", *(rf"transformer\.resblocks\.{i}" for i in (2, 1, 0)), ""),
    "resnet": ("attnpool", "layer4", "layer3", "layer2", "layer1", ""),
}
POINTING, SHARE_OF_OCCLUSION = 0.75, 0.9  # what the defaults must reach
AUTO, CONTROL = Question("auto", None, "similarity"), Question("edges", None, None)
THREADS = 2
PACKAGES = ("clipcam-lightning", "torch", "open_clip_torch", "numpy", "pillow")


@dataclass(frozen=True)
class Counts:
    """How many models, and how many scenes of each number of objects, by what a map costs.

    Attributes:
        seeds: of the models' training.
        one_pass: for methods that take a pass or two.
        regionwise: for methods that hide one region after the other.
        channelwise: for methods that take a pass for each channel.
        selection: for the choice of the recipe.
        tested: for the tests without masks, where there are maps of so many.
        compared: for the default's share of what occlusion reaches, which a few scenes could not tell from another.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    one_pass: int = 100
    regionwise: int = 60
    channelwise: int = 3
    selection: int = 100
    tested: int = 10
    compared: int = 200


QUICK = Counts(seeds=(0, 1), one_pass=6, regionwise=2, channelwise=1, selection=6, tested=2, compared=2)


def asked_of(clip: ClipModel, count: int, objects: int, seed: int) -> tuple[Asked, Bool[Tensor, "n k y x"]]:
    """Scenes as ``clip`` gets to see them, what it is asked, and the masks in the scenes' own pixels."""
    scenes = draw_scenes(count, objects=objects, seed=seed)
    images = torch.stack([clip.preprocessing.image(image) for image in scenes.images])
    prompts = [[CAPTIONS[kind] for kind in kinds] for kinds in scenes.objects]
    return Asked(images, prompts, targets_for(objects)), torch.from_numpy(scenes.masks)


def all_maps(clip: ClipModel, asked: Asked, counts: Counts) -> Iterator[Maps]:
    """Maps of every question, of as many scenes as their cost allows."""
    yield from cheap_maps(clip, asked)
    for method in SCORE_METHODS:
        count = counts.channelwise if method.name in CHANNELWISE else counts.regionwise
        yield from score_maps(clip, asked.first(count), method)


@torch.no_grad()
def areas(clip: ClipModel, asked: Asked, maps: Float[Tensor, "n k h w"]) -> tuple[float, float]:
    """Deletion and insertion of the first object."""
    texts = clip.embed_texts([prompts[0] for prompts in asked.prompts])
    deletion, insertion = perturbation_curves(
        lambda images: (clip.embed_images(images) * texts).sum(dim=1), asked.images, maps[:, 0]
    )
    whole, blank = deletion[:, 0], deletion[:, -1]
    return relative_area(deletion, whole, blank), relative_area(insertion, whole, blank)


def random_likeness(
    tower: str, clip: ClipModel, asked: Asked, before: Mapping[Question, Float[Tensor, "n k h w"]], counts: Counts
) -> dict[Question, list[float]]:
    """How like the maps ``before`` those of ever more random models are; dear methods see the last of these only."""
    torch.manual_seed(RANDOM_SEED)
    victim, fresh = deepcopy(clip), build_clip(tower)
    visual = victim.module.get_submodule("visual")
    found = defaultdict(list)
    for stage in randomized(visual, fresh.visual, STAGES[tower]):
        drawn = cheap_maps(victim, asked) if stage else all_maps(victim, asked, counts)
        for question, maps in drawn:
            found[question].append(likeness(before[question].flatten(0, 1), maps.flatten(0, 1)))
    return found


def studied(tower: str, clips: Sequence[ClipModel], objects: int, counts: Counts) -> dict[Question, Results]:
    """Results of every question about scenes with so many objects."""
    asked, masks = asked_of(clips[0], counts.one_pass, objects, SCENES_SEED)
    few = asked.first(counts.tested)
    found: dict[Question, Results] = defaultdict(Results)
    for clip in track(clips, f"{tower}, {objects} object(s) a scene", transient=True):
        before = {}
        for question, maps in all_maps(clip, asked, counts):
            found[question].grades.append(graded(maps, masks[: len(maps)]))
            if objects == TESTED and question.target in ("similarity", None):
                before[question] = maps[: counts.tested]
                found[question].areas.append(areas(clip, few.first(len(maps)), before[question]))
        if objects == TESTED:
            for question, likenesses in random_likeness(tower, clip, few.only("similarity"), before, counts).items():
                found[question].random.append(likenesses)
    return found


def best_recipe(tower: str, clips: Sequence[ClipModel], counts: Counts) -> Recipe:
    """The recipe that does best by the rule at the head of this file."""
    found: dict[Question, list[Results]] = defaultdict(lambda: [Results() for _ in OBJECTS])
    for i, objects in enumerate(OBJECTS):
        asked, masks = asked_of(clips[0], counts.selection, objects, SELECTION_SEED)
        for clip in track(clips, f"choosing for the {tower}, {objects} object(s) a scene", transient=True):
            for question, maps in candidate_maps(clip, asked):
                found[question][i].grades.append(graded(maps, masks))
    by_model = {
        question: [fmean(each) for each in zip(*(results.by_model("pointing") for results in by_objects), strict=True)]
        for question, by_objects in found.items()
    }
    near = close_to_best({question: mean_and_error(values) for question, values in by_model.items()})

    asked, _ = asked_of(clips[0], counts.tested, TESTED, SELECTION_SEED)
    tests: dict[Question, list[tuple[float, float]]] = defaultdict(list)
    for clip in clips:
        for question, maps in candidate_maps(clip, asked):
            if question in near:
                tests[question].append(areas(clip, asked, maps))
    figures = {
        question: (
            *(fmean(each.figure(name)[0] for each in found[question]) for name in ("energy", "iou")),
            -fmean(deletion for deletion, _ in tests[question]),  # the lower the better
            fmean(insertion for _, insertion in tests[question]),
        )
        for question in near
    }
    best = best_mean_rank(figures)
    return Recipe(best.method, best.layers)


def candidate_maps(clip: ClipModel, asked: Asked) -> Iterator[Maps]:
    """Maps of what may become a recipe; the last three layers are all that this ViT has, and on others are not."""
    maps = cheap_maps(clip, asked.only("similarity"))
    return (each for each in maps if each[0].method in CANDIDATES and each[0].layers != LAST_THREE)


def shares_of_occlusion(clips: Sequence[ClipModel], counts: Counts) -> list[float]:
    """For each model, the default's pointing accuracy in units of occlusion's, on the same scenes of two objects."""
    asked, masks = asked_of(clips[0], counts.compared, TESTED, SCENES_SEED)
    asked = asked.only("similarity")
    shares = []
    for clip in track(clips, "the default and occlusion", transient=True):
        default = explain(clip, asked.images, asked.prompts).maps
        ((_, occluded),) = score_maps(clip, asked, METHODS["occlusion"])
        shares.append(float(graded(default, masks).pointing.mean() / graded(occluded, masks).pointing.mean()))
    return shares


def verdict(found: Mapping[Question, Results], shares: Sequence[float], best: Recipe, own: Recipe) -> dict[str, Any]:
    """What must be true of a tower's default, and of the test with random weights: that it can be failed."""
    auto, control = found[AUTO], found[CONTROL]
    pointing, random, edges = auto.figure("pointing")[0], auto.likeness_to_random(), control.likeness_to_random()
    return {
        "auto": own,
        "best": best,
        "pointing": round(pointing, 4),
        "share of occlusion's": [round(each, 4) for each in shares],
        "random": round(random, 4),
        "random, edges": round(edges, 4),
        "passed": own == best
        and pointing >= POINTING
        and min(shares) >= SHARE_OF_OCCLUSION
        and random < LIKE_BEFORE <= edges,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few scenes and models; nothing is written")
    quick: bool = parser.parse_args().quick

    torch.set_num_threads(THREADS)
    counts = QUICK if quick else Counts()
    rows: list[Row] = []
    verdicts: dict[str, dict[str, Any]] = {}
    for tower in VISION:
        clips = [find_clip(pretrained_clip(tower, seed=seed), tokenizer=WordTokenizer()) for seed in counts.seeds]
        best = best_recipe(tower, clips, counts)
        print(f"best on the {tower}: {best}", flush=True)
        for objects in OBJECTS:
            found = studied(tower, clips, objects, counts)
            rows.extend(results.row(tower, objects, question) for question, results in found.items())
            if objects == TESTED:
                shares = shares_of_occlusion(clips, counts)
                verdicts[tower] = verdict(found, shares, best, clips[0].tower.recipe)

    print_tables(rows, TESTED)
    for tower, figures in verdicts.items():
        print(tower, json.dumps(figures))
    if quick:
        return
    head = {
        "counts": asdict(counts),
        "seeds": {"scenes": SCENES_SEED, "selection": SELECTION_SEED, "random weights": RANDOM_SEED},
        "versions": {package: version(package) for package in PACKAGES},
        "stages": STAGES,
        "verdicts": verdicts,
    }
    write(RESULTS, head, rows)
    if not all(figures["passed"] for figures in verdicts.values()):
        sys.exit("a default does not do what it must, see the verdicts above.")


if __name__ == "__main__":
    main()
