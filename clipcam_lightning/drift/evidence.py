"""What speaks for a shortcut in the background, of one prompt or of all."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from clipcam_lightning.drift.probe_drift import ProbeDrift
from clipcam_lightning.drift.rule import DriftRule

SUSPICION = 0.5  # severity of a background's gain above which other objects are put on it
MIN_TRANSPLANTS = 24  # of which a pull is needed for an alarm: fewer prove nothing
MIN_PULL = 0.5  # severity of the pull below which so many other objects speak against a shortcut


@dataclass(frozen=True)
class Evidence:
    """What images without their objects, and with other objects instead, show about a background.

    Printed, it is a sentence without full stop.

    Attributes:
        prompt: of the images; empty if all are meant.
        gain_severity: how far their background scores rose, in units of what the rule tolerates.
        images: how many there are.
        named: how many are closest to their own prompt without their object.
        named_before: the same at the baseline.
        transplants: how many other objects were put on the grounds of these images; 0 without suspicion.
        followed: how many of these are closest to the prompt of their ground.
        followed_before: the same at the baseline.
        pull: by how much the share of those that follow their ground rose, beyond the same rise on other grounds.
        pull_severity: the same in units of what the rule tolerates.
    """

    prompt: str
    gain_severity: float
    images: int
    named: int
    named_before: int
    transplants: int
    followed: int
    followed_before: int
    pull: float
    pull_severity: float

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
        return self.gain_severity > SUSPICION

    @property
    def shown(self) -> bool:
        """Whether it is shown that the background makes the model choose the prompt, rather than suspected."""
        return self.suspicious and self.pull_severity > 1

    def __str__(self) -> str:
        own = repr(self.prompt) if self.prompt else "their own prompts"
        if self.shown:
            what = (
                f"other objects on the background of {own} are now called {own}"
                if self.prompt
                else "other objects are now called after the background they are put on"
            )
            return f"{self.followed} of {self.transplants} {what} ({self.followed_before} at the baseline)"
        which = f"{self.named} of {self.images} images are" if self.images > 1 else "the image is"
        return f"without the object, {which} still closest to {own} ({self.named_before} at the baseline)"


def weigh_evidence(probes: Sequence[ProbeDrift], rule: DriftRule) -> Evidence | None:
    """Find the background that most looks like a shortcut: of one prompt, or of all.

    Args:
        probes: whose background is known.
        rule: how much is tolerated.

    Returns:
        The most severe evidence; ``None`` if no background names more images than at the baseline.
    """
    by_prompt: dict[str, list[ProbeDrift]] = defaultdict(list)
    for probe in probes:
        by_prompt[probe.prompt].append(probe)
    groups = [("", list(probes)), *by_prompt.items()] if probes else []
    weighed = [_weigh(prompt, group, len(probes), rule) for prompt, group in groups]
    return max((each for each in weighed if each), key=lambda each: (each.severity, each.prompt), default=None)


def _weigh(prompt: str, probes: Sequence[ProbeDrift], total: int, rule: DriftRule) -> Evidence | None:
    named, named_before = (
        sum(values) for values in zip(*((each.named_without_object, each.named_before) for each in probes), strict=True)
    )
    if named <= named_before:
        return None
    gains = [probe.background_gain for probe in probes]
    moved = [probe for probe in probes if probe.transplants.count and probe.transplants_before.count]
    pull = fmean([probe.transplants.pull - probe.transplants_before.pull for probe in moved] or [0.0])
    transplants = sum(probe.transplants.count for probe in moved)
    return Evidence(
        prompt=prompt,
        gain_severity=rule.rate_background(gains, total) if prompt else rule.rate_whole_background(gains),
        images=len(probes),
        named=round(named),
        named_before=round(named_before),
        transplants=transplants,
        followed=sum(probe.transplants.named for probe in moved),
        followed_before=sum(probe.transplants_before.named for probe in moved),
        pull=pull,
        pull_severity=rule.rate_pull(pull, transplants, everywhere=not prompt),
    )
