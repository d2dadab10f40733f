"""Whether the model has lost the ability to distinguish the prompts of the probes."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from clipcam_lightning.drift.probe_drift import ProbeDrift
from clipcam_lightning.drift.rule import MIN_RECOGNITION, TINY, DriftRule

ERRORS = 3  # standard errors of random answers, which the baseline must exceed to be judged by


@dataclass(frozen=True)
class Collapse:
    """How much worse the model distinguishes the prompts than at the baseline.

    Printed, it is a sentence without full stop.

    Attributes:
        images: how many there are.
        recognized: how many of them are closest to their own prompts.
        recognized_before: how many were at the baseline.
        severity: how far Cohen's kappa of their own and their closest prompts fell, beyond its standard error, in
            units of what the rule tolerates; above 1 is an alarm.
    """

    images: int
    recognized: int
    recognized_before: int
    severity: float

    def __str__(self) -> str:
        closest = "is closest to its own prompt" if self.recognized == 1 else "are closest to their own prompts"
        return f"{self.recognized} of {self.images} images {closest} ({self.recognized_before} at the baseline)"


def weigh_collapse(probes: Sequence[ProbeDrift], rule: DriftRule) -> Collapse | None:
    """Weigh whether the model has lost the ability to distinguish the prompts of the probes.

    Args:
        probes: of an evaluation.
        rule: how much is tolerated.

    Returns:
        ``None`` if the model did not distinguish the prompts at the baseline, or if there are so few images that its
        answers may have been right by chance.
    """
    compared = [probe for probe in probes if probe.closest_prompt and probe.closest_prompt_before]
    own = [probe.prompt for probe in compared]
    now, before = [probe.closest_prompt for probe in compared], [probe.closest_prompt_before for probe in compared]
    kappa_before, chance = _cohens_kappa(own, before)
    if kappa_before < max(MIN_RECOGNITION, ERRORS * _standard_error(chance, chance, len(own))):
        return None
    kappa, chance = _cohens_kappa(own, now)
    # If all images are closest to one prompt, kappa is 0 whatever the images are.
    error = _standard_error(_share_equal(own, now), chance, len(own)) if len(set(now)) > 1 else 0.0
    return Collapse(
        images=len(compared),
        recognized=_count_equal(own, now),
        recognized_before=_count_equal(own, before),
        severity=rule.rate_recognition(kappa + error, kappa_before),
    )


def _cohens_kappa(own: Sequence[str], closest: Sequence[str]) -> tuple[float, float]:
    """Compute Cohen's kappa of the own and the closest prompts, and the share that is equal by chance.

    Cohen, "A coefficient of agreement for nominal scales", 1960.
    """
    answers = Counter(closest)
    chance = sum(each * answers[prompt] for prompt, each in Counter(own).items()) / max(1, len(own)) ** 2
    return (_share_equal(own, closest) - chance) / max(1 - chance, TINY), chance


def _standard_error(share: float, chance: float, count: int) -> float:
    """Compute the standard error of Cohen's kappa, if a share of ``count`` pairs is equal, by Cohen 1960."""
    return math.sqrt(share * (1 - share) / max(1, count)) / max(1 - chance, TINY)


def _share_equal(own: Sequence[str], closest: Sequence[str]) -> float:
    return _count_equal(own, closest) / max(1, len(own))


def _count_equal(own: Sequence[str], closest: Sequence[str]) -> int:
    return sum(map(str.__eq__, own, closest))
