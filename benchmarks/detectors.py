"""Detectors of drift: each scores an evaluation, compared with its baseline, higher for more drift."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import fmean
from typing import TypeAlias

from jaxtyping import Float
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure as ssim

from clipcam_lightning import DriftReport, DriftRule, Snapshot, compare
from clipcam_lightning.cam.fuse import resize_maps

SIDE = 64  # pixels per side at which SSIM compares maps, as if they were images
MAX_SCORE = 1e6
TOLERANT = DriftRule(false_alarm_rate=0.05)


@dataclass(frozen=True, eq=False)
class Comparison:
    """An evaluation and its baseline.

    Attributes:
        baseline: the first evaluation.
        snapshot: a later one.
    """

    baseline: Snapshot
    snapshot: Snapshot

    @cached_property
    def report(self) -> DriftReport:
        """By the default rule."""
        return compare(self.baseline, self.snapshot)

    @cached_property
    def tolerant(self) -> DriftReport:
        """By the rule that tolerates five times as many false alarms, which changes no measure of a probe."""
        return replace(self.report, rule=TOLERANT)

    @cached_property
    def maps_alone(self) -> DriftReport:
        """By the conditions on the maps alone, which were the whole rule before."""
        before, now = (replace(each, background_score=None, named_without_object=None) for each in self.pair)
        return compare(before, now)

    @property
    def pair(self) -> tuple[Snapshot, Snapshot]:
        """Both, the baseline first."""
        return self.baseline, self.snapshot


Score: TypeAlias = Callable[[Comparison], float]


@dataclass(frozen=True)
class Detector:
    """A way to detect drift.

    Attributes:
        score: higher for more drift.
        masks: whether it knows the masks of the probes.
        limit: a score above it is an alarm; ``None`` if that is to be chosen.
    """

    score: Score
    masks: bool = False
    limit: float | None = None


def severity(report: DriftReport) -> float:
    """Get how far a report is off; above 1 is an alarm."""
    return min(report.severity, MAX_SCORE)


def background_severity(compared: Comparison) -> float:
    """Compute the severity of the background alone; above 1 the rule suspects that it tells the prompt."""
    evidence = compared.report.evidence
    return min(evidence.severity, MAX_SCORE) if evidence else 0.0


def pull_severity(compared: Comparison) -> float:
    """Compute by how much other objects follow the background; above 1 it is shown that it tells the prompt."""
    evidence = compared.report.evidence
    return evidence.pull_severity if evidence and evidence.suspicious else 0.0


def is_suspicious(compared: Comparison) -> float:
    """Score 1 if an evaluation looks suspicious enough to try other objects on the backgrounds, else 0."""
    return float(compared.report.suspicious)


def mean_lost_iou(compared: Comparison) -> float:
    """Average 1 - IoU of the hottest 20 % of the cells over the probes."""
    return 1 - fmean(probe.top_iou for probe in compared.report.probes)


def mean_center_shift(compared: Comparison) -> float:
    """Average the centre shift over the probes."""
    return fmean(probe.center_shift for probe in compared.report.probes)


def mean_lost_ssim(compared: Comparison) -> float:
    """Average 1 - SSIM of the enlarged maps over the probes."""
    before, now = (_enlarge(each.maps) for each in compared.pair)
    return 1 - float(ssim(now, before, data_range=1.0))


DETECTORS = {
    "our rule": Detector(lambda compared: severity(compared.report), masks=True, limit=1.0),
    "our rule, no masks": Detector(lambda compared: severity(compared.report), limit=1.0),
    "at a rate of 0.05": Detector(lambda compared: severity(compared.tolerant), masks=True, limit=1.0),
    "at a rate of 0.05, no masks": Detector(lambda compared: severity(compared.tolerant), limit=1.0),
    "the background": Detector(background_severity, masks=True, limit=1.0),
    "the background, no masks": Detector(background_severity, limit=1.0),
    "shown": Detector(pull_severity, masks=True, limit=1.0),
    "shown, no masks": Detector(pull_severity, limit=1.0),
    "suspicious": Detector(is_suspicious, masks=True, limit=0.5),
    "suspicious, no masks": Detector(is_suspicious, limit=0.5),
    "maps alone": Detector(lambda compared: severity(compared.maps_alone), masks=True, limit=1.0),
    "maps alone, no masks": Detector(lambda compared: severity(compared.maps_alone), limit=1.0),
    "CC": Detector(lambda compared: compared.report.drift),
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


def _enlarge(maps: Float[Tensor, "n h w"]) -> Float[Tensor, "n 1 y x"]:
    positive = resize_maps(maps, (SIDE, SIDE)).clamp_min(0)
    return (positive / positive.amax((1, 2), keepdim=True).clamp_min(1e-12))[:, None]
