"""The result of a comparison with the baseline: which probes are flagged, and whether it is an alarm."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import TYPE_CHECKING

from clipcam_lightning.cam.display.shown import display, in_notebook
from clipcam_lightning.drift.collapse import Collapse, weigh_collapse
from clipcam_lightning.drift.evidence import Evidence, weigh_evidence
from clipcam_lightning.drift.probe_drift import ProbeDrift, format_drift
from clipcam_lightning.drift.report_display import plot_report, report_html
from clipcam_lightning.drift.rule import DriftRule

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_NAMED = 3  # flagged probes in the message of an alarm


@dataclass(frozen=True)
class DriftReport:
    """All probes of one evaluation, compared with the baseline by :func:`compare`.

    Printed, it is the message of the alarm, or one line that says that there is none. In Jupyter it shows itself: the
    message and a table of the probes, flagged ones first.

    Attributes:
        probes: in the order of the probe set.
        rule: what flags probes and makes an alarm.
        step: of the evaluation.
        baseline_step: of the baseline.

    Example:
        >>> from clipcam_lightning import evaluate
        >>> from clipcam_lightning.shapes_world import WordTokenizer, draw_scenes, trained_clip
        >>> scenes = draw_scenes(2)
        >>> probes = list(zip(scenes.images, scenes.captions))
        >>> evaluation = evaluate(trained_clip("vit"), probes, tokenizer=WordTokenizer())
        >>> print(evaluation.report)
        no alarm at step 0; mean drift 0.00
    """

    probes: tuple[ProbeDrift, ...]
    rule: DriftRule
    step: int
    baseline_step: int

    @property
    def drift(self) -> float:
        """Mean over all probes; always finite. A degenerate map, or one without valid baseline, counts as 1."""
        return fmean(probe.drift for probe in self.probes)

    @property
    def worst(self) -> ProbeDrift:
        """The probe with the largest drift; of equal ones, one whose drift is measured rather than unknown."""
        return max(self.probes, key=lambda probe: (probe.drift, probe.has_valid_baseline))

    @property
    def flagged_first(self) -> list[int]:
        """Indices of the probes in the order in which they are shown: flagged first, unknown last, then by drift."""

        def rank(i: int) -> tuple[bool, bool, float]:
            return not self.probes[i].flagged, not self.probes[i].has_valid_baseline, -self.probes[i].drift

        return sorted(range(len(self.probes)), key=rank)

    @property
    def flagged(self) -> list[ProbeDrift]:
        """The probes that violate the rule, in the order of :attr:`flagged_first`."""
        return [self.probes[i] for i in self.flagged_first if self.probes[i].flagged]

    @cached_property
    def severity(self) -> float:
        """How far the evaluation is off in units of what the rule tolerates; above 1 is an alarm.

        The largest of the severity of the background, that of a collapse, and the k-th largest of the maps, where k
        flagged maps make an alarm.
        """
        ordered = sorted(map(self._rate_map, self._measured), reverse=True)
        of_maps = ordered[self.rule.count_required(len(ordered)) - 1]
        return max([of_maps, *(each.severity for each in (self.collapse, self.evidence) if each is not None)])

    def _rate_map(self, probe: ProbeDrift) -> float:
        """Get the severity of a map; what its background does is rated over many probes instead."""
        is_of_background = self.rule.max_drift is None and not math.isnan(probe.background_gain)
        return 0.0 if is_of_background and not math.isinf(probe.severity) else probe.severity

    @property
    def evidence(self) -> Evidence | None:
        """What speaks most for a shortcut in the background; ``None`` if nothing does."""
        return next(iter(self._weighed), None)

    @cached_property
    def _weighed(self) -> list[Evidence]:
        return [] if self.rule.max_drift is not None else weigh_evidence(self._with_known_background, self.rule)

    @cached_property
    def collapse(self) -> Collapse | None:
        """How much worse the model distinguishes the prompts; ``None`` if that is unknown."""
        return None if self.rule.max_drift is not None else weigh_collapse(self.probes, self.rule)

    @property
    def _has_collapsed(self) -> bool:
        return self.collapse is not None and self.collapse.severity > 1

    @property
    def suspicious(self) -> bool:
        """Whether a closer look is worth it: other objects on the backgrounds, and covered places."""
        return any(each.suspicious for each in self._weighed)

    @cached_property
    def _with_known_background(self) -> list[ProbeDrift]:
        return [probe for probe in self.probes if not math.isnan(probe.background_gain)]

    @property
    def alarm(self) -> bool:
        """Whether the evaluation is an alarm: :attr:`severity` is above 1."""
        return self.severity > 1

    @property
    def _measured(self) -> Sequence[ProbeDrift]:
        """The probes with a valid baseline, or all probes if there are none."""
        return [probe for probe in self.probes if probe.has_valid_baseline] or self.probes

    @property
    def _decisive_evidence(self) -> Evidence | None:
        """The evidence that the alarm rests on; ``None`` if it rests on something else."""
        evidence = None if self._has_collapsed else self.evidence
        return evidence if evidence is not None and evidence.severity > 1 else None

    @property
    def finding(self) -> str:
        """What is wrong, in a few words without full stop; empty if there is no alarm."""
        if not self.alarm:
            return ""
        if self._has_collapsed:
            return "the model hardly distinguishes the prompts of the probes"
        if (evidence := self._decisive_evidence) is not None:
            return f"the background {'predicts' if evidence.shown else 'may predict'} the prompt"
        return f"attention drifted on {len(self.flagged)} of {len(self._measured)} probes"

    @property
    def subject(self) -> tuple[str, str, bool] | None:
        """What an alarm is about: the finding, the prompt, and whether few images of many."""
        if not self.alarm:
            return None
        evidence = self._decisive_evidence
        return (self.finding, evidence.prompt, bool(evidence.outstanding)) if evidence else (self.finding, "", False)

    @property
    def grounds(self) -> str:
        """What the finding rests on, in a few words without full stop; empty if on the flagged maps alone."""
        if self._has_collapsed:
            return str(self.collapse)
        return str(self._decisive_evidence or "")

    def __str__(self) -> str:
        flagged, count = self.flagged, len(self._measured)
        if not self.alarm:
            verb = "is" if len(flagged) == 1 else "are"
            some = f"; {len(flagged)} of {count} probes {verb} flagged" if flagged else ""
            return f"no alarm at step {self.step}; mean drift {format_drift(self.drift)}{some}"
        grounds = self.grounds
        details = f"{grounds}{_name_flagged(flagged)}" if grounds else _describe_flagged(flagged)
        return f"{self.finding} at step {self.step} (baseline: step {self.baseline_step}): {details}"

    def show(self) -> None:
        """Show the table in the notebook; elsewhere print the message."""
        if in_notebook():
            display(self)
        else:
            print(self)

    def plot(self) -> "Figure":
        """Plot the drift of each probe with matplotlib, flagged ones first and red.

        Returns:
            A matplotlib Figure that pyplot does not manage: the result of a cell, or written with ``savefig``.

        Raises:
            ConfigError: matplotlib is not installed; it comes with ``pip install 'clipcam-lightning[notebook]'``.
        """
        return plot_report(self)

    def _repr_html_(self) -> str:
        return report_html(self)


def _describe_flagged(flagged: Sequence[ProbeDrift]) -> str:
    """Say of the first flagged probes why each is flagged."""
    more = f"; and {len(flagged) - MAX_NAMED} more" if len(flagged) > MAX_NAMED else ""
    return "; ".join(f"{probe.name}: {probe.reason} ({_list_values(probe)})" for probe in flagged[:MAX_NAMED]) + more


def _name_flagged(flagged: Sequence[ProbeDrift]) -> str:
    """Name the first flagged probes, and say how far the map of the first moved."""
    if not flagged:
        return ""
    names = ", ".join(
        [f"{flagged[0].name} ({_list_values(flagged[0])})", *(each.name for each in flagged[1:MAX_NAMED])]
    )
    more = f" and {len(flagged) - MAX_NAMED} more" if len(flagged) > MAX_NAMED else ""
    return f". Flagged: {names}{more}"


def _list_values(probe: ProbeDrift) -> str:
    values = [f"drift {format_drift(probe.drift)}"]
    if probe.shared_gain > 0 and math.isnan(probe.background_gain):
        values.append(f"shared gain {100 * probe.shared_gain:.0f} %")
    if math.isfinite(probe.energy_inside_mask) and math.isfinite(probe.energy_change):
        before = probe.energy_inside_mask - probe.energy_change
        values.append(f"energy on the object {before:.2f} -> {probe.energy_inside_mask:.2f}")
    return ", ".join(values)
