"""Do the maps find what a prompt names? Every tower, method and target, graded against exact masks.

Each held-out scene of the shapes world shows two objects and is asked about both of them: the two captions are the
prompts of one call, so that the target ``contrast`` sets each object against the other.

Run it:  python benchmarks/localisation.py
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table
from torch import Tensor

from clipcam_lightning import METHODS, ClipModel, explain, find_clip, metrics
from clipcam_lightning.shapes_world.models import VISION, WordTokenizer
from clipcam_lightning.shapes_world.pretraining import pretrained_clip
from clipcam_lightning.shapes_world.scenes import CAPTIONS, Scenes, draw_scenes

RESULTS = Path(__file__).with_suffix(".json")
MODEL_SEED, SCENES_SEED = 0, 1000  # the models were trained on scenes of their own seed
TARGETS = ("similarity", "contrast")
PACKAGES = ("clipcam-lightning", "torch", "open_clip_torch", "numpy", "pillow")


@dataclass(frozen=True)
class Score:
    """How well the maps of one tower, method and target find their objects.

    Attributes:
        pointing: share of the maps, 0 to 1, whose hottest pixel is on the object; a degenerate map is a miss.
        energy: mean share of a map's mass that is on the object, 0 to 1; degenerate maps are left out.
        degenerate: how many maps say nothing.
    """

    tower: str
    method: str
    target: str
    pointing: float
    energy: float
    degenerate: int


def model_inputs(clip: ClipModel, scenes: Scenes) -> tuple[Float[Tensor, "n 3 y x"], Bool[Tensor, "n 2 y x"]]:
    """Pictures and masks of ``scenes`` as ``clip`` gets to see them."""
    images = torch.stack([clip.preprocessing.image(image) for image in scenes.images])
    masks = torch.stack([torch.stack([clip.preprocessing.mask(mask) for mask in pair]) for pair in scenes.masks])
    return images, masks


def graded(maps: Float[Tensor, "n h w"], masks: Bool[Tensor, "n y x"]) -> tuple[float, float, int]:
    """Pointing accuracy, energy inside the mask and the number of degenerate maps."""
    sound = torch.tensor([not metrics.degeneracy(map_) for map_ in maps])
    pointing = (metrics.pointing_hit(maps, masks) & sound).float().mean()
    energy = metrics.energy_inside(maps[sound], masks[sound]).mean()
    return round(float(pointing), 4), round(float(energy), 4), int((~sound).sum())


def scores(
    tower: str, clip: ClipModel, images: Float[Tensor, "n 3 y x"], masks: Bool[Tensor, "n 2 y x"], scenes: Scenes
) -> Iterator[Score]:
    """One score for each method and target, at the tower's default layer."""
    prompts = [[CAPTIONS[kind] for kind in pair] for pair in scenes.objects]
    for method in METHODS:
        for target in TARGETS:
            maps = explain(clip, images, prompts, method=method, target=target).maps  # [n, 2, h, w]: one per object
            yield Score(tower, method, target, *graded(maps.flatten(0, 1), masks.flatten(0, 1)))


def print_tables(results: list[Score], chance: dict[str, float], count: int) -> None:
    """Print the results twice, for the terminal and for the README."""
    table = Table(title=f"Localisation of {2 * count} objects in {count} held-out scenes")
    for column in ("tower", "method", "target"):
        table.add_column(column)
    for column in ("pointing accuracy", "energy inside mask", "degenerate maps"):
        table.add_column(column, justify="right")
    for row in results:
        table.add_row(
            row.tower, row.method, row.target, f"{row.pointing:.3f}", f"{row.energy:.3f}", str(row.degenerate)
        )
    console = Console(width=120)
    console.print(table)
    table.title, table.box = None, MARKDOWN
    console.print(table)
    areas = ", ".join(f"{area:.3f} ({tower})" for tower, area in chance.items())
    console.print(f"Chance, for pointing and energy alike, is the mean area of a mask: {areas}.", highlight=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=300, help="held-out scenes, two objects each (default 300)")
    count: int = parser.parse_args().scenes

    scenes = draw_scenes(count, objects=2, seed=SCENES_SEED)
    results: list[Score] = []
    chance: dict[str, float] = {}
    for tower in VISION:
        clip = find_clip(pretrained_clip(tower, seed=MODEL_SEED), tokenizer=WordTokenizer())
        images, masks = model_inputs(clip, scenes)
        chance[tower] = round(float(masks.float().mean()), 4)
        results.extend(scores(tower, clip, images, masks, scenes))

    print_tables(results, chance, count)
    record = {
        "scenes": count,
        "seeds": {"model": MODEL_SEED, "scenes": SCENES_SEED},
        "versions": {package: version(package) for package in PACKAGES},
        "chance": chance,
        "results": [asdict(score) for score in results],
    }
    RESULTS.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
