"""How far maps moved from their baseline, and which of them break the rule."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import torch
from jaxtyping import Int
from torch import Tensor

from clipcam_lightning.drift import metrics
from clipcam_lightning.drift.rule import DriftRule
from clipcam_lightning.drift.snapshot import Snapshot
from clipcam_lightning.errors import IncomparableError

LEAST_NOISE = 0.01  # a noise floor below this is taken for this


@dataclass(frozen=True)
class ProbeDrift:
    """One probe against its baseline.

    Attributes:
        name: of the probe.
        prompt: of the probe.
        drift: 1 - CC of the raw maps: 0 the same, 1 unrelated, 2 inverted. A degenerate map counts as 1.
        top_iou: overlap of the hottest fifth of the cells, 0 to 1; 0 for a degenerate map.
        center_shift: of the centre of mass, as a fraction of the image's diagonal; NaN for a map
            without positive cell.
        common_gain: share of the map's mass that is newly at the place where the other pictures' maps gained most
            (:func:`~clipcam_lightning.drift.metrics.shared_gain`), -1 to 1; NaN if there is no other sound picture.
        peak_gain: share of its mass that is newly in one spot
            (:func:`~clipcam_lightning.drift.metrics.concentration`), 0 to 1.
        similarity: cosine now, -1 to 1.
        similarity_change: now minus baseline.
        js_distance: Jensen-Shannon distance of the maps' mass, 0 to 1; NaN for a map without positive cell.
        noise_ratio: drift in units of the probe's noise floor; NaN where the baseline has none.
        energy_inside_mask: share of the map's mass on the object, 0 to 1; NaN without mask.
        energy_change: now minus baseline; NaN without mask.
        pointing: 1 where the map's hottest pixel is on the object, else 0; NaN without mask.
        degenerate: why the map of now or of the baseline says nothing; empty if both are sound.
        has_valid_baseline: whether the baseline's map is valid; where it is degenerate, drift is unknown.
        severity: how far the map is off in units of what the rule tolerates: above 1 the rule is broken. Infinite
            where a sound map became degenerate, 0 where the baseline says nothing.
        reason: in words, what breaks the rule; empty if nothing does.
    """

    name: str
    prompt: str
    drift: float
    top_iou: float
    center_shift: float
    js_distance: float
    noise_ratio: float
    shared_gain: float
    concentration: float
    similarity: float
    similarity_change: float
    energy_inside_mask: float
    energy_change: float
    pointing: float
    degenerate: str
    has_valid_baseline: bool
    severity: float
    reason: str

    @property
    def flagged(self) -> bool:
        """Whether the rule is broken."""
        return bool(self.reason)


@dataclass(frozen=True)
class DriftReport:
    """All probes of one look against the baseline.

    Attributes:
        probes: in the order of the probe set.
        rule: what made the alarms.
        step: of the later snapshot.
        baseline_step: of the baseline.
    """

    probes: tuple[ProbeDrift, ...]
    rule: DriftRule
    step: int
    baseline_step: int

    @property
    def drift(self) -> float:
        """Mean over the probes whose baseline is sound, over all if none is; always finite."""
        return fmean(probe.drift for probe in self._judged)

    @property
    def worst(self) -> ProbeDrift:
        """Of these probes the one that drifted furthest."""
        return max(self._judged, key=lambda probe: probe.drift)

    @property
    def flagged(self) -> list[ProbeDrift]:
        """Probes that break the rule, the gravest first."""
        return sorted(
            (probe for probe in self.probes if probe.flagged), key=lambda probe: (-probe.severity, -probe.drift)
        )

    @property
    def flagged_first(self) -> list[int]:
        """Indices of the probes: who breaks the rule first, whose drift is unknown last, by drift among equals."""

        def goodness(i: int) -> tuple[bool, bool, float]:
            return not self.probes[i].flagged, not self.probes[i].has_valid_baseline, -self.probes[i].drift

        return sorted(range(len(self.probes)), key=goodness)

    @property
    def severity(self) -> float:
        """Of the look: that of the probe by which enough of them would break the rule; above 1 it is an alarm."""
        ordered = sorted((probe.severity for probe in self._judged), reverse=True)
        return ordered[self.rule.breaking(len(ordered)) - 1]

    @property
    def alarm(self) -> bool:
        """Whether the look as a whole is an alarm."""
        return self.severity > 1

    @property
    def _judged(self) -> Sequence[ProbeDrift]:
        return [probe for probe in self.probes if probe.has_valid_baseline] or self.probes

    def __str__(self) -> str:
        flagged = self.flagged
        if not self.alarm:
            some = f"; {len(flagged)} of {len(self._judged)} probes break the rule, too few" if flagged else ""
            return f"no alarm at step {self.step}; mean drift {self.drift:.2f}{some}"
        named = "; ".join(_described(probe) for probe in flagged[:5]) + (
            f"; and {len(flagged) - 5} more" if len(flagged) > 5 else ""
        )
        return (
            f"attention drifted on {len(flagged)} of {len(self._judged)} probes at step {self.step} "
            f"(baseline: step {self.baseline_step}): {named}"
        )


def compare(baseline: Snapshot, snapshot: Snapshot, rule: DriftRule | None = None) -> DriftReport:
    """Measure, on the raw grid, how far each probe's map moved from its baseline.

    Args:
        baseline: what to compare with.
        snapshot: of the same probes, method, target, layers and grid.
        rule: what counts as an alarm; by default the one that :class:`DriftRule` describes.

    Raises:
        IncomparableError: the two differ in one of these; the message says in which.
    """
    check_comparable(baseline, snapshot)
    rule = rule or DriftRule()
    drift = 1 - metrics.correlation(baseline.maps, snapshot.maps)
    iou = metrics.top_iou(baseline.maps, snapshot.maps)
    shift = metrics.center_shift(baseline.maps, snapshot.maps)
    distance = metrics.js_distance(baseline.maps, snapshot.maps)
    common = metrics.shared_gain(baseline.maps, snapshot.maps, _pictures(baseline))
    peak = metrics.concentration(baseline.maps, snapshot.maps)
    unknown = torch.full_like(drift, torch.nan)
    floor = baseline.noise.clamp_min(LEAST_NOISE) if baseline.noise is not None else unknown
    rows = []
    for i, (before, now) in enumerate(zip(baseline.degeneracies, snapshot.degeneracies, strict=True)):
        degenerate, has_valid_baseline = now or before, not before
        # Correlation is undefined for a map that says nothing. 1 is what unrelated maps have: a map that
        # vanished must neither pass as unmoved nor put a NaN where a monitor looks.
        moved = 1.0 if degenerate else float(drift[i])
        row = ProbeDrift(
            name=snapshot.names[i],
            prompt=snapshot.prompts[i],
            drift=moved,
            top_iou=0.0 if degenerate else float(iou[i]),
            center_shift=math.nan if degenerate else float(shift[i]),
            js_distance=math.nan if degenerate else float(distance[i]),
            noise_ratio=moved / float(floor[i]) if has_valid_baseline else math.nan,
            shared_gain=math.nan if degenerate else float(common[i]),
            concentration=math.nan if degenerate else float(peak[i]),
            similarity=float(snapshot.similarity[i]),
            similarity_change=float(snapshot.similarity[i] - baseline.similarity[i]),
            energy_inside_mask=float(snapshot.energy_inside_mask[i]),
            energy_change=float(snapshot.energy_inside_mask[i] - baseline.energy_inside_mask[i]),
            pointing=float(snapshot.pointing[i]),
            degenerate=degenerate,
            has_valid_baseline=has_valid_baseline,
            severity=math.inf if now and has_valid_baseline else 0.0,
            reason=f"its map is {now}" if now and has_valid_baseline else "",
        )
        rows.append(row if degenerate else _judged(row, rule))
    return DriftReport(tuple(rows), rule, snapshot.info.step, baseline.info.step)


def check_comparable(baseline: Snapshot, snapshot: Snapshot) -> None:
    """Refuse two snapshots whose maps mean different things.

    Raises:
        IncomparableError: with what differs.
    """
    theirs = {**vars(baseline.info), "grid": "x".join(map(str, baseline.maps.shape[1:]))}
    ours = {**vars(snapshot.info), "grid": "x".join(map(str, snapshot.maps.shape[1:]))}
    for field, means in (
        ("digest", "other probes (images, prompts or masks)"),
        ("method", "another CAM method"),
        ("target", "another target"),
        ("layers", "other layers"),
        ("grid", "another grid"),
    ):
        if theirs[field] != ours[field]:
            other = theirs["fingerprint"] != ours["fingerprint"]
            raise IncomparableError(
                f"the baseline was made with {means}: {field} {theirs[field]!r}, now {ours[field]!r}. "
                + ("The two models are of different architectures. " if other and field in ("layers", "grid") else "")
                + "Take a new baseline, or make the two agree."
            )


def _pictures(baseline: Snapshot) -> Int[Tensor, "n"] | None:
    """Which probes ask about the same picture; ``None`` where the pictures are not known."""
    if not baseline.pictures:
        return None
    numbers = {picture: i for i, picture in enumerate(baseline.pictures)}
    return torch.tensor([numbers[picture] for picture in baseline.pictures])


def _judged(row: ProbeDrift, rule: DriftRule) -> ProbeDrift:
    severity, reason = rule.judged(
        drift=row.drift,
        noise_ratio=row.noise_ratio,
        shared_gain=row.shared_gain,
        concentration=row.concentration,
        energy=row.energy_inside_mask,
        energy_change=row.energy_change,
    )
    return replace(row, severity=severity, reason=reason if severity > 1 else "")


def _described(probe: ProbeDrift) -> str:
    figures = [f"drift {probe.drift:.2f}"]
    if probe.shared_gain > 0:
        figures.append(f"common gain {probe.shared_gain:.0%}")
    if math.isfinite(probe.energy_inside_mask) and math.isfinite(probe.energy_change):
        before = probe.energy_inside_mask - probe.energy_change
        figures.append(f"energy on the object {before:.2f} -> {probe.energy_inside_mask:.2f}")
    return f"{probe.name}: {probe.reason} ({', '.join(figures)})"
