"""Train the small CLIPs of the benchmarks, or read them from the cache.

python -m benchmarks.worlds.pretraining          all worlds, towers and seeds, and their retrieval accuracy
"""

import os
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.sources import hash_sources
from benchmarks.worlds.towers import TOWERS, build_clip
from benchmarks.worlds.world import WORLDS, World
from clipcam_lightning import shapes_world
from clipcam_lightning.errors import SnapshotError
from clipcam_lightning.shapes_world.models import model_input
from clipcam_lightning.shapes_world.pretraining import choose_mentioned, take_step
from clipcam_lightning.storage.tensorfile import load_tensors, save_tensors

FILE_KIND = "benchmark weights"
BATCH, POOL = 64, 5000  # images per step; images of each kind to draw batches from
STEPS = {
    "shapes": {"class token": 1000, "average pool": 1200, "attention pool": 1600, "resnet": 350},
    "cutouts": {"class token": 1400, "average pool": 2000, "attention pool": 2400, "resnet": 350},
}
PEAK_RATE, RESNET_PEAK_RATE = 1.2e-3, 2e-3
BASES = {"cutouts": "shapes"}  # the image tower starts as one that was trained on another world, which is faster
ONE_OBJECT_SHARE = 0.6  # of the steps; after these, images with two objects join in
MAX_SHIFT = 4  # pixels by which a batch is moved
HELD_OUT, HELD_OUT_SEED = 400, 4242  # scenes to measure retrieval accuracy on
MIN_ACCURACY = 0.8
SEEDS = (0, 1, 2, 3)
DEEP_SEEDS, DEEP_WORLD = (0,), "shapes"  # of the towers with 8 blocks


def pretrained_clip(world: World, tower: str, seed: int = 0, cache: Path | None = None) -> nn.Module:
    """Load a small CLIP, which is trained at the first call (minutes on two cores).

    Args:
        world: whose images it is trained on.
        tower: a key of :data:`TOWERS`.
        seed: of the initial weights and the batches.
        cache: folder of trained weights; by default ``clipcam_lightning`` in the user's cache directory.

    Returns:
        The model in eval mode. The random state stays as it was.
    """
    cache = cache or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clipcam_lightning"
    file = cache / f"{world.name}-{tower.replace(', ', '-').replace(' ', '-')}-{seed}-{_source_hash()}.safetensors"
    with torch.random.fork_rng(devices=[]):
        model = build_clip(tower, world)
        try:
            model.load_state_dict(load_tensors(file, FILE_KIND)[0])
        except (SnapshotError, RuntimeError):  # not there yet, or cut short by hand
            model = _train(world, tower, seed, cache)
            save_tensors(file, FILE_KIND, model.state_dict(), {"world": world.name, "tower": tower, "seed": seed})
    return model.eval()


@torch.no_grad()
def retrieval_accuracy(model: Any, world: World) -> float:
    """Measure the share of new scenes, 0 to 1, whose own caption is the closest of all captions.

    New is the composition of a scene; the photographs that it is made of also occur in training.
    """
    scenes = world.draw(HELD_OUT, objects=1, seed=HELD_OUT_SEED)
    texts = F.normalize(model.encode_text(world.tokenizer(world.captions)), dim=-1)
    images = F.normalize(model.encode_image(_input(model, scenes.images)), dim=-1)
    return float(np.mean((images @ texts.T).argmax(1).numpy() == scenes.objects[:, 0]))


def _train(world: World, tower: str, seed: int, cache: Path) -> nn.Module:
    """Train contrastively: first with one object per image, then with one or two."""
    torch.manual_seed(seed)
    model: Any = build_clip(tower, world).train()
    if world.name in BASES:
        base: Any = pretrained_clip(WORLDS[BASES[world.name]], tower, seed, cache)
        model.visual.load_state_dict(base.visual.state_dict())
    kind = TOWERS[tower].kind
    steps, rate = STEPS[world.name][kind], RESNET_PEAK_RATE if kind == "resnet" else PEAK_RATE
    model = model.to(memory_format=torch.channels_last)  # convolutions take a third less time
    tokenizer, rng = world.tokenizer, np.random.default_rng(seed)
    one, two = (world.draw(POOL, objects=k, seed=seed) for k in (1, 2))
    optimizer = torch.optim.AdamW(model.parameters(), rate, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    for step in track(range(steps), f"{world.name}, {tower}, seed {seed}"):
        pairs = 0 if step < ONE_OBJECT_SHARE * steps else BATCH // 2
        parts = [
            (one, rng.choice(POOL, BATCH - pairs, replace=False)),
            (two, rng.choice(POOL, pairs, replace=False)),
        ]
        shift = rng.integers(-MAX_SHIFT, MAX_SHIFT + 1, 2)
        images = np.roll(np.concatenate([scenes.images[chosen] for scenes, chosen in parts]), shift, axis=(1, 2))
        shown = [tuple(row) for scenes, chosen in parts for row in scenes.objects[chosen].tolist()]
        mentioned = [choose_mentioned(objects, rng) for objects in shown]
        sentences = [" and ".join(world.captions[kind] for kind in kinds) for kinds in mentioned]
        texts = [rng.choice(world.templates).format(sentence) for sentence in sentences]
        matches = torch.tensor([[set(t) <= set(s) for t in mentioned] for s in shown])
        take_step(model, optimizer, _input(model, images), tokenizer(texts), matches)
        schedule.step()
    return model


def _input(model: Any, images: np.ndarray) -> Tensor:
    return model_input(torch.from_numpy(images), model.visual.preprocess_cfg["size"][0])


def _source_hash() -> str:
    """Changes with the code that draws the scenes, builds the models and trains them."""
    shapes = Path(shapes_world.__file__).parent
    return hash_sources(
        [*Path(__file__).parent.glob("*.py"), *(shapes / name for name in ("scenes.py", "models.py", "pretraining.py"))]
    )


def all_models() -> Iterator[tuple[World, str, int]]:
    """Name the world, the tower and the seed of every model."""
    for world, name, seed in product(WORLDS.values(), TOWERS, SEEDS):
        if "blocks" not in name or (world.name == DEEP_WORLD and seed in DEEP_SEEDS):
            yield world, name, seed


def main() -> None:
    poor = []
    for world, tower, seed in all_models():
        accuracy = retrieval_accuracy(pretrained_clip(world, tower, seed), world)
        print(f"{world.name}, {tower}, seed {seed}: retrieval {accuracy:.3f}", flush=True)
        if accuracy < MIN_ACCURACY:
            poor.append((world.name, tower, seed))
    if poor:
        sys.exit(f"below {MIN_ACCURACY}: {poor}")


if __name__ == "__main__":
    main()
