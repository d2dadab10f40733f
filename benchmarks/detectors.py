"""Detectors of drift: each scores an evaluation against its baseline, higher for more drift."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure as ssim

from clipcam_lightning import DriftReport, DriftRule, Snapshot, compare
from clipcam_lightning.cam.fuse import resize_maps

Detector: TypeAlias = Callable[[Snapshot, Snapshot], float]

SIDE = 64  # pixels per side at which SSIM compares maps, as if they were images


def rule_score(baseline: Snapshot, snapshot: Snapshot) -> float:
    """Compute the severity by the default rule; above 1 is an alarm."""
    return min(_report(baseline, snapshot).severity, 1e6)


def rule_without_masks(baseline: Snapshot, snapshot: Snapshot) -> float:
    """Compute the severity by the default rule if no probe has a mask."""
    return min(_report(baseline, _without_masks(snapshot)).severity, 1e6)


def mean_drift(baseline: Snapshot, snapshot: Snapshot) -> float:
    """Average 1 - CC over the probes."""
    return _report(baseline, snapshot).drift


def mean_lost_iou(baseline: Snapshot, snapshot: Snapshot) -> float:
    """Average 1 - IoU of the hottest 20 % of the cells over the probes."""
    return 1 - sum(probe.top_iou for probe in _report(baseline, snapshot).probes) / len(snapshot.names)


def mean_lost_ssim(baseline: Snapshot, snapshot: Snapshot) -> float:
    """Average 1 - SSIM of the enlarged maps over the probes."""
    before, now = (_enlarge(each.maps) for each in (baseline, snapshot))
    return 1 - float(ssim(now, before, data_range=1.0))


DETECTORS: dict[str, Detector] = {
    "our rule": rule_score,
    "our rule, no masks": rule_without_masks,
    "CC": mean_drift,
    "top-20 % IoU": mean_lost_iou,
    "SSIM": mean_lost_ssim,
}


def roc_auc(positives: Sequence[float], negatives: Sequence[float]) -> float:
    """Compute the area under the ROC curve: the share of pairs in which the positive scores higher, ties counted half.

    Args:
        positives: scores of runs that should raise an alarm.
        negatives: scores of runs that should not.
    """
    wins = sum((p > n) + 0.5 * (p == n) for p in positives for n in negatives)
    return wins / (len(positives) * len(negatives))


def _report(baseline: Snapshot, snapshot: Snapshot) -> DriftReport:
    return compare(baseline, snapshot, DriftRule())


def _without_masks(snapshot: Snapshot) -> Snapshot:
    unknown = torch.full_like(snapshot.energy_inside_mask, torch.nan)
    return replace(snapshot, energy_inside_mask=unknown, pointing=unknown)


def _enlarge(maps: Float[Tensor, "n h w"]) -> Float[Tensor, "n 1 y x"]:
    positive = resize_maps(maps, (SIDE, SIDE)).clamp_min(0)
    return (positive / positive.amax((1, 2), keepdim=True).clamp_min(1e-12))[:, None]
