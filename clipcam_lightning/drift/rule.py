"""The rule that flags probes and raises alarms."""

import math
from dataclasses import dataclass
from numbers import Real

from clipcam_lightning.errors import ConfigError

# What the default rule tolerates. Chosen on runs of benchmarks/drift_detection.py with other seeds than it reports.
MAX_SHARED_GAIN = 0.07  # of a map's mass
MAX_ENERGY_LOSS, MAX_CONCENTRATION = 0.2, 0.18  # of the energy on the object; of a map's mass
MAX_DRIFT = 0.8
ALARM_SHARE = 1 / 2  # of the probes
MIN_ENERGY = 0.05  # on the object at the baseline; below it, attention was not there and cannot leave
TINY = 1e-9


@dataclass(frozen=True)
class DriftRule:
    """When a probe is flagged, and when an evaluation is an alarm.

    By default a probe is flagged if its map drifted beyond its noise floor and meets one of these conditions:

    - Shared gain: more than 7 % of its mass is new where the maps of the other images gained most, as happens when a
      model learns a watermark.
    - Energy: it lost more than 20 % of its energy on the object, and more than 18 % of its mass is new in one spot.
      This needs a probe with a mask.
    - Drift: its drift is above 0.8.

    Energy gained on the object never counts against a map: it is subtracted from the shared gain, and 7 % or more of it
    excuses any drift. A map that became degenerate is flagged; a map without valid baseline is not.

    An evaluation is an alarm if at least half of the probes are flagged: a shortcut affects most images.

    Attributes:
        max_drift: flag every probe whose drift is above this limit, 0 to 2, instead of applying the conditions above.
            One flagged probe is an alarm then.

    Raises:
        ConfigError: ``max_drift`` lies outside 0 to 2.

    Example:
        >>> from clipcam_lightning import DriftRule
        >>> print(DriftRule(max_drift=0.5))
        for at least one probe, the map drifted by more than 0.5; or became degenerate
    """

    max_drift: float | None = None

    def __post_init__(self) -> None:
        if self.max_drift is not None and not (isinstance(self.max_drift, Real) and 0 <= self.max_drift <= 2):
            raise ConfigError(
                f"max_drift must lie in 0 (nothing may change) to 2 (inverted maps are fine), or be None "
                f"(got {self.max_drift!r})."
            )

    @property
    def quorum(self) -> str:
        """How many flagged probes make an alarm, in words."""
        return "at least half of the probes" if self.max_drift is None else "at least one probe"

    @property
    def conditions(self) -> tuple[str, ...]:
        """What flags the map of a probe, in words; any one of the conditions suffices."""
        if self.max_drift is not None:
            return f"drifted by more than {self.max_drift:g}", "became degenerate"
        return (
            f"drifted beyond its noise floor and gained over {_percent(MAX_SHARED_GAIN)} of its mass where the other "
            "images' maps gained most",
            f"drifted beyond its noise floor, lost over {_percent(MAX_ENERGY_LOSS)} of its energy on the object and "
            f"gained over {_percent(MAX_CONCENTRATION)} of its mass in one spot",
            f"drifted beyond its noise floor and by more than {MAX_DRIFT:g}",
            "became degenerate",
        )

    def __str__(self) -> str:
        return f"for {self.quorum}, the map {'; or '.join(self.conditions)}"

    def judge(
        self,
        *,
        drift: float,
        noise_ratio: float,
        shared_gain: float,
        concentration: float,
        energy: float,
        energy_change: float,
    ) -> tuple[float, str]:
        """Rate how far a valid map is from its baseline.

        Args:
            drift, shared_gain, concentration: as in :class:`~clipcam_lightning.drift.compare.ProbeDrift`.
            noise_ratio: drift in units of the probe's noise floor; NaN if it was not measured.
            energy, energy_change: energy on the object now, and its change since the baseline; NaN without mask.

        Returns:
            The severity in units of what the rule tolerates, above 1 for a flagged probe, and the condition that
            contributes most, in words.
        """
        if self.max_drift is not None:
            return drift / max(self.max_drift, TINY), f"its map drifted by more than {self.max_drift:g}"
        onto_object = max(0.0, _zero_if_nan(energy_change))
        ratios = {
            "attention concentrates where it does in the other images": (
                (_zero_if_nan(shared_gain) - onto_object) / MAX_SHARED_GAIN
            ),
            "its map hardly resembles the baseline": 0.0 if onto_object >= MAX_SHARED_GAIN else drift / MAX_DRIFT,
        }
        before = energy - energy_change
        if before > MIN_ENERGY:
            lost = -energy_change / before
            ratios["attention left the object"] = min(lost / MAX_ENERGY_LOSS, concentration / MAX_CONCENTRATION)
        reason = max(ratios, key=ratios.__getitem__)
        return max(0.0, min(ratios[reason], math.inf if math.isnan(noise_ratio) else noise_ratio)), reason

    def count_required(self, probes: int) -> int:
        """How many of ``probes`` probes must be flagged to make the evaluation an alarm."""
        return 1 if self.max_drift is not None else max(1, math.ceil(ALARM_SHARE * probes))


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _zero_if_nan(value: float) -> float:
    return 0.0 if math.isnan(value) else value
