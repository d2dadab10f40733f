"""Train the small CLIPs of the shapes world from scratch.

The weights of seed 0 are part of the package, in ``shapes_world/weights``; :func:`trained_clip` of ``models.py`` loads
them. This command trains both models anew and overwrites the files, within minutes on two cores; with the name of a
tower, that one alone:

    python -m clipcam_lightning.shapes_world.pretraining

How a training turns out differs a little by processor and number of threads, so new files change every measurement
made with these models. Only the benchmarks need models of other seeds.
"""

import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from jaxtyping import Bool, Float, Int
from rich.progress import track
from torch import Tensor
from torch.nn import functional as F

from clipcam_lightning.errors import SnapshotError
from clipcam_lightning.shapes_world.models import (
    FILE_KIND,
    WEIGHTS,
    WordTokenizer,
    build_clip,
    model_input,
    trained_clip,
)
from clipcam_lightning.shapes_world.scenes import CAPTIONS, Scenes, draw_scenes, with_haze
from clipcam_lightning.storage.tensorfile import load_tensors, save_tensors

BATCH, POOL = 64, 4000  # images per step; images of each kind to draw batches from
STEPS = {"vit": 750, "resnet": 280}
PEAK_RATE = {"vit": 1.2e-3, "resnet": 2e-3}
ONE_OBJECT_SHARE = 0.55  # of the steps; after these, images with two objects join in
MAX_HAZE = 0.3
HELD_OUT, HELD_OUT_SEED = 300, 4242  # scenes to measure retrieval accuracy on


def pretrained_clip(tower: str = "vit", *, seed: int = 0, cache: Path | None = None) -> open_clip.CLIP:
    """Load a small CLIP of any training seed, for measurements over several models.

    The weights of seed 0 are those of the package. Other seeds are trained at the first call (minutes on two cores)
    and read from the cache afterwards.

    Args:
        tower: ``"vit"`` or ``"resnet"``.
        seed: of the initial weights and the batches.
        cache: folder of trained weights; by default ``clipcam_lightning`` in the user's cache directory.

    Returns:
        The model in eval mode. The random state stays as it was.
    """
    if seed == 0:
        return trained_clip(tower)
    cache = cache or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clipcam_lightning"
    file = cache / f"shapes-{tower}-{seed}-{_source_hash()}.safetensors"
    with torch.random.fork_rng(devices=[]):
        model = build_clip(tower)
        try:
            model.load_state_dict(load_tensors(file, FILE_KIND)[0])
        except (SnapshotError, RuntimeError):  # not there yet, or cut short by hand
            model = _trained(tower, seed)
            save_tensors(file, FILE_KIND, model.state_dict(), {"tower": tower, "seed": seed})
    return model.eval()


def write_weights(tower: str, model: open_clip.CLIP) -> Path:
    """Write the weights of ``model`` as those of the package.

    Args:
        tower: ``"vit"`` or ``"resnet"``.
        model: trained with seed 0.

    Returns:
        The file, in which floats are float16. Its metadata has the tower, the seed and the recipe of the training.
    """
    file = WEIGHTS / f"{tower}.safetensors"
    tensors = {key: value.half() if value.is_floating_point() else value for key, value in model.state_dict().items()}
    save_tensors(file, FILE_KIND, tensors, {"tower": tower, "seed": 0, "recipe": recipe(tower)})
    return file


def recipe(tower: str) -> dict[str, int | float]:
    """Numbers that describe the training of a tower."""
    return {
        "steps": STEPS[tower],
        "batch": BATCH,
        "scenes": POOL,
        "peak_learning_rate": PEAK_RATE[tower],
        "one_object_share": ONE_OBJECT_SHARE,
        "max_haze": MAX_HAZE,
    }


def main(towers: Sequence[str] = ()) -> None:
    """Train towers, by default both, with seed 0 and write their weights into the package."""
    for tower in towers or STEPS:
        model = _trained(tower, seed=0).eval()
        accuracy = retrieval_accuracy(model, draw_scenes(HELD_OUT, seed=HELD_OUT_SEED))
        print(f"{write_weights(tower, model)}: retrieval accuracy {accuracy:.3f}")


