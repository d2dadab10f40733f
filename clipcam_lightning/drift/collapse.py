"""Whether the model tells the prompts of the probes apart no longer."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from clipcam_lightning.drift.probe_drift import ProbeDrift
from clipcam_lightning.drift.rule import MIN_RECOGNITION, TINY, DriftRule
from clipcam_lightning.drift.transplants import Transplants

ERRORS = 3  # standard errors of random answers, that a model must exceed which tells the prompts apart


@dataclass(frozen=True)
class Collapse:
    """How much less the model tells the prompts apart than at the baseline.

    Printed, it is a sentence without full stop.

    Attributes:
        contrast: mean similarity of the images to their prompts, beyond that of other images without objects, -2 to 2.
        contrast_before: the same at the baseline.
        contrast_severity: how far the contrast fell, in units of what the rule tolerates.
        recognized: how many objects on the grounds of other probes are closest to their own prompts.
        transplants: how many were tried; 0 without suspicion.
        recognized_before: how many were recognized at the baseline.
        transplants_before: how many were tried then.
        recognition_severity: how far Cohen's kappa of these objects and what they are called fell, in units of what the
            rule tolerates; NaN if none was tried now.
    """

    contrast: float
    contrast_before: float
    contrast_severity: float
    recognized: int
    transplants: int
    recognized_before: int
    transplants_before: int
    recognition_severity: float

    @property
    def severity(self) -> float:
        """How far the model is off; above 1 is an alarm. Neither contrast nor recognition alone makes it one."""
        return min(self.contrast_severity, 1.0 if math.isnan(self.recognition_severity) else self.recognition_severity)

    @property
    def suspicious(self) -> bool:
        """Whether the contrast fell enough to try objects on other grounds, without which there is no alarm."""
        return self.contrast_severity > 1

    def __str__(self) -> str:
        contrast = (
            f"the similarities of images to their own prompts exceed those of other images without objects by "
            f"{self.contrast:.3f} ({self.contrast_before:.3f} at the baseline)"
        )
        if not self.transplants:
            return contrast
        return (
            f"the model recognizes {self.recognized} of {self.transplants} objects on other backgrounds "
            f"({self.recognized_before} of {self.transplants_before} at the baseline), and {contrast}"
        )


def weigh_collapse(probes: Sequence[ProbeDrift], rule: DriftRule) -> Collapse | None:
    """Weigh whether the model tells the prompts apart no longer.

    Args:
        probes: whose background is known.
        rule: how much is tolerated.

    Returns:
        ``None`` if the model did not tell the prompts apart at the baseline, or if so few objects were tried that its
        answers may have been right by chance.
    """
    known = [probe for probe in probes if math.isfinite(probe.contrast_change)]
    before = [probe.transplants_before for probe in known if probe.transplants_before.count]
    now = [probe.transplants for probe in known if probe.transplants.count]
    if not before:
        return None
    kappa_before, error = _cohens_kappa(before)
    if kappa_before < max(MIN_RECOGNITION, ERRORS * error):
        return None
    contrast = fmean(probe.contrast for probe in known)
    contrast_before = contrast - fmean(probe.contrast_change for probe in known)
    return Collapse(
        contrast=contrast,
        contrast_before=contrast_before,
        contrast_severity=rule.rate_contrast(contrast, contrast_before),
        recognized=sum(each.recognized for each in now),
        transplants=sum(each.count for each in now),
        recognized_before=sum(each.recognized for each in before),
        transplants_before=sum(each.count for each in before),
        recognition_severity=rule.rate_recognition(_cohens_kappa(now)[0], kappa_before) if now else math.nan,
    )


def _cohens_kappa(transplants: Sequence[Transplants]) -> tuple[float, float]:
    """Compute Cohen's kappa of objects and what they are called, and the standard error of that of random answers."""
    count, chance = sum(each.count for each in transplants), transplants[0].chance
    recognized = sum(each.recognized for each in transplants) / count
    beyond = max(1 - chance, TINY)
    return (recognized - chance) / beyond, math.sqrt(chance / (beyond * count))
