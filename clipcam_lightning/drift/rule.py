"""The rule that raises an alarm."""

import math
from dataclasses import dataclass

from clipcam_lightning.errors import ConfigError

# The default rule, chosen on runs of benchmarks/drift_detection.py of other seeds than it reports.
COMMON = 0.07  # of a map's mass, newly at a place common to the pictures
LOST, PEAK = 0.2, 0.18  # of the energy on the object, gone, and of the mass, newly in one spot
MOVED = 0.8  # drift
SHARE = 1 / 2  # of the probes
LEAST_ENERGY = 0.05  # on the object; with less at the baseline, attention was not there and cannot leave
TINY = 1e-9


@dataclass(frozen=True)
class DriftRule:
    """When a probe's map has moved too far, and when the look as a whole is an alarm.

    By default a probe breaks the rule if its map moved further than its own noise moves it, and

    - gathers where the other pictures' maps gather too, as they do on a watermark; or
    - lost energy on the object, where it is known where that is, while it gathers in one spot; or
    - hardly resembles what it was.

    Where the object is known, a map may move onto it as it likes. A map that became degenerate breaks the rule, one
    that never said anything does not. The look is an alarm if half of the probes break the rule: what a shortcut does
    to a model it does to most pictures.

    Attributes:
        max_drift: largest tolerated drift, 0 to 2, in place of all that: one probe beyond it is an alarm.
    """

    max_drift: float | None = None

    def __post_init__(self) -> None:
        if self.max_drift is not None and not 0 <= self.max_drift <= 2:
            raise ConfigError(
                f"max_drift must lie in 0 (nothing may change) to 2 (inverted maps are fine), or be None "
                f"(got {self.max_drift})."
            )

    def __str__(self) -> str:
        if self.max_drift is not None:
            return f"one probe whose drift is above {self.max_drift:g}, or whose map vanished"
        return (
            f"half of the probes whose map moved beyond its own noise and gathers {COMMON:.0%} of its mass at a place "
            f"common to the pictures, or left the object ({LOST:.0%} of the energy lost, {PEAK:.0%} of the mass in one "
            f"spot), or drifted above {MOVED:g}; or whose map vanished"
        )

    def judged(
        self,
        *,
        drift: float,
        noise_ratio: float,
        shared_gain: float,
        concentration: float,
        energy: float,
        energy_change: float,
    ) -> tuple[float, str]:
        """How far a probe is off, in units of what is tolerated, and in what way.

        Args:
            drift, common_gain, peak_gain: of a sound map, as in :class:`~clipcam_lightning.drift.compare.ProbeDrift`.
            noise_ratio: drift in units of the probe's noise floor; NaN where none was measured.
            energy, energy_change: on the object, now and since the baseline; NaN without mask.
        """
        if self.max_drift is not None:
            return drift / max(self.max_drift, TINY), f"its map moved further than {self.max_drift:g}"
        onto_object = max(0.0, _known(energy_change))
        ways = {
            "attention gathers where it does in the other pictures": (_known(shared_gain) - onto_object) / COMMON,
            "its map hardly resembles what it was": 0.0 if onto_object >= COMMON else drift / MOVED,
        }
        before = energy - energy_change
        if before > LEAST_ENERGY:
            ways["attention left the object"] = min(-energy_change / before / LOST, concentration / PEAK)
        way = max(ways, key=ways.__getitem__)
        return max(0.0, min(ways[way], math.inf if math.isnan(noise_ratio) else noise_ratio)), way

    def breaking(self, count: int) -> int:
        """How many of ``count`` probes must break the rule to make the look an alarm."""
        return 1 if self.max_drift is not None else max(1, math.ceil(SHARE * count))


def _known(figure: float) -> float:
    return 0.0 if math.isnan(figure) else figure
