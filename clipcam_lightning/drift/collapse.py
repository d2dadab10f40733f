"""Whether the model tells the prompts of the probes apart no longer."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from clipcam_lightning.drift.probe_drift import ProbeDrift
from clipcam_lightning.drift.rule import DriftRule

SUSPICION = 0.5  # severity of the contrast above which the model is asked for objects on other grounds


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
        recognition_severity: how far the share of them fell, in units of what the rule tolerates; infinite without
            suspicion.
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
        """How far the model is off; above 1 is an alarm: neither contrast nor recognition may say the opposite."""
        return min(self.contrast_severity, self.recognition_severity)

    @property
    def suspicious(self) -> bool:
        """Whether the contrast fell enough to try objects on other grounds."""
        return self.contrast_severity > SUSPICION

    def __str__(self) -> str:
        contrast = (
            f"the similarities of images to their own prompts exceed those of other images without objects by only "
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
        ``None`` if it is not known whether the model told the prompts apart at the baseline, or if it did not: it
        recognized too few objects on other grounds.
    """
    known = [probe for probe in probes if math.isfinite(probe.contrast_change)]
    before, now = ([getattr(probe, name) for probe in known] for name in ("transplants_before", "transplants"))
    transplants_before, transplants = (sum(each.count for each in counted) for counted in (before, now))
    recognized_before, recognized = (sum(each.recognized for each in counted) for counted in (before, now))
    prompts = len({probe.prompt for probe in known})
    if not transplants_before or not rule.is_recognition(recognized_before / transplants_before, prompts):
        return None
    contrast = fmean(probe.contrast for probe in known)
    contrast_before = contrast - fmean(probe.contrast_change for probe in known)
    recognition_severity = (
        rule.rate_recognition(recognized / transplants, recognized_before / transplants_before, prompts)
        if transplants
        else math.inf
    )
    return Collapse(
        contrast=contrast,
        contrast_before=contrast_before,
        contrast_severity=rule.rate_contrast(contrast, contrast_before),
        recognized=recognized,
        transplants=transplants,
        recognized_before=recognized_before,
        transplants_before=transplants_before,
        recognition_severity=recognition_severity,
    )
