"""From which correlation with occlusion on can a map without mask be trusted?

At the baseline 12 windows of each image are hidden, and the map must correlate with what the similarity loses. Half of
the maps must agree, or maps alone raise no alarm. Here the maps of ``auto``, which point at the object, are compared
with wrong ones: those of other images. The limit was chosen on models of the first seed: it leaves the largest gap
between the least agreement of right maps and the most of wrong ones. Models of the other seeds are to report on.

Run it: python -m benchmarks.map_agreement  (2 minutes on two cores, once the models are trained)
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from benchmarks.finetunes import FineTune, ProbeChoice, class_texts
from benchmarks.worlds.world import WORLDS
from clipcam_lightning import explain, find_clip
from clipcam_lightning.analysis.interventions import choose_windows, window_drops
from clipcam_lightning.drift import metrics
from clipcam_lightning.monitoring.background import MIN_CORRELATION, correlate_with_occlusion

RESULTS = Path(__file__).with_suffix(".json")
TOWERS = ("class token", "attention pool", "resnet", "average pool")
SEEDS, CHOICE_SEED = (0, 1, 2), 0
PROBES = ProbeChoice(48)
LIMITS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)


@dataclass(frozen=True)
class Row:
    """What the maps of one model agree with.

    Attributes:
        world, tower, seed: of the model.
        maps: ``"auto"``, or ``"other image"`` for the maps of ``auto`` of another image.
        pointing: share of the maps, 0 to 1, whose hottest pixel is on the object.
        agreeing: share of the maps, 0 to 1, that correlate with occlusion by more than each limit.
    """

    world: str
    tower: str
    seed: int
    maps: str
    pointing: float
    agreeing: dict[float, float]


def measure(world: str, tower: str, seed: int) -> Iterator[Row]:
    """Compare the maps of one model with occlusion."""
    run = FineTune(world, tower, "usual", seed)
    model, drawn = run.load_model().eval(), run.draw_probes(PROBES)
    clip = find_clip(model, tokenizer=WORLDS[world].tokenizer)
    images, classes = torch.stack([clip.preprocessing.image(image) for image in drawn.images]), drawn.classes
    texts = class_texts(run, model, run.images.captions).detach()[torch.from_numpy(classes)]
    own = explain(clip, images, [[run.images.captions[each]] for each in classes]).maps[:, 0]
    for name, maps in (("auto", own), ("other image", own.roll(1, 0))):
        windows = choose_windows(maps)
        with torch.no_grad():
            drops = window_drops(images, texts, clip.embed_images, windows)
        correlations = correlate_with_occlusion(maps, windows, drops)
        yield Row(
            world,
            tower,
            seed,
            name,
            round(float(metrics.pointing_hit(maps, torch.from_numpy(drawn.masks)).float().mean()), 3),
            {limit: round(float((correlations > limit).float().mean()), 3) for limit in LIMITS},
        )


def gap(rows: list[Row], limit: float) -> float:
    """Compute by how much the least agreement of right maps exceeds the most of wrong ones."""
    shares = {name: [row.agreeing[limit] for row in rows if row.maps == name] for name in ("auto", "other image")}
    return min(shares["auto"]) - max(shares["other image"])


def main() -> None:
    console = Console(width=120, highlight=False)
    rows = [row for world in WORLDS for tower in TOWERS for seed in SEEDS for row in measure(world, tower, seed)]
    table = Table(box=MARKDOWN)
    for title in ("world", "tower", "seed", "maps", "pointing", *(f"> {limit:g}" for limit in LIMITS)):
        table.add_column(title)
    for row in rows:
        shares = (f"{share:.2f}" for share in row.agreeing.values())
        table.add_row(row.world, row.tower, str(row.seed), row.maps, f"{row.pointing:.2f}", *shares)
    console.print(table)
    for part, is_in in (("choice", True), ("report", False)):
        of_part = [row for row in rows if (row.seed == CHOICE_SEED) is is_in]
        console.print(part, {limit: round(gap(of_part, limit), 2) for limit in LIMITS}, f"in use: {MIN_CORRELATION:g}")
    RESULTS.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
