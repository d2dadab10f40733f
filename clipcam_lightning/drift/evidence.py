"""What speaks for a shortcut in the background: of one prompt, of all, or of the few images that stand out."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from clipcam_lightning.drift.probe_drift import ProbeDrift, format_loss
from clipcam_lightning.drift.rule import DriftRule

SUSPICION = 0.7  # severity of a background's gain above which more is tried: other objects on it, covered places
OUTSTANDING_SUSPICION = 0.75  # the same of the probes that stand out, of which there are always some
MIN_TRANSPLANTS = 6  # of which a pull is needed to withdraw a suspicion: fewer prove nothing
MIN_PULL = 0.5  # severity of the pull below which so many other objects speak against a shortcut
OUTSTANDING = 3  # probes whose mean gain is rated, of those that are named without their objects
CANDIDATES = 8  # of these that get more objects on their backgrounds on suspicion
MAX_NAMED = 3  # probes in a sentence
MIN_LOSS, LOSS_RATIO = 0.005, 2.0  # of similarity by covering, and beside that of another place, to be worth a sentence


@dataclass(frozen=True)
class Evidence:
    """What images without their objects, and with other objects instead, show about a background.

    Printed, it is a sentence without full stop.

    Attributes:
        prompt: of the images; empty if they have several.
        outstanding: names of the probes that stand out, the largest gain first, if the evidence is about few of many;
            empty if it is about all images of the prompt, or about all.
        gain_severity: how far their background scores rose, in units of what the rule tolerates; of few, those that
            rose most.
        images: how many there are.
        total: how many probes there are whose background is known.
        named: how many of the images are closest to their own prompt without their object.
        named_before: the same at the baseline.
        transplants: how many other objects were pasted on the backgrounds of these images; 0 without suspicion.
        followed: how many of these are closest to the prompt of their background.
        followed_before: the same at the run's first baseline.
        transplants_before: how many were tried then.
        pull: by how much the share of those that follow their background rose, beyond that on other backgrounds.
        pull_severity: the same in units of what the rule tolerates; of few, that of each times its gain.
        covered: in how many of the images the place was covered that the map turned to outside the object; 0 without
            suspicion.
        covered_loss: what the similarity loses by that on average, -2 to 2; NaN if ``covered`` is 0.
        control_loss: the same with another place.
    """

    prompt: str
    outstanding: tuple[str, ...]
    gain_severity: float
    images: int
    total: int
    named: int
    named_before: int
    transplants: int
    followed: int
    followed_before: int
    transplants_before: int
    pull: float
    pull_severity: float
    covered: int
    covered_loss: float
    control_loss: float

    @property
    def severity(self) -> float:
        """How far the background is off in units of what the rule tolerates; above 1 is an alarm.

        What the images without their objects say is withdrawn as far as enough other objects say the opposite.
        """
        gain = self.gain_severity
        if self.transplants >= MIN_TRANSPLANTS:
            gain = min(gain, self.pull_severity / MIN_PULL)
        return max(gain, self.pull_severity if self.suspicious else 0.0)

    @property
    def suspicious(self) -> bool:
        """Whether the background scores rose enough for a closer look."""
        return self.gain_severity > (OUTSTANDING_SUSPICION if self.outstanding else SUSPICION)

    @property
    def shown(self) -> bool:
        """Whether it is shown that the background makes the model choose the prompt, rather than suspected."""
        return self.suspicious and self.pull_severity > 1

    def is_about(self, probe: ProbeDrift) -> bool:
        """Whether a probe is one of the images."""
        if self.outstanding:
            return probe.name in self.outstanding
        return probe.prompt == self.prompt or not self.prompt

    def __str__(self) -> str:
        if self.shown:
            return self._describe_transplants()
        background = self._describe_gain()
        # What supports a mere suspicion is said here; all values are in the report.
        if not self.covered or self.covered_loss < MIN_LOSS or self.covered_loss < LOSS_RATIO * self.control_loss:
            return background
        maps = f"{self.covered} maps" if self.covered > 1 else "a map"
        return (
            f"{background}; covering what {maps} turned to costs {self.covered_loss:.3f} of similarity, another place "
            f"{format_loss(self.control_loss)}"
        )

    def _describe_transplants(self) -> str:
        own = repr(self.prompt)
        if self.outstanding:
            receive = f"are now called {own}" if self.prompt else "now get their prompts"
            what = f"other objects on the backgrounds of {self._name_outstanding()} {receive}"
        elif self.prompt:
            what = f"other objects on the background of {own} are now called {own}"
        else:
            what = "other objects now get the prompt of the background they are pasted on"
        before = str(self.followed_before)
        if self.transplants != self.transplants_before:
            before = f"{before} of {self.transplants_before}"
        return f"{self.followed} of {self.transplants} {what} ({before} before)"

    def _describe_gain(self) -> str:
        own = repr(self.prompt) if self.prompt else "their own prompts"
        if self.outstanding:
            return (
                f"without the object, {self.images} of {self.total} images are now much closer to {own}: "
                f"{self._name_outstanding()}"
            )
        if self.named > self.named_before:
            which = f"{self.named} of {self.images} images are" if self.images > 1 else "the image is"
            return f"without the object, {which} still closest to {own} ({self.named_before} at the baseline)"
        which = f"{self.images} images are on average" if self.images > 1 else "the image is"
        return f"without the object, {which} closer to {own} than at the baseline"

    def _name_outstanding(self) -> str:
        more = len(self.outstanding) - MAX_NAMED
        return ", ".join(self.outstanding[:MAX_NAMED]) + (f" and {more} more" if more > 0 else "")


def weigh_evidence(probes: Sequence[ProbeDrift], rule: DriftRule) -> list[Evidence]:
    """Weigh what speaks for a shortcut in the background: of each prompt, of all, and of the few that stand out.

    Args:
        probes: whose background is known.
        rule: how much is tolerated.

    Returns:
        The most severe first; without those whose background gained nothing, or names no image, or fewer than at the
        baseline.
    """
    by_prompt: dict[str, list[ProbeDrift]] = defaultdict(list)
    for probe in probes:
        by_prompt[probe.prompt].append(probe)
    total = len(probes)
    weighed = [_weigh(group, rule.rate_background(_gains(group), total), rule, total) for group in by_prompt.values()]
    if probes:
        weighed.append(_weigh(probes, rule.rate_whole_background(_gains(probes)), rule, total, everywhere=True))
    weighed.append(_weigh_outstanding(probes, rule))
    found = [each for each in weighed if each is not None]
    return sorted(found, key=lambda each: (each.severity, each.prompt), reverse=True)


def list_outstanding(probes: Iterable[ProbeDrift]) -> list[ProbeDrift]:
    """List the probes that gained and are named without their objects, at most eight, the largest gain first."""
    return _list_named(probes)[:CANDIDATES]


def _list_named(probes: Iterable[ProbeDrift]) -> list[ProbeDrift]:
    named = [probe for probe in probes if probe.named_without_object > 0 and probe.background_gain > 0]
    return sorted(named, key=lambda probe: probe.background_gain, reverse=True)


def _weigh_outstanding(probes: Sequence[ProbeDrift], rule: DriftRule) -> Evidence | None:
    """Weigh the probes that stand out by their gains, or whose backgrounds pull most, if these do."""
    named, total = _list_named(probes), len(probes)
    if len(named) < OUTSTANDING:
        return None
    gain_severity = rule.rate_gain(fmean(_gains(named[:OUTSTANDING])), total)
    pulling = sorted(named[:CANDIDATES], key=_pulled_gain, reverse=True)
    pull_severity = rule.rate_pulled_gain(fmean(map(_pulled_gain, pulling[:OUTSTANDING])), total)
    if pull_severity > 1:
        beyond = sum(rule.rate_pulled_gain(_pulled_gain(probe), total) > 1 for probe in pulling)
        chosen = pulling[: max(OUTSTANDING, beyond)]
    else:
        beyond = sum(rule.rate_gain(gain, total) > 1 for gain in _gains(named))
        chosen = named[: max(OUTSTANDING, beyond)]
    return _weigh(chosen, gain_severity, rule, total, outstanding_pull=pull_severity)


def _pulled_gain(probe: ProbeDrift) -> float:
    """How far the background score of a probe rose, times the rise of the share that follows its background."""
    return probe.background_gain * max(0.0, _rise_of_pull(probe))


def _rise_of_pull(probe: ProbeDrift) -> float:
    before, now = probe.transplants_before, probe.transplants
    return now.pull - before.pull if now.count and before.count else 0.0


def _gains(probes: Sequence[ProbeDrift]) -> list[float]:
    return [probe.background_gain for probe in probes]


def _weigh(
    probes: Sequence[ProbeDrift],
    gain_severity: float,
    rule: DriftRule,
    total: int,
    *,
    everywhere: bool = False,
    outstanding_pull: float | None = None,
) -> Evidence | None:
    """Weigh some probes: of one prompt, all if ``everywhere``, or those that stand out, whose pull is rated already."""
    named, named_before = (
        sum(values) for values in zip(*((each.named_without_object, each.named_before) for each in probes), strict=True)
    )
    if gain_severity <= 0 or named < max(1, named_before):
        return None
    prompts = {probe.prompt for probe in probes}
    moved = [probe for probe in probes if probe.transplants.count and probe.transplants_before.count]
    pull = fmean(map(_rise_of_pull, moved)) if moved else 0.0
    transplants = sum(probe.transplants.count for probe in moved)
    covered = [probe for probe in probes if math.isfinite(probe.covered_loss)]
    return Evidence(
        prompt="" if everywhere or len(prompts) > 1 else prompts.pop(),
        outstanding=tuple(probe.name for probe in probes) if outstanding_pull is not None else (),
        gain_severity=gain_severity,
        images=len(probes),
        total=total,
        named=round(named),
        named_before=round(named_before),
        transplants=transplants,
        followed=sum(probe.transplants.named for probe in moved),
        followed_before=sum(probe.transplants_before.named for probe in moved),
        transplants_before=sum(probe.transplants_before.count for probe in moved),
        pull=pull,
        pull_severity=(
            rule.rate_pull(pull, transplants, everywhere=everywhere) if outstanding_pull is None else outstanding_pull
        ),
        covered=len(covered),
        covered_loss=fmean([probe.covered_loss for probe in covered] or [math.nan]),
        control_loss=fmean([probe.control_loss for probe in covered] or [math.nan]),
    )
