"""Do maps find what a prompt names? Every tower, method and target is graded against exact masks.

Held-out scenes of the shapes world have one to three objects. The captions of all objects in a scene are the prompts of
one call, so that the target ``contrast`` contrasts each object with the others; a single object is contrasted with all
captions. In scenes with two objects, the maps of ``similarity`` are also tested without masks: deletion and insertion
(of the first object), and parameter randomization. Edges of the image are graded like a map, as a baseline for each
metric and as a control that must fail parameter randomization.

This benchmark decides what ``method="auto"`` means. Candidates are the methods that use the prompt and need at most a
forward and a backward pass for it, with the target ``similarity``, which works for a single prompt. Of these, it takes
those whose pointing accuracy over all scenes is within one standard error of the best. The error is that over the
models, because the default is for other models. Of those that remain, the best mean rank in energy, IoU, deletion and
insertion decides. The decision is made on scenes of another seed than those that are reported.

Run it: python -m benchmarks.localisation  (``--quick``: a few scenes, to check that it runs; writes nothing)
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

from benchmarks.grading import best_mean_rank, close_to_best, mean_and_error, randomize_parameters, relative_area
from benchmarks.localisation_maps import (
    CANDIDATES,
    CHANNELWISE,
    LAST_THREE,
    SCORE_METHODS,
    Inputs,
    Maps,
    Setting,
    cheap_maps,
    score_maps,
    targets_for,
)
from benchmarks.localisation_report import Results, Row, print_tables, write
from clipcam_lightning import METHODS, ClipModel, explain, find_clip
from clipcam_lightning.analysis.map_quality import LIKE_BEFORE, grade, likeness, perturbation_curves
from clipcam_lightning.cam.towers.tower import Recipe
from clipcam_lightning.shapes_world.models import VISION, WordTokenizer, build_clip
from clipcam_lightning.shapes_world.pretraining import pretrained_clip
from clipcam_lightning.shapes_world.scenes import CAPTIONS, draw_scenes

RESULTS = Path(__file__).with_suffix(".json")
OBJECTS, TESTED = (1, 2, 3), 2  # objects per scene; those of the tests without masks
SCENES_SEED, SELECTION_SEED, RANDOM_SEED = 1000, 2000, 3000  # the models were trained on scenes of another seed
STAGES = {  # from the top down; "" is all that remains
    "vit": ("ln_post|proj", *(rf"transformer\.resblocks\.{i}" for i in (2, 1, 0)), ""),
    "resnet": ("attnpool", "layer4", "layer3", "layer2", "layer1", ""),
}
POINTING, SHARE_OF_OCCLUSION = 0.75, 0.9  # what the defaults must reach
AUTO, CONTROL = Setting("auto", None, "similarity"), Setting("edges", None, None)
THREADS = 2
PACKAGES = ("clipcam-lightning", "torch", "open_clip_torch", "numpy", "pillow")


@dataclass(frozen=True)
class Counts:
    """How many models, and how many scenes with each number of objects; fewer for slow methods.

    Attributes:
        seeds: of the training of the models.
        one_pass: scenes for methods that take one or two passes.
        regionwise: scenes for methods that take one pass per region.
        channelwise: scenes for methods that take one pass per channel.
        selection: scenes for the choice of the recipe.
        tested: scenes for the tests without masks, or all with maps if these are fewer.
        compared: scenes for the comparison of the default with occlusion, enough for a reliable ratio.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    one_pass: int = 100
    regionwise: int = 60
    channelwise: int = 3
    selection: int = 100
    tested: int = 10
    compared: int = 200


QUICK = Counts(seeds=(0, 1), one_pass=6, regionwise=2, channelwise=1, selection=6, tested=2, compared=2)


def make_inputs(clip: ClipModel, count: int, objects: int, seed: int) -> tuple[Inputs, Bool[Tensor, "n k y x"]]:
    """Draw scenes and make them input of a model.

    Args:
        clip: the model.
        count: how many scenes.
        objects: per scene.
        seed: of the scenes.

    Returns:
        The input, and the masks at the size of the scenes.
    """
    scenes = draw_scenes(count, objects=objects, seed=seed)
    images = torch.stack([clip.preprocessing.image(image) for image in scenes.images])
    prompts = [[CAPTIONS[kind] for kind in kinds] for kinds in scenes.objects]
    return Inputs(images, prompts, targets_for(objects)), torch.from_numpy(scenes.masks)


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
    tower: str, clip: ClipModel, inputs: Inputs, before: Mapping[Setting, Float[Tensor, "n k h w"]], counts: Counts
) -> dict[Setting, list[float]]:
    """Measure how like maps are before and after the randomization of parameters, stage by stage.

    Args:
        tower: of the model.
        clip: the trained model.
        inputs: what to explain.
        before: the maps of the trained model.
        counts: of scenes.

    Returns:
        One value per stage; for perturbation-based methods that of the last stage only.
    """
    torch.manual_seed(RANDOM_SEED)
    randomized, untrained = deepcopy(clip), build_clip(tower)
    visual = randomized.module.get_submodule("visual")
    likenesses = defaultdict(list)
    for stage in randomize_parameters(visual, untrained.visual, STAGES[tower]):
        after = cheap_maps(randomized, inputs) if stage else all_maps(randomized, inputs, counts)
        for setting, maps in after:
            likenesses[setting].append(likeness(before[setting].flatten(0, 1), maps.flatten(0, 1)))
    return likenesses


