"""The rule that flags probes and raises alarms."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real

from clipcam_lightning.errors import ConfigError

# What the maps may do where the background is not known. Chosen on stamps in the shapes world, and on other seeds than
# were reported.
MAX_SHARED_GAIN = 0.07  # of a map's mass
MAX_ENERGY_LOSS, MAX_CONCENTRATION = 0.2, 0.18  # of the energy on the object; of a map's mass
MAX_DRIFT = 0.8
ALARM_SHARE = 1 / 2  # of the probes
MIN_ENERGY = 0.05  # on the object at the baseline; below it, attention was not there and cannot leave
TINY = 1e-9

# Limits of the background's gain at the default false alarm rate, in standard deviations: of the worst prompt, of all
# probes together and of the three that stand out, for many probes; and what few probes add to them, over the square of
# their number. All limits grow with a smaller rate. Chosen on the runs of benchmarks/limit_choice.py.
PROMPT_LIMIT, PROMPT_FEW = 3.6, 160.0
SET_LIMIT, SET_FEW = 2.7, 130.0
GAIN_LIMIT, GAIN_FEW, GAIN_PROBES = 3.0, 160.0, 256  # of more probes than these, the largest gains are larger
PULLED_LIMIT, PULLED_FEW = 1.3, 80.0  # of the three that pull most, each times the share that follows
DEFAULT_RATE, MAX_RATE, RATE_EXPONENT, GAIN_EXPONENT = 0.01, 0.2, 0.3, 0.1
MAX_BACKGROUND_GAIN = 1.5  # of a probe, in standard deviations
PROMPT_PULL, WHOLE_PULL, PULL_FEW = 0.2, 0.1, 2.0
MIN_RECOGNITION = 0.2  # Cohen's kappa of images and closest prompts, of a model that distinguishes the prompts
KEPT_RECOGNITION = 0.2  # of that of the baseline; below it the model has collapsed
MIN_DRIFT = 0.1  # of a flagged probe: below it nobody would see a difference between the maps


@dataclass(frozen=True)
class DriftRule:
    """When a probe is flagged, and when an evaluation is an alarm.

    The main question is causal: does the *background* predict the prompt? It is asked in two steps.

    Step 1 removes the object of each probe. What counts is the gain: by how much the score of what remains
    (``background_score`` of :class:`Snapshot`, where negative ones count as 0) rose since the baseline. Three groups
    are tested; ``n`` is the number of all probes, ``m`` that of the probes of a prompt:

    | Gains of | Statistic | Tolerated |
    |---|---|---|
    | the probes of a prompt | sum over ``sqrt(m)`` | ``3.6 + 160 / n ** 2`` |
    | all probes | sum over ``sqrt(n)`` | ``2.7 + 130 / n ** 2`` |
    | the probes that stand out | mean of the three largest | ``3.0 + 160 / n ** 2`` |

    In the first two groups at least one image without its object must be closest to its own prompt, and no fewer than
    at the baseline. The third has only such images.

    Step 2 begins at 70 % of what step 1 tolerates (75 % for those that stand out). It pastes ``k`` objects of other
    probes on the same backgrounds. What counts is the pull: by how much the share of them that gets the prompt of the
    background rose since the baseline, beyond the rise on other backgrounds:

    | Backgrounds of | Statistic | Tolerated |
    |---|---|---|
    | the probes of a prompt | mean pull | ``0.2 + 2 / k`` |
    | all probes | mean pull | ``0.1 + 2 / k`` |
    | the probes that stand out | mean of the three largest products of gain and pull | ``1.3 + 80 / n ** 2`` |

    Beyond these it is *shown* that the background makes the model choose the prompt. With six objects or more, a pull
    of less than half of what is tolerated withdraws the suspicion in proportion.

    Either step can raise the alarm. These limits aim at a false alarm rate of 1 %; other rates scale them by
    ``(0.01 / rate) ** 0.3``, and the third of step 1 by ``(0.01 / rate) ** 0.1``. Beyond 256 probes, the limits of the
    probes that stand out grow by ``sqrt(log(n) / log(256))``.

    A probe is flagged if its own gain is above 1.5, its image without the object is closest to its own prompt, and its
    map moved visibly: beyond its noise floor and by a drift of at least 0.1.

    An evaluation is also an alarm if the model collapsed, or if at least half of the maps became degenerate. It
    collapsed if it recognizes the images less than 20 % as well as at the baseline: in Cohen's kappa of their own
    prompts and those that they are closest to, leaving out other prompts for the same image, and beyond its standard
    error. At the baseline, the kappa must be at least 0.2 and three standard errors of random answers.

    Where the background is not known, since fewer than three other images have another prompt, it is an alarm if at
    least half of the maps are flagged for one of these reasons:

    - Drift: above 0.8. The map hardly resembles the baseline.
    - Shared gain: more than 7 % of its mass is new where the maps of the other images gained most, as happens when a
      model learns a watermark.
    - Energy: it lost more than 20 % of its energy on the object, and more than 18 % of its mass is new in one spot.
      This needs a probe with a mask.

    In all three the map must have drifted beyond its noise floor. Energy gained on the object never counts against a
    map: it is subtracted from the shared gain, and 7 % or more of it excuses any drift. A map without valid baseline is
    not flagged.

    Attributes:
        max_drift: flag every probe whose drift is above this limit, 0 to 2, instead of applying the conditions above.
            One flagged probe is an alarm then.
        false_alarm_rate: share of the evaluations of a harmless training, above 0 and at most 0.2, in which the
            background is meant to raise a false alarm. It does not change the other conditions, and is not used with
            ``max_drift``.

    Raises:
        ConfigError: an attribute lies outside its range.

    Example:
        >>> from clipcam_lightning import DriftRule
        >>> print(DriftRule(max_drift=0.5))
        the map of at least one probe drifted by more than 0.5; or the map of at least one probe became degenerate
    """

    max_drift: float | None = None
    false_alarm_rate: float = DEFAULT_RATE

    def __post_init__(self) -> None:
        if self.max_drift is not None and not (isinstance(self.max_drift, Real) and 0 <= self.max_drift <= 2):
            raise ConfigError(
                f"max_drift must lie in 0 (nothing may change) to 2 (inverted maps are fine), or be None "
                f"(got {self.max_drift!r})."
            )
        if not (isinstance(self.false_alarm_rate, Real) and 0 < self.false_alarm_rate <= MAX_RATE):
            raise ConfigError(
                f"false_alarm_rate must be above 0 and at most {MAX_RATE:g}, the share of harmless evaluations that "
                f"may raise an alarm (got {self.false_alarm_rate!r})."
            )

    @property
    def conditions(self) -> tuple[str, ...]:
        """What is an alarm, as clauses; any one of them suffices."""
        if self.max_drift is not None:
            return (
                f"the map of at least one probe drifted by more than {self.max_drift:g}",
                "the map of at least one probe became degenerate",
            )
        return (
            "with the objects removed, the images of one prompt, all images, or the three that stand out most are "
            "closer to their own prompts than at the baseline, by more than chance explains (a false alarm in "
            f"{100 * self.false_alarm_rate:g} % of the evaluations is meant to be tolerated), unless six or more "
            "objects of other probes on the same backgrounds speak against it",
            "objects of other probes, pasted on the backgrounds of a prompt, on all, or on those that stand out, get "
            "the prompt of the background more often than before",
            f"the model recognizes the images, beyond chance, less than {_percent(KEPT_RECOGNITION)} as well as at the "
            "baseline, by more than the error of so few images",
            "at least half of the maps became degenerate",
            "the background could not be tested, and at least half of the maps moved beyond their noise floor in one "
            f"of these ways: they drifted by more than {MAX_DRIFT:g}, over {_percent(MAX_SHARED_GAIN)} of their mass "
            f"is new where the other images' maps gained most, or over {_percent(MAX_ENERGY_LOSS)} of their energy "
            f"left the object while over {_percent(MAX_CONCENTRATION)} of their mass is new in one spot",
        )

    def __str__(self) -> str:
        return "; or ".join(self.conditions)

    def judge(
        self,
        *,
        drift: float,
        noise_ratio: float,
        shared_gain: float,
        concentration: float,
        energy: float,
        energy_change: float,
        background_gain: float = math.nan,
        named_without_object: float = math.nan,
    ) -> tuple[float, str]:
        """Rate how far a valid map is from its baseline.

        Args:
            drift, shared_gain, concentration: as in :class:`~clipcam_lightning.drift.probe_drift.ProbeDrift`.
            noise_ratio: drift in units of the probe's noise floor; NaN if it was not measured.
            energy, energy_change: energy on the object now, and its change since the baseline; NaN without mask.
            background_gain, named_without_object: as in :class:`~clipcam_lightning.drift.probe_drift.ProbeDrift`; NaN
                if the background is not known.

        Returns:
            The severity in units of what the rule tolerates, above 1 for a flagged probe, and the condition that
            contributes most, in words.
        """
        if self.max_drift is not None:
            return drift / max(self.max_drift, TINY), f"its map drifted by more than {self.max_drift:g}"
        onto_object = max(0.0, _zero_if_nan(energy_change))
        ratios = {}
        before = energy - energy_change
        if not math.isnan(background_gain):
            gain = background_gain / MAX_BACKGROUND_GAIN if named_without_object else 0.0
            ratios["its background predicts the prompt"] = min(gain, drift / MIN_DRIFT)
        else:
            ratios["its map hardly resembles the baseline"] = (
                0.0 if onto_object >= MAX_SHARED_GAIN else drift / MAX_DRIFT
            )
            ratios["attention concentrates where it does in the other images"] = (
                _zero_if_nan(shared_gain) - onto_object
            ) / MAX_SHARED_GAIN
            if before > MIN_ENERGY:
                lost = -energy_change / before
                ratios["attention left the object"] = min(lost / MAX_ENERGY_LOSS, concentration / MAX_CONCENTRATION)
        reason = max(ratios, key=ratios.__getitem__)
        return max(0.0, min(ratios[reason], math.inf if math.isnan(noise_ratio) else noise_ratio)), reason

    def rate_background(self, gains: Sequence[float], total: int) -> float:
        """Rate the gains of the background over the probes of one prompt.

        Args:
            gains: of these probes, in standard deviations.
            total: number of all probes whose background is known.

        Returns:
            The severity; above 1 is an alarm.
        """
        return sum(gains) / math.sqrt(len(gains)) / (self._rate_factor() * (PROMPT_LIMIT + PROMPT_FEW / total**2))

    def rate_whole_background(self, gains: Sequence[float]) -> float:
        """Rate the gains of the background over all probes; above 1 is an alarm."""
        total = len(gains)
        return sum(gains) / math.sqrt(total) / (self._rate_factor() * (SET_LIMIT + SET_FEW / total**2))

    def rate_gain(self, gain: float, total: int) -> float:
        """Rate the gain of the background of a probe, or the mean of the three that stand out most.

        Args:
            gain: in standard deviations.
            total: number of all probes whose background is known.

        Returns:
            The severity; above 1 for the mean of the three is an alarm.
        """
        # The largest of many gains differ little between evaluations: their limit depends less on the rate.
        return gain / (self._rate_factor(GAIN_EXPONENT) * (_growth(total) * GAIN_LIMIT + GAIN_FEW / total**2))

    def rate_pulled_gain(self, gain: float, total: int) -> float:
        """Rate the mean gain of the three backgrounds that pull most, each times its pull.

        Args:
            gain: in standard deviations.
            total: number of all probes whose background is known.

        Returns:
            The severity; above 1 the backgrounds are shown to matter.
        """
        return gain / (self._rate_factor() * (_growth(total) * PULLED_LIMIT + PULLED_FEW / total**2))

    def rate_pull(self, pull: float, transplants: int, *, everywhere: bool) -> float:
        """Rate by how much more often other objects get the prompt of their background.

        Args:
            pull: rise of the share that does, beyond the rise on other backgrounds, -1 to 1.
            transplants: how many images the share is of.
            everywhere: whether it is averaged over all prompts.

        Returns:
            The severity; above 1 the background is shown to matter.
        """
        tolerated = (WHOLE_PULL if everywhere else PROMPT_PULL) + PULL_FEW / max(1, transplants)
        return max(0.0, pull) / (self._rate_factor() * tolerated)

    def rate_recognition(self, now: float, before: float) -> float:
        """Rate by how much Cohen's kappa of the images' own and closest prompts fell, above 1 if too far.

        Args:
            now: the kappa and its standard error, -1 to 1: 1 if all images are recognized, 0 if as many as by chance.
            before: the kappa at the baseline, above 0.
        """
        return max(0.0, (1 - now / before) / (1 - KEPT_RECOGNITION))

    def _rate_factor(self, exponent: float = RATE_EXPONENT) -> float:
        return float((DEFAULT_RATE / self.false_alarm_rate) ** exponent)

    def count_required(self, probes: int) -> int:
        """How many of ``probes`` probes must be flagged to make the evaluation an alarm."""
        return 1 if self.max_drift is not None else max(1, math.ceil(ALARM_SHARE * probes))


def _growth(total: int) -> float:
    """How much larger the largest of many gains are, as those of normal values, in units of those of 256."""
    return max(1.0, math.sqrt(math.log(total) / math.log(GAIN_PROBES)))


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _zero_if_nan(value: float) -> float:
    return 0.0 if math.isnan(value) else value
