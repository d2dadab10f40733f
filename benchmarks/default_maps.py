"""Does ``method="auto"`` find the object on every kind of tower? It is compared with occlusion and with Grad-CAM.

Occlusion asks the model itself, at the cost of 65 forwards. Scenes of both image worlds have one or two objects, and
the captions of all objects in a scene are the prompts. What ``auto`` stands for on pooled towers was chosen on
models of the first seed and on other scenes; models of the other seeds are to report on, and ViTs of 8 blocks.

Run it: python -m benchmarks.default_maps  (trains the models, unless they are cached: about three hours)
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.worlds.pretraining import all_models, pretrained_clip, retrieval_accuracy
from benchmarks.worlds.towers import build_clip
from benchmarks.worlds.world import World
from clipcam_lightning import ClipModel, explain, find_clip
from clipcam_lightning.analysis.map_quality import grade, likeness

RESULTS = Path(__file__).with_suffix(".json")
OBJECTS, SCENES, SCENES_SEED = (1, 2), 100, 1000
RANDOMIZED, RANDOM_SEED = 30, 3000  # scenes whose maps are compared with those of a model with random weights
METHODS = ("auto", "gradcam", "occlusion")
PACKAGES = ("clipcam-lightning", "torch", "open_clip_torch", "timm", "numpy", "scikit-image", "scikit-learn")


@dataclass(frozen=True)
class Row:
    """Means over the scenes and objects, for one model.

    Attributes:
        world, tower, seed: of the model.
        retrieval: share of new scenes, 0 to 1, whose caption is the closest of all.
        objects: per scene.
        area: share of the image, 0 to 1, that an object covers.
        pointing: share of the maps, 0 to 1, whose hottest pixel is on the object, by method.
        energy: share of a map's mass on the object, 0 to 1, by method.
        randomization: correlation of the maps of ``auto`` with those of a tower with random weights.
    """

    world: str
    tower: str
    seed: int
    retrieval: float
    objects: int
    area: float
    pointing: dict[str, float]
    energy: dict[str, float]
    randomization: float


def measure(world: World, tower: str, seed: int) -> Iterator[Row]:
    """Measure the methods on one model, for each number of objects per scene."""
    model = pretrained_clip(world, tower, seed)
    clip, randomized = (
        find_clip(each, tokenizer=world.tokenizer) for each in (model, with_random_tower(model, world, tower))
    )
    accuracy = retrieval_accuracy(model, world)
    for objects in OBJECTS:
        images, prompts, masks = draw_inputs(clip, world, objects)
        maps = {name: explain(clip, images, prompts, method=name).maps for name in METHODS}
        grades = {name: grade(each, masks) for name, each in maps.items()}
        after = explain(randomized, images[:RANDOMIZED], prompts[:RANDOMIZED]).maps
        yield Row(
            world.name,
            tower,
            seed,
            round(accuracy, 3),
            objects,
            round(float(masks.float().mean()), 3),
            pointing={name: round(float(each.pointing.mean()), 3) for name, each in grades.items()},
            energy={name: round(float(each.energy.mean()), 3) for name, each in grades.items()},
            randomization=round(likeness(maps["auto"][:RANDOMIZED].flatten(0, 1), after.flatten(0, 1)), 3),
        )


def draw_inputs(clip: ClipModel, world: World, objects: int) -> tuple[Tensor, list[list[str]], Bool[Tensor, "n k y x"]]:
    """Draw scenes: preprocessed images, the prompts of each, and the masks of the prompts' objects."""
    scenes = world.draw(SCENES, objects=objects, seed=SCENES_SEED)
    images = torch.stack([clip.preprocessing.image(image) for image in scenes.images])
    prompts = [[world.captions[kind] for kind in kinds] for kinds in scenes.objects]
    return images, prompts, torch.from_numpy(scenes.masks)


def with_random_tower(model: Any, world: World, tower: str) -> Any:
    """Build the same model with an untrained image tower."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        untrained: Any = build_clip(tower, world)
    trained = {key: value for key, value in model.state_dict().items() if not key.startswith("visual.")}
    untrained.load_state_dict(trained, strict=False)
    return untrained.eval()


def make_table(rows: list[Row]) -> Table:
    """Tabulate pointing accuracy and energy of each model."""
    table = Table(box=MARKDOWN)
    for column in ("world", "tower", "seed", "retrieval", "objects", "area", *METHODS, "randomized"):
        table.add_column(column)
    for row in rows:
        cells = (f"{row.pointing[name]:.2f}, {row.energy[name]:.2f}" for name in METHODS)
        head = (row.world, row.tower, str(row.seed), f"{row.retrieval:.2f}", str(row.objects), f"{row.area:.2f}")
        table.add_row(*head, *cells, f"{row.randomization:.2f}")
    return table


def main() -> None:
    torch.set_num_threads(1)
    rows: list[Row] = []
    for world, tower, seed in all_models():
        for row in measure(world, tower, seed):
            rows.append(row)
            print(row, file=sys.stderr, flush=True)
    console = Console(width=150, highlight=False)
    console.print("Pointing accuracy and energy of each method:\n")
    console.print(make_table(rows))
    head = {"scenes": SCENES, "versions": {package: version(package) for package in PACKAGES}}
    RESULTS.write_text(json.dumps({**head, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
