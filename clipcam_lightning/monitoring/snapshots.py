"""Snapshots of a probe set: its maps, what images without their objects say, and what a baseline needs besides."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from importlib.metadata import version

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from clipcam_lightning.cam.compact_images import CompactImages, parts
from clipcam_lightning.cam.display.drawing import to_image
from clipcam_lightning.cam.explanation import Explanation
from clipcam_lightning.cam.model import ClipModel
from clipcam_lightning.drift import metrics
from clipcam_lightning.drift.snapshot import Snapshot, SnapshotInfo
from clipcam_lightning.errors import describe_error
from clipcam_lightning.monitoring.background import find_objects, observe_background
from clipcam_lightning.monitoring.closest_prompts import find_closest, list_other_prompts
from clipcam_lightning.monitoring.covering import measure_losses
from clipcam_lightning.monitoring.explainer import Explainer
from clipcam_lightning.monitoring.noise_floor import noise_floor
from clipcam_lightning.monitoring.transplants import choose_donors, fill_donors, name_transplants
from clipcam_lightning.probes.prepared import PreparedProbes
from clipcam_lightning.probes.probe_set import ProbeSet
from clipcam_lightning.storage.jpeg import encode_jpeg

IMAGE_QUALITY = 90  # of the JPEGs in a baseline
PACKAGES = ("clipcam-lightning", "torch", "open_clip_torch")
_version = cache(version)  # importlib reads files


def take_snapshot(
    explanation: Explanation,
    probes: ProbeSet,
    prepared: PreparedProbes,
    texts: Float[Tensor, "n 1 d"],
    clip: ClipModel,
    *,
    step: int,
    epoch: int,
) -> Snapshot:
    """Turn the explanation of a probe set into a snapshot, graded where there are masks.

    Args:
        explanation: of one prompt per image.
        probes: what was explained.
        prepared: the probes as the model's input.
        texts: embeddings of the prompts.
        clip: the model.
        step: optimizer steps taken.
        epoch: counted from 0.
    """
    maps = explanation.maps[:, 0].float().cpu()
    masks = prepared.masks
    grades = [
        (metrics.energy_inside(maps[part], masks[part]), metrics.pointing_hit(maps[part], masks[part]).float())
        for part in parts(len(maps), masks.shape)
    ]
    energy, pointing = (torch.cat(each) for each in zip(*grades, strict=True))
    embeddings, ignored = explanation.embeddings, list_other_prompts(probes.prompts, prepared.images.keys)
    return Snapshot(
        maps=maps,
        similarity=explanation.similarity[:, 0].float().cpu(),
        energy_inside_mask=energy.where(prepared.has_mask, torch.nan),
        pointing=pointing.where(prepared.has_mask, torch.nan),
        names=tuple(probes.names),
        prompts=tuple(probes.prompts),
        closest=None if embeddings is None else find_closest(embeddings, texts, ignored),
        info=SnapshotInfo(
            digest=probes.digest,
            step=step,
            epoch=epoch,
            method=explanation.method,
            target=explanation.target,
            score_scale=explanation.score_scale,
            scales=explanation.scales,
            flip=explanation.flip,
            shift=explanation.shift,
            precision=explanation.precision,
            fuse=explanation.fuse,
            layers=explanation.layers,
            fingerprint=clip.fingerprint,
            dtype=str(clip.dtype).removeprefix("torch."),
            versions={package: _version(package) for package in PACKAGES},
        ),
    )


def complete_baseline(
    explainer: Explainer, prepared: PreparedProbes, texts: Float[Tensor, "n 1 d"], snapshot: Snapshot
) -> tuple[Snapshot, str]:
    """Add images, objects, background, transplants and noise floor to a new baseline.

    Returns:
        The baseline, and why its noise floor is unknown; empty if it was measured.
    """
    found = find_objects(explainer, prepared, texts, snapshot.maps)
    donors = choose_donors(snapshot.prompts, prepared.images.keys, found.pixels)
    snapshot = replace(
        snapshot,
        images=tuple(_encode_images(prepared.images, explainer.clip)),
        objects=found.pixels,
        map_agrees=found.map_agrees,
    )
    snapshot = add_background(explainer, prepared, texts, snapshot, found.pixels)
    snapshot = add_transplants(explainer, prepared, texts, snapshot, found.pixels, donors)
    try:
        return replace(snapshot, noise_floor=noise_floor(explainer, prepared, snapshot.maps)), ""
    except Exception as error:  # a paraphrase may be too long for a tokenizer; drift is measured all the same
        return snapshot, f"the noise floor could not be measured and is taken to be 0: {describe_error(error)}"


def _encode_images(images: CompactImages, clip: ClipModel) -> Iterator[bytes]:
    """Encode what the model sees of each probe as JPEG."""
    for part in parts(len(images), images.shape):
        for pixels in images.select(part).pixels(clip.preprocessing):
            yield encode_jpeg(to_image(pixels), IMAGE_QUALITY)


def add_background(
    explainer: Explainer,
    prepared: PreparedProbes,
    texts: Float[Tensor, "n 1 d"],
    snapshot: Snapshot,
    objects: Bool[Tensor, "n y x"] | None,
) -> Snapshot:
    """Add what the images without their objects say, if it is known where the objects are."""
    if objects is None or objects.shape[1:] != prepared.images.shape[2:]:
        return snapshot
    background = observe_background(explainer, prepared, texts, snapshot.prompts, objects)
    return replace(snapshot, background_score=background.score, named_without_object=background.named)


def add_evidence(
    explainer: Explainer,
    prepared: PreparedProbes,
    texts: Float[Tensor, "n 1 d"],
    snapshot: Snapshot,
    baseline: Snapshot,
    outstanding: Sequence[str],
) -> Snapshot:
    """Add what the model calls other objects on the grounds, and what covering the place costs that a map turned to.

    It costs at most eight forwards per probe, or nine if maps have several views. Nothing is added if the baseline does
    not say where objects are.

    Args:
        explainer: the model as it is now.
        prepared: the probes as the model's input.
        texts: embeddings of the prompts.
        snapshot: of now.
        baseline: with objects and donors.
        outstanding: names of the probes whose grounds get as many objects as a ground may have.
    """
    if baseline.objects is None or baseline.donors is None:
        return snapshot
    grounds = [snapshot.names.index(name) for name in outstanding]
    donors = fill_donors(baseline.donors, grounds, snapshot.prompts, prepared.images.keys, baseline.objects)
    snapshot = add_transplants(explainer, prepared, texts, snapshot, baseline.objects, donors)
    covered, control = measure_losses(explainer, prepared, texts, baseline, snapshot, baseline.objects)
    return replace(snapshot, covered_loss=covered, control_loss=control)


def add_transplants(
    explainer: Explainer,
    prepared: PreparedProbes,
    texts: Float[Tensor, "n 1 d"],
    snapshot: Snapshot,
    objects: Bool[Tensor, "n y x"],
    donors: Int[Tensor, "n k"],
) -> Snapshot:
    """Add what the model calls other objects on the grounds."""
    named = name_transplants(explainer, prepared, texts, objects, donors)
    return replace(snapshot, donors=donors, transplants_named=named)