def retrieval_accuracy(model: open_clip.CLIP, scenes: Scenes) -> float:
    """Measure the share of one-object scenes, 0 to 1, whose own caption is the closest of all captions."""
    with torch.no_grad():
        texts = F.normalize(model.encode_text(WordTokenizer()(CAPTIONS)), dim=-1)
        images = F.normalize(model.encode_image(_input(model, scenes.images)), dim=-1)
    return float(np.mean((images @ texts.T).argmax(1).numpy() == scenes.objects[:, 0]))


def _trained(tower: str, seed: int) -> open_clip.CLIP:
    """Train contrastively on scenes in varying haze: first with one object per image, then with one or two."""
    torch.manual_seed(seed)
    model, tokenizer, steps = build_clip(tower).train(), WordTokenizer(), STEPS[tower]
    rng = np.random.default_rng(seed)
    one, two = (with_haze(draw_scenes(POOL, objects=k, seed=seed), 0.0, MAX_HAZE, seed=seed) for k in (1, 2))
    optimizer = torch.optim.AdamW(model.parameters(), PEAK_RATE[tower], betas=(0.9, 0.98), weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE[tower], total_steps=steps, pct_start=0.1)
    for step in track(range(steps), f"pretraining the {tower} of the shapes world"):
        pairs = 0 if step < ONE_OBJECT_SHARE * steps else BATCH // 2
        parts = [
            (one, rng.choice(POOL, BATCH - pairs, replace=False)),
            (two, rng.choice(POOL, pairs, replace=False)),
        ]
        images = np.concatenate([scenes.images[chosen] for scenes, chosen in parts])
        shown = [tuple(row) for scenes, chosen in parts for row in scenes.objects[chosen].tolist()]
        mentioned = [choose_mentioned(objects, rng) for objects in shown]
        texts = tokenizer([" and ".join(CAPTIONS[kind] for kind in kinds) for kinds in mentioned])
        matches = torch.tensor([[set(t) <= set(s) for t in mentioned] for s in shown])
        take_step(model, optimizer, _input(model, images), texts, matches)
        schedule.step()
    return model


def take_step(
    model: Any,
    optimizer: torch.optim.Optimizer,
    images: Float[Tensor, "n 3 y x"],
    texts: Int[Tensor, "m l"],
    matches: Bool[Tensor, "n m"],
) -> None:
    """Take one optimizer step of a contrastive training.

    Args:
        model: a CLIP of open_clip.
        optimizer: of its parameters.
        images: model input.
        texts: tokens.
        matches: which texts fit which images.
    """
    logits = model.logit_scale.exp() * (
        F.normalize(model.encode_image(images), dim=-1) @ F.normalize(model.encode_text(texts), dim=-1).T
    )
    loss = contrastive_loss(logits, matches)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    with torch.no_grad():
        model.logit_scale.clamp_(0, np.log(100))


def contrastive_loss(logits: Float[Tensor, "n m"], matches: Bool[Tensor, "n m"]) -> Float[Tensor, ""]:
    """Compute CLIP's symmetric cross-entropy, where several texts may match an image and several images a text."""
    images = (logits.log_softmax(1) * matches).sum(1) / matches.sum(1)
    texts = (logits.log_softmax(0) * matches).sum(0) / matches.sum(0)
    return -(images.mean() + texts.mean()) / 2


def choose_mentioned(objects: tuple[int, ...], rng: np.random.Generator) -> tuple[int, ...]:
    """Choose what the caption mentions: of two objects half the time both, in either order, else one of them."""
    if len(objects) == 1:
        return objects
    order = rng.permutation(objects)
    return tuple(int(kind) for kind in (order if rng.random() < 0.5 else order[:1]))


def _input(model: open_clip.CLIP, images: np.ndarray) -> Tensor:
    return model_input(torch.from_numpy(images), model.visual.preprocess_cfg["size"][0])


def _source_hash() -> str:
    """Changes with the code that draws the scenes and trains on them."""
    here = Path(__file__).parent
    sources = [(here / name).read_bytes() for name in ("scenes.py", "models.py", "pretraining.py")]
    return hashlib.sha256(b"".join(sources)).hexdigest()[:12]


if __name__ == "__main__":
    main(sys.argv[1:])
