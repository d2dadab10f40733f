"""Cover the place where a map gained most: what does the similarity to the prompt lose, and what with another place?"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from clipcam_lightning.analysis.interventions import discs_around, fill_regions
from clipcam_lightning.cam.compact_images import parts
from clipcam_lightning.cam.fuse import resize_maps
from clipcam_lightning.drift import metrics
from clipcam_lightning.drift.rule import MIN_DRIFT
from clipcam_lightning.drift.snapshot import Snapshot
from clipcam_lightning.monitoring.explainer import Explainer
from clipcam_lightning.monitoring.history import relative_saliency
from clipcam_lightning.probes.prepared import PreparedProbes

MIN_SHARE = 1 / 2  # of the covered pixels, which another place must have to be compared


def measure_losses(
    explainer: Explainer,
    prepared: PreparedProbes,
    texts: Float[Tensor, "n 1 d"],
    baseline: Snapshot,
    snapshot: Snapshot,
    objects: Bool[Tensor, "n y x"],
) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"]]:
    """Cover two places of each image whose map moved visibly: two forwards per such probe.

    Args:
        explainer: the model as it is now.
        prepared: the probes as the model's input.
        texts: embeddings of the prompts.
        baseline: with the maps of before.
        snapshot: with the maps and similarities of now.
        objects: pixels of the objects, which are not covered.

    Returns:
        What the similarity loses where the map gained most, and what with another place; NaN where nothing is covered.
    """
    covered_loss, control_loss = (torch.full_like(snapshot.similarity, torch.nan) for _ in range(2))
    moved = (metrics.correlation(baseline.maps, snapshot.maps) <= 1 - MIN_DRIFT).nonzero()[:, 0]  # not where it is NaN
    for part in parts(len(moved), objects.shape):
        rows = moved[part]
        places = choose_places(baseline.maps[rows], snapshot.maps[rows], objects[rows])
        found = places[0].flatten(1).any(1)
        rows, places = rows[found], places[:, found]
        if not len(rows):
            continue
        vectors, images = texts[rows, 0].float().cpu(), prepared.images[rows]
        for losses, place in zip((covered_loss, control_loss), places, strict=True):
            similarity = (explainer.embed_images(fill_regions(images, place)) * vectors).sum(1)
            losses[rows] = snapshot.similarity[rows] - similarity
    return covered_loss, control_loss


def choose_places(
    before: Float[Tensor, "n h w"], now: Float[Tensor, "n h w"], objects: Bool[Tensor, "n y x"]
) -> Bool[Tensor, "2 n y x"]:
    """Choose the place outside each object where the map gained most, and one as far from the middle of the image.

    Args:
        before, now: raw maps.
        objects: pixels that belong to neither place.

    Returns:
        Two discs without the pixels of the object, the second mirrored at one or both axes of the image; nothing where
        no pixel gained, or where every mirrored disc lies mostly on the object or on the first disc.
    """
    height, width = size = (objects.shape[1], objects.shape[2])
    gains = resize_maps(relative_saliency(now) - relative_saliency(before), size).masked_fill(objects, 0.0)
    highest, hottest = gains.flatten(1).max(dim=1)
    row, column = hottest // width, hottest % width
    covered = discs_around(row, column, size) & ~objects
    mirrored = torch.stack(
        [
            discs_around(other_row, other_column, size) & ~objects & ~covered
            for other_row, other_column in (
                (row, width - 1 - column),
                (height - 1 - row, column),
                (height - 1 - row, width - 1 - column),
            )
        ]
    )
    pixels = mirrored.flatten(2).sum(2)
    control = mirrored[pixels.argmax(0), torch.arange(len(row), device=row.device)]
    possible = (highest > 0) & (pixels.amax(0) >= MIN_SHARE * covered.flatten(1).sum(1))
    return torch.stack([covered, control]) & possible[:, None, None]
