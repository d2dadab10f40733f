"""How far maps moved from their baseline, and the rule that raises an alarm."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch

from clipcam_lightning import metrics
from clipcam_lightning.errors import ConfigError, IncomparableError
from clipcam_lightning.snapshot import Snapshot

# The default rule, set by hand on runs of benchmarks/drift_detection.py of other seeds than it reports.
MOVED, FLOORS, LOST, SHARE = 0.35, 1.5, 0.3, 2 / 3
LEAST_NOISE = 0.01  # a noise floor below this is taken for this
TINY = 1e-9
LEAST_ENERGY = 0.05  # on the object; with less at the baseline, attention was not there and cannot leave


@dataclass(frozen=True)
class DriftRule:
    """When a probe's map has moved too far, and when the look as a whole is an alarm.

    By default, where it is known where the object is, a probe breaks the rule if a good part of the energy on it is
    gone: a map may move as it likes on its object. Elsewhere its drift must exceed both an absolute limit and a
    multiple of the probe's own noise floor, which depends on its image, its prompt and the grid. The look is an alarm
    if two thirds of the probes break the rule: what a shortcut does to a model it does to most pictures. A map that
    became degenerate always is an alarm, one that never said anything is none.

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
            return f"drift above {self.max_drift:g}, or a map that no longer says anything"
        return (
            f"on {SHARE:.0%} of the probes more than {LOST:.0%} of the energy on the object lost or, where no mask "
            f"tells where it is, drift above {MOVED:g} and above {FLOORS:g} times the probe's own noise; or a map that "
            "no longer says anything"
        )

    def judged(self, drift: float, noise_ratio: float, before: float, now: float) -> tuple[float, str]:
        """How far a probe is off, in units of what is tolerated, and in what way.

        Args:
            drift: 1 - CC of a sound map.
            noise_ratio: drift in units of the probe's noise floor; NaN where none was measured.
            before, now: energy on the object; NaN without mask.
        """
        if self.max_drift is not None:
            return drift / max(self.max_drift, TINY), f"its map moved further than {self.max_drift:g}"
        if before > LEAST_ENERGY and not math.isnan(now):
            return (before - now) / before / LOST, "attention left the object"
        in_noise = math.inf if math.isnan(noise_ratio) else noise_ratio / FLOORS
        return min(drift / MOVED, in_noise), "its map moved"

    def breaking(self, count: int) -> int:
        """How many of ``count`` probes must break the rule to make the look an alarm."""
        return 1 if self.max_drift is not None else max(1, math.ceil(SHARE * count))


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
        similarity: cosine now, -1 to 1.
        similarity_change: now minus baseline.
        js_distance: Jensen-Shannon distance of the maps' mass, 0 to 1; NaN for a map without positive cell.
        noise_ratio: drift in units of the probe's noise floor; NaN where the baseline has none.
        energy_inside_mask: share of the map's mass on the object, 0 to 1; NaN without mask.
        energy_change: now minus baseline; NaN without mask.
        pointing: 1 where the map's hottest pixel is on the object, else 0; NaN without mask.
        degenerate: why the map of now or of the baseline says nothing; empty if both are sound.
        blind: whether it is the baseline that says nothing, so that drift cannot be known.
        severity: how far the map moved, or attention left the object, in units of what the rule tolerates: above 1 the
            rule is broken. Infinite where a sound map became degenerate, 0 where the baseline says nothing.
        reason: in words, what breaks the rule; empty if nothing does.
    """

    name: str
    prompt: str
    drift: float
    top_iou: float
    center_shift: float
    js_distance: float
    noise_ratio: float
    similarity: float
    similarity_change: float
    energy_inside_mask: float
    energy_change: float
    pointing: float
    degenerate: str
    blind: bool
    severity: float
    reason: str

    @property
    def alarm(self) -> bool:
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
    def alarms(self) -> list[ProbeDrift]:
        """Probes that break the rule, the gravest first."""
        return sorted(
            (probe for probe in self.probes if probe.alarm), key=lambda probe: (-probe.severity, -probe.drift)
        )

    @property
    def severity(self) -> float:
        """Of the look: that of the probe by which enough of them would break the rule; above 1 it is an alarm."""
        if any(math.isinf(probe.severity) for probe in self._judged):
            return math.inf
        ordered = sorted((probe.severity for probe in self._judged), reverse=True)
        return ordered[self.rule.breaking(len(ordered)) - 1]

    @property
    def alarmed(self) -> bool:
        """Whether the look as a whole is an alarm."""
        return self.severity > 1

    @property
    def _judged(self) -> Sequence[ProbeDrift]:
        return [probe for probe in self.probes if not probe.blind] or self.probes

    def __str__(self) -> str:
        alarms = self.alarms
        if not self.alarmed:
            some = f"; {len(alarms)} of {len(self.probes)} probes break the rule, too few" if alarms else ""
            return f"no alarm at step {self.step}; mean drift {self.drift:.2f}{some}; rule: {self.rule}"
        named = "; ".join(_described(probe) for probe in alarms[:5]) + ("; ..." if len(alarms) > 5 else "")
        return (
            f"attention drifted on {len(alarms)} of {len(self.probes)} probes at step {self.step} "
            f"(baseline: step {self.baseline_step}; rule: {self.rule}): {named}"
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
    unknown = torch.full_like(drift, torch.nan)
    floor = baseline.noise.clamp_min(LEAST_NOISE) if baseline.noise is not None else unknown
    rows = []
    for i, (before, now) in enumerate(zip(baseline.degeneracies, snapshot.degeneracies, strict=True)):
        degenerate, blind = now or before, bool(before)
        # Correlation is undefined for a map that says nothing. 1 is what unrelated maps have: a map that
        # vanished must neither pass as unmoved nor put a NaN where a monitor looks.
        moved = 1.0 if degenerate else float(drift[i])
        ratio = moved / float(floor[i])
        energy = float(baseline.energy_inside_mask[i]), float(snapshot.energy_inside_mask[i])
        severity, why = (math.inf, f"its map is {now}") if now else rule.judged(moved, ratio, *energy)
        severity = 0.0 if blind else severity
        rows.append(
            ProbeDrift(
                name=snapshot.names[i],
                prompt=snapshot.prompts[i],
                drift=moved,
                top_iou=0.0 if degenerate else float(iou[i]),
                center_shift=math.nan if degenerate else float(shift[i]),
                js_distance=math.nan if degenerate else float(distance[i]),
                noise_ratio=math.nan if blind else ratio,
                similarity=float(snapshot.similarity[i]),
                similarity_change=float(snapshot.similarity[i] - baseline.similarity[i]),
                energy_inside_mask=energy[1],
                energy_change=energy[1] - energy[0],
                pointing=float(snapshot.pointing[i]),
                degenerate=degenerate,
                blind=blind,
                severity=severity,
                reason=why if severity > 1 else "",
            )
        )
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
            raise IncomparableError(
                f"the baseline was made with {means}: {field} {theirs[field]!r}, now {ours[field]!r}. "
                "Take a new baseline, or make the two agree."
            )


def _described(probe: ProbeDrift) -> str:
    why = probe.degenerate and f", map {probe.degenerate}"
    energy = ""
    if math.isfinite(probe.energy_inside_mask) and math.isfinite(probe.energy_change):
        before = probe.energy_inside_mask - probe.energy_change
        energy = f", energy on the object {before:.2f} -> {probe.energy_inside_mask:.2f}"
    return f"{probe.name} (drift {probe.drift:.2f}{energy}{why})"
