"""Detectors of drift: each scores an evaluation against its baseline, higher for more drift."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TypeAlias

from jaxtyping import Float
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure as ssim

from clipcam_lightning import DriftReport, Snapshot, compare
from clipcam_lightning.cam.fuse import resize_maps

Score: TypeAlias = Callable[[Snapshot, Snapshot], float]

SIDE = 64  # pixels per side at which SSIM compares maps, as if they were images
MAX_SCORE = 1e6


@dataclass(frozen=True)
class Detector:
    """A way to detect drift.

    Attributes:
        score: of an evaluation and its baseline.
        masks: whether it knows the masks of the probes.
        limit: a score above it is an alarm; ``None`` if that is to be chosen.
    """

    score: Score
    masks: bool = False
    limit: float | None = None


def rule_score(baseline: Snapshot, snapshot: Snapshot) -> float:
    """Compute the severity by the default rule; above 1 is an alarm."""
    return min(compare(baseline, snapshot).severity, MAX_SCORE)


def background_score(baseline: Snapshot, snapshot: Snapshot) -> float:
    """Compute the severity of the background alone; above 1 the rule says that it may tell the prompt, or tells it."""
    evidence = compare(baseline, snapshot).evidence
    return min(evidence.severity, MAX_SCORE) if evidence else 0.0


def pull_score(baseline: Snapshot, snapshot: Snapshot) -> float:
    """Compute by how much other objects follow the background; above 1 it is shown that it tells the prompt."""
    evidence = compare(baseline, snapshot).evidence
    return evidence.pull_severity if evidence and evidence.suspicious else 0.0


def maps_alone_score(baseline: Snapshot, snapshot: Snapshot) -> float:
    """Compute the severity by the conditions on the maps alone, which were the whole rule before."""
    return rule_score(_without_background(baseline), _without_background(snapshot))


def mean_drift(baseline: Snapshot, snapshot: Snapshot) -> float:
    """Average 1 - CC over the probes."""
    return compare(baseline, snapshot).drift


def mean_lost_iou(baseline: Snapshot, snapshot: Snapshot) -> float:
    """Average 1 - IoU of the hottest 20 % of the cells over the probes."""
    return 1 - fmean(probe.top_iou for probe in _probes(baseline, snapshot))


def mean_center_shift(baseline: Snapshot, snapshot: Snapshot) -> float:
    """Average the centre shift over the probes."""
    return fmean(probe.center_shift for probe in _probes(baseline, snapshot))


def mean_lost_ssim(baseline: Snapshot, snapshot: Snapshot) -> float:
    """Average 1 - SSIM of the enlarged maps over the probes."""
    before, now = (_enlarge(each.maps) for each in (baseline, snapshot))
    return 1 - float(ssim(now, before, data_range=1.0))


DETECTORS = {
    "our rule": Detector(rule_score, masks=True, limit=1.0),
    "our rule, no masks": Detector(rule_score, limit=1.0),
    "the background": Detector(background_score, masks=True, limit=1.0),
    "the background, no masks": Detector(background_score, limit=1.0),
    "shown": Detector(pull_score, masks=True, limit=1.0),
    "shown, no masks": Detector(pull_score, limit=1.0),
    "maps alone": Detector(maps_alone_score, masks=True, limit=1.0),
    "maps alone, no masks": Detector(maps_alone_score, limit=1.0),
    "CC": Detector(mean_drift),
    "top-20 % IoU": Detector(mean_lost_iou),
    "centre shift": Detector(mean_center_shift),
    "SSIM": Detector(mean_lost_ssim),
}


def roc_auc(positives: Sequence[float], negatives: Sequence[float]) -> float:
    """Compute the area under the ROC curve: the share of pairs in which the positive scores higher, ties counted half.

    Args:
        positives: scores of runs that should raise an alarm.
        negatives: scores of runs that should not.
    """
    wins = sum((p > n) + 0.5 * (p == n) for p in positives for n in negatives)
    return wins / (len(positives) * len(negatives))


def _probes(baseline: Snapshot, snapshot: Snapshot) -> Sequence:
    report: DriftReport = compare(baseline, snapshot)
    return report.probes


def _without_background(snapshot: Snapshot) -> Snapshot:
    return replace(snapshot, background_score=None, named_without_object=None)


def _enlarge(maps: Float[Tensor, "n h w"]) -> Float[Tensor, "n 1 y x"]:
    positive = resize_maps(maps, (SIDE, SIDE)).clamp_min(0)
    return (positive / positive.amax((1, 2), keepdim=True).clamp_min(1e-12))[:, None]
