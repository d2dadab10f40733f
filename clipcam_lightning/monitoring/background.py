"""What images without their objects say: whether the background tells a prompt."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from clipcam_lightning.analysis.interventions import (
    choose_windows,
    fill_regions,
    in_pixels,
    object_regions,
    spread_drops,
    window_drops,
    window_saliency,
)
from clipcam_lightning.cam.compact_images import parts
from clipcam_lightning.cam.representation import short_repr
from clipcam_lightning.drift import metrics
from clipcam_lightning.monitoring.explainer import Explainer
from clipcam_lightning.probes.prepared import PreparedProbes

MIN_CONCENTRATION = 2.0  # of a map on its mask, in units of the mask's share of the image
MIN_CORRELATION = 0.5  # of a map with occlusion over the hidden windows; chosen by benchmarks/map_agreement.py
MIN_OTHERS = 3  # other images with another prompt, below which their spread is not known
MIN_SPREAD = 1e-3  # of margins, added to their standard deviation
COLUMNS = 256  # probes that are scored at once


@dataclass(frozen=True, eq=False, repr=False)
class Background:
    """What images without their objects say, one value per probe.

    The *margin* of an image is its similarity to a prompt minus that to the nearest other prompt of the probes.

    Attributes:
        score: how far the margin of an image without its object is above those of the images of other prompts without
            theirs, in standard deviations of these. Near 0 if only objects tell the prompts.
        named: whether the margin of an image without its object is positive; 0 or 1.

    All are NaN for a probe with fewer than three other images that have another prompt, and where the margin is not
    finite.
    """

    score: Float[Tensor, "n"]
    named: Float[Tensor, "n"]

    __repr__ = short_repr


def observe_background(
    explainer: Explainer,
    prepared: PreparedProbes,
    texts: Float[Tensor, "n 1 d"],
    prompts: Sequence[str],
    objects: Bool[Tensor, "n y x"],
) -> Background:
    """Remove the object of each probe and measure what remains of its prompt: one forward per probe.

    Args:
        explainer: the model as it is now.
        prepared: the probes as the model's input.
        texts: embeddings of the prompts.
        prompts: of the probes; probes with equal ones are one class.
        objects: pixels of the objects.
    """
    images = prepared.images
    embedded = [
        explainer.embed_images(fill_regions(images[part], objects[part])) for part in parts(len(images), images.shape)
    ]
    vectors = texts[:, 0].float().cpu()
    columns, firsts = number_equal(  # probes of one prompt may have embeddings of their own
        [(prompt, vector.numpy().tobytes()) for prompt, vector in zip(prompts, vectors, strict=True)]
    )
    cosines = torch.cat(embedded) @ vectors[firsts].T
    return score_background(cosines, columns, number_equal(prompts)[0], number_equal(prepared.images.keys)[0])


def number_equal(values: Sequence[Hashable]) -> tuple[Int[Tensor, "n"], list[int]]:
    """Number values from 0, equal ones alike.

    Returns:
        The number of each value, and where each number first occurs.
    """
    firsts: dict[Hashable, int] = {}
    for i, value in enumerate(values):
        firsts.setdefault(value, i)
    numbers = {value: number for number, value in enumerate(firsts)}
    return torch.tensor([numbers[value] for value in values], device="cpu"), [*firsts.values()]


def score_background(
    cosines: Float[Tensor, "n c"],
    columns: Int[Tensor, "n"],
    prompts: Int[Tensor, "n"],
    images: Int[Tensor, "n"],
) -> Background:
    """Score images without their objects.

    Args:
        cosines: of each image without its object with each text.
        columns: the number of each probe's text.
        prompts: the number of each probe's prompt; probes with equal ones are one class, whatever their texts are.
        images: a number of each probe's image, equal for equal ones. Probes of one image are not compared with each
            other: the objects of the other prompts are still there.
    """
    count = int(prompts.max()) + 1
    prompt_of = torch.empty(cosines.shape[1], dtype=torch.int64, device="cpu").index_copy_(0, columns, prompts)
    by_prompt = torch.full((len(cosines), max(2, count)), -torch.inf, dtype=cosines.dtype, device="cpu")
    # The nearest other prompt is the nearest of all, or the second where the own one is the nearest.
    nearest, ranked = by_prompt.scatter_reduce_(1, prompt_of.expand_as(cosines), cosines, "amax").topk(2, dim=1)
    scores = []
    for start in range(0, len(cosines), COLUMNS):  # a column per probe: all together would be a large matrix
        part = slice(start, start + COLUMNS)
        own = prompts[part]
        values = cosines[:, columns[part]]
        margins = values - torch.where(ranked[:, :1] == own, nearest[:, 1:], nearest[:, :1])
        others = (prompts[:, None] != own) & (images[:, None] != images[part])
        counts = others.sum(0)
        mean = torch.where(others, margins, 0.0).sum(0) / counts
        spread = (torch.where(others, margins - mean, 0.0).square().sum(0) / counts).sqrt()
        margin = margins[part].diagonal()
        score = (margin - mean) / (spread + MIN_SPREAD)
        by_image = torch.zeros(int(images.max()) + 1, len(own), dtype=torch.int64, device="cpu")
        known = by_image.index_add_(0, images, others.long()).gt(0).sum(0) >= MIN_OTHERS
        named = (margin > 0).float().where(margin.isfinite(), torch.nan)
        scores.append(torch.stack([each.where(known, torch.nan) for each in (score, named)]))
    return Background(*torch.cat(scores, dim=1))


@dataclass(frozen=True, eq=False, repr=False)
class Objects:
    """Where the objects of the probes are, according to masks or to a model that still looks at them.

    Attributes:
        pixels: of the objects.
        map_agrees: whether the map of each probe is on its object; 0 or 1. With a mask, the share of the map that is on
            it must be twice the mask's share of the image; without, the map must correlate with occlusion.
    """

    pixels: Bool[Tensor, "n y x"]
    map_agrees: Float[Tensor, "n"]

    __repr__ = short_repr


def find_objects(
    explainer: Explainer,
    prepared: PreparedProbes,
    texts: Float[Tensor, "n 1 d"],
    maps: Float[Tensor, "n h w"],
) -> Objects:
    """Find the objects: by the masks where there are any, else by 13 forwards per probe.

    Args:
        explainer: a model that still looks at the objects: that of the baseline.
        prepared: the probes as the model's input.
        texts: embeddings of the prompts.
        maps: of the probes.
    """
    pixels = prepared.masks.clone()
    agrees = torch.cat(
        [
            metrics.energy_inside(maps[part], pixels[part]) > MIN_CONCENTRATION * pixels[part].float().mean((1, 2))
            for part in parts(len(maps), pixels.shape)
        ]
    )
    without_mask = (~prepared.has_mask).nonzero()[:, 0]
    for part in parts(len(without_mask), pixels.shape):
        rows = without_mask[part]
        images = prepared.images[rows]
        windows = choose_windows(maps[rows])
        drops = window_drops(images, texts[rows, 0].float().cpu(), explainer.embed_images, windows)
        pixels[rows] = in_pixels(object_regions(maps[rows], spread_drops(drops, windows)), images)
        agrees[rows] = correlate_with_occlusion(maps[rows], windows, drops) > MIN_CORRELATION  # False where it is NaN
    return Objects(pixels, agrees.float())


def correlate_with_occlusion(
    maps: Float[Tensor, "n h w"], windows: Int[Tensor, "n k"], drops: Float[Tensor, "n k"]
) -> Float[Tensor, "n"]:
    """Correlate each map with what the similarity loses where windows of the image are hidden.

    Over the windows alone: they lie where the map is hot, so that cells which none hid would speak for any map.

    Args:
        maps: raw saliency.
        windows: that were hidden.
        drops: of :func:`~clipcam_lightning.analysis.interventions.window_drops`.
    """
    hot = window_saliency(maps, windows)[:, None]
    return metrics.correlation(hot, drops.clamp_min(0)[:, None])
