"""How far maps moved from their baseline, and the rule that raises an alarm."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from clipcam_lightning import metrics
from clipcam_lightning.errors import ConfigError, IncomparableError
from clipcam_lightning.snapshot import Snapshot


@dataclass(frozen=True)
class DriftRule:
    """When a probe's drift is an alarm.

    Attributes:
        max_drift: largest tolerated drift, 0 to 2; ``None`` tolerates every sound map.

    A map that became degenerate always is an alarm; one that never said anything is none.
    """

    max_drift: float | None = None

    def __post_init__(self) -> None:
        if self.max_drift is not None and not 0 <= self.max_drift <= 2:
            raise ConfigError(
                f"max_drift must lie in 0 (nothing may change) to 2 (inverted maps are fine), or be None "
                f"(got {self.max_drift})."
            )

    def __str__(self) -> str:
        if self.max_drift is None:
            return "a map that no longer says anything"
        return f"drift above {self.max_drift:g}, or a map that no longer says anything"


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
        energy_inside_mask: share of the map's mass on the object, 0 to 1; NaN without mask.
        energy_change: now minus baseline; NaN without mask.
        pointing: 1 where the map's hottest pixel is on the object, else 0; NaN without mask.
        degenerate: why the map of now or of the baseline says nothing; empty if both are sound.
        blind: whether it is the baseline that says nothing, so that drift cannot be known.
        alarm: whether the rule is broken.
    """

    name: str
    prompt: str
    drift: float
    top_iou: float
    center_shift: float
    similarity: float
    similarity_change: float
    energy_inside_mask: float
    energy_change: float
    pointing: float
    degenerate: str
    blind: bool
    alarm: bool


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
        """Probes that break the rule, furthest first."""
        return sorted((probe for probe in self.probes if probe.alarm), key=lambda probe: -probe.drift)

    @property
    def _judged(self) -> Sequence[ProbeDrift]:
        return [probe for probe in self.probes if not probe.blind] or self.probes

    def __str__(self) -> str:
        alarms = self.alarms
        if not alarms:
            return f"no alarm at step {self.step}; mean drift {self.drift:.2f}, rule: {self.rule}"
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
        rule: what counts as an alarm; by default only degenerate maps do.

    Raises:
        IncomparableError: the two differ in one of these; the message says in which.
    """
    check_comparable(baseline, snapshot)
    rule = rule or DriftRule()
    drift = 1 - metrics.correlation(baseline.maps, snapshot.maps)
    iou = metrics.top_iou(baseline.maps, snapshot.maps)
    shift = metrics.center_shift(baseline.maps, snapshot.maps)
    rows = []
    for i, (before, now) in enumerate(zip(baseline.degeneracies, snapshot.degeneracies, strict=True)):
        degenerate, blind = now or before, bool(before)
        # Correlation is undefined for a map that says nothing. 1 is what unrelated maps have: a map that
        # vanished must neither pass as unmoved nor put a NaN where a monitor looks.
        moved = 1.0 if degenerate else float(drift[i])
        rows.append(
            ProbeDrift(
                name=snapshot.names[i],
                prompt=snapshot.prompts[i],
                drift=moved,
                top_iou=0.0 if degenerate else float(iou[i]),
                center_shift=math.nan if degenerate else float(shift[i]),
                similarity=float(snapshot.similarity[i]),
                similarity_change=float(snapshot.similarity[i] - baseline.similarity[i]),
                energy_inside_mask=float(snapshot.energy_inside_mask[i]),
                energy_change=float(snapshot.energy_inside_mask[i] - baseline.energy_inside_mask[i]),
                pointing=float(snapshot.pointing[i]),
                degenerate=degenerate,
                blind=blind,
                alarm=not blind and (bool(now) or (rule.max_drift is not None and moved > rule.max_drift)),
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