def results_of(tower: str, clips: Sequence[ClipModel], objects: int, counts: Counts) -> dict[Setting, Results]:
    """Measure every setting on scenes with so many objects.

    Args:
        tower: of the models.
        clips: the models.
        objects: per scene.
        counts: of scenes.
    """
    inputs, masks = make_inputs(clips[0], counts.one_pass, objects, SCENES_SEED)
    few = inputs.first(counts.tested)
    results: dict[Setting, Results] = defaultdict(Results)
    for clip in track(clips, f"{tower}, {objects} object(s) per scene", transient=True):
        before = {}
        for setting, maps in all_maps(clip, inputs, counts):
            results[setting].grades.append(grade(maps, masks[: len(maps)]))
            if objects == TESTED and setting.target in ("similarity", None):
                before[setting] = maps[: counts.tested]
                results[setting].areas.append(areas(clip, few.first(len(maps)), before[setting]))
        if objects == TESTED:
            for setting, likenesses in likeness_by_stage(tower, clip, few.only("similarity"), before, counts).items():
                results[setting].parameter_randomization.append(likenesses)
    return results


def best_recipe(tower: str, clips: Sequence[ClipModel], counts: Counts) -> Recipe:
    """Choose the recipe by the rule in the docstring of this module."""
    results: dict[Setting, list[Results]] = defaultdict(lambda: [Results() for _ in OBJECTS])
    for i, objects in enumerate(OBJECTS):
        inputs, masks = make_inputs(clips[0], counts.selection, objects, SELECTION_SEED)
        for clip in track(clips, f"choosing for the {tower}, {objects} object(s) per scene", transient=True):
            for setting, maps in candidate_maps(clip, inputs):
                results[setting][i].grades.append(grade(maps, masks))
    by_model = {
        setting: [fmean(values) for values in zip(*(each.by_model("pointing") for each in by_objects), strict=True)]
        for setting, by_objects in results.items()
    }
    near = close_to_best({setting: mean_and_error(values) for setting, values in by_model.items()})

    inputs, _ = make_inputs(clips[0], counts.tested, TESTED, SELECTION_SEED)
    tests: dict[Setting, list[tuple[float, float]]] = defaultdict(list)
    for clip in clips:
        for setting, maps in candidate_maps(clip, inputs):
            if setting in near:
                tests[setting].append(areas(clip, inputs, maps))
    metrics = {
        setting: (
            *(fmean(each.over_scenes(name)[0] for each in results[setting]) for name in ("energy", "iou")),
            -fmean(deletion for deletion, _ in tests[setting]),  # lower is better
            fmean(insertion for _, insertion in tests[setting]),
        )
        for setting in near
    }
    best = best_mean_rank(metrics)
    return Recipe(best.method, best.layers)


def candidate_maps(clip: ClipModel, inputs: Inputs) -> Iterator[Maps]:
    """Make the maps of all candidates, but not of the last three layers: only in this small ViT are they all layers."""
    maps = cheap_maps(clip, inputs.only("similarity"))
    return (each for each in maps if each[0].method in CANDIDATES and each[0].layers != LAST_THREE)


def shares_of_occlusion(clips: Sequence[ClipModel], counts: Counts) -> list[float]:
    """Divide the pointing accuracy of the default by that of occlusion, for each model on the same scenes."""
    inputs, masks = make_inputs(clips[0], counts.compared, TESTED, SCENES_SEED)
    inputs = inputs.only("similarity")
    shares = []
    for clip in track(clips, "the default and occlusion", transient=True):
        default = explain(clip, inputs.images, inputs.prompts).maps
        ((_, occluded),) = score_maps(clip, inputs, METHODS["occlusion"])
        shares.append(float(grade(default, masks).pointing.mean() / grade(occluded, masks).pointing.mean()))
    return shares


def verdict(results: Mapping[Setting, Results], shares: Sequence[float], best: Recipe, own: Recipe) -> dict[str, Any]:
    """Judge the default of a tower, and whether the control fails parameter randomization as it must.

    Args:
        results: of scenes with ``TESTED`` objects.
        shares: pointing accuracy of the default in units of that of occlusion, one per model.
        best: the recipe that was chosen.
        own: the recipe of the tower.
    """
    auto, control = results[AUTO], results[CONTROL]
    pointing = auto.over_scenes("pointing")[0]
    randomization, of_edges = auto.likeness_after_randomization(), control.likeness_after_randomization()
    return {
        "auto": own,
        "best": best,
        "pointing": round(pointing, 4),
        "share of occlusion's": [round(each, 4) for each in shares],
        "parameter_randomization": round(randomization, 4),
        "parameter_randomization_edges": round(of_edges, 4),
        "passed": own == best
        and pointing >= POINTING
        and min(shares) >= SHARE_OF_OCCLUSION
        and randomization < LIKE_BEFORE <= of_edges,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few scenes and models; writes nothing")
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
            results = results_of(tower, clips, objects, counts)
            rows.extend(each.row(tower, objects, setting) for setting, each in results.items())
            if objects == TESTED:
                shares = shares_of_occlusion(clips, counts)
                verdicts[tower] = verdict(results, shares, best, clips[0].tower.recipe)

    print_tables(rows, TESTED)
    for tower, judged in verdicts.items():
        print(tower, json.dumps(judged))
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
    if not all(judged["passed"] for judged in verdicts.values()):
        sys.exit("a default does not reach its goals, see the verdicts above.")


if __name__ == "__main__":
    main()
