"""Do maps find what a prompt names? Every tower, method and target is graded against exact masks.

Held-out scenes of the shapes world have one to three objects. The captions of all objects in a scene are the prompts of
one call, so that the target ``contrast`` contrasts each object with the others; a single object is contrasted with all
captions. In scenes with two objects, the maps of ``similarity`` are also tested without masks: deletion and insertion
(of the first object), and parameter randomization. Edges of the image are graded like a map, as a baseline for each
metric and as a control that must fail parameter randomization.

Run it: python -m benchmarks.localisation  (``--quick``: a few scenes, to check that it runs; writes nothing)
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

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
from clipcam_lightning import ClipModel, find_clip
from clipcam_lightning.analysis.map_quality import LIKE_BEFORE, grade, likeness, perturbation_curves
from clipcam_lightning.shapes_world.models import VISION, WordTokenizer, build_clip
from clipcam_lightning.shapes_world.pretraining import pretrained_clip
from clipcam_lightning.shapes_world.scenes import CAPTIONS, draw_scenes

RESULTS = Path(__file__).with_suffix(".json")
OBJECTS, TESTED = (1, 2, 3), 2  # objects per scene; those of the tests without masks
SCENES_SEED, RANDOM_SEED = 1000, 3000  # the models were trained on scenes of another seed
STAGES = {  # from the top down; "" is all that remains
    "vit": ("ln_post|proj", *(rf"transformer\.resblocks\.{i}" for i in (2, 1, 0)), ""),
    "resnet": ("attnpool", "layer4", "layer3", "layer2", "layer1", ""),
}
CONTROL = Setting("edges", None, None)
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
        tested: scenes for the tests without masks, or all with maps if these are fewer.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    one_pass: int = 100
    regionwise: int = 60
    channelwise: int = 3
    tested: int = 10


QUICK = Counts(seeds=(0, 1), one_pass=6, regionwise=2, channelwise=1, tested=2)


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few scenes and models; writes nothing")
    quick: bool = parser.parse_args().quick

    torch.set_num_threads(THREADS)
    counts = QUICK if quick else Counts()
    rows: list[Row] = []
    for tower in VISION:
        clips = [find_clip(pretrained_clip(tower, seed=seed), tokenizer=WordTokenizer()) for seed in counts.seeds]
        for objects in OBJECTS:
            results = results_of(tower, clips, objects, counts)
            rows.extend(each.row(tower, objects, setting) for setting, each in results.items())
            if objects == TESTED and results[CONTROL].likeness_after_randomization() < LIKE_BEFORE:
                sys.exit("edges of the image pass parameter randomization, so the test is broken.")

    print_tables(rows, TESTED)
    if quick:
        return
    head = {
        "counts": asdict(counts),
        "seeds": {"scenes": SCENES_SEED, "random weights": RANDOM_SEED},
        "versions": {package: version(package) for package in PACKAGES},
        "stages": STAGES,
    }
    write(RESULTS, head, rows)


if __name__ == "__main__":
    main()
