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

    With several views per map a third one is needed, since the similarity of a snapshot is then a mean over them.

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
    settings = explainer.settings
    has_views = settings.flip or settings.shift or tuple(settings.scales) != (1.0,)
    covered_loss, control_loss = (torch.full_like(snapshot.similarity, torch.nan) for _ in range(2))
    moved = (metrics.correlation(baseline.maps, snapshot.maps) <= 1 - MIN_DRIFT).nonzero()[:, 0]  # not where it is NaN
    for part in parts(len(moved), objects.shape):
        rows = moved[part]
        places = choose_places(baseline.maps[rows], snapshot.maps[rows], objects[rows])
        possible = places[0].flatten(1).any(1)
        rows, places = rows[possible], places[:, possible]
        if not len(rows):
            continue
        vectors, images = texts[rows, 0].float().cpu(), prepared.images[rows]
        whole = (explainer.embed_images(images) * vectors).sum(1) if has_views else snapshot.similarity[rows]
        for losses, place in zip((covered_loss, control_loss), places, strict=True):
            losses[rows] = whole - (explainer.embed_images(fill_regions(images, place)) * vectors).sum(1)
    return covered_loss, control_loss


def choose_places(
    before: Float[Tensor, "n h w"], now: Float[Tensor, "n h w"], objects: Bool[Tensor, "n y x"]
) -> Bool[Tensor, "2 n y x"]:
    """Choose the place outside each object where the map gained most, and one as far from the middle of the image.

    Args:
        before, now: raw maps.
        objects: pixels that belong to neither place.

    Returns:
        A disc without the pixels of the object, and the same mirrored at one or both axes of the image. Nothing where
        the object is unknown, where no pixel outside it gained, or where every mirror image lies mostly on the object
        or on the disc itself.
    """
    size = (objects.shape[1], objects.shape[2])
    gains = resize_maps(relative_saliency(now) - relative_saliency(before), size).masked_fill(objects, 0.0)
    highest, hottest = gains.flatten(1).max(dim=1)
    row, column = hottest // size[1], hottest % size[1]
    covered = discs_around(row, column, size) & ~objects
    mirrored = torch.stack([covered.flip(axes) for axes in ((2,), (1,), (1, 2))]) & ~objects & ~covered
    pixels = mirrored.flatten(2).sum(2)
    control = mirrored[pixels.argmax(0), torch.arange(len(row), device=row.device)]
    is_large = pixels.amax(0) >= MIN_SHARE * covered.flatten(1).sum(1)
    possible = objects.flatten(1).any(1) & (highest > 0) & is_large
    return torch.stack([covered, control]) & possible[:, None, None]
