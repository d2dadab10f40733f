"""Measure how far maps moved from their baseline, and flag probes by the rule."""

import math
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from clipcam_lightning.drift import metrics
from clipcam_lightning.drift.probe_drift import ProbeDrift
from clipcam_lightning.drift.report import DriftReport
from clipcam_lightning.drift.rule import MIN_DRIFT, DriftRule
from clipcam_lightning.drift.snapshot import Snapshot
from clipcam_lightning.drift.transplants import count_transplants
from clipcam_lightning.errors import IncomparableError

COVERED = ("covered_loss", "control_loss")
BACKGROUND = ("background_score", "named_without_object")
MIN_NOISE_FLOOR = 0.01  # a smaller noise floor counts as this one


def compare(baseline: Snapshot, snapshot: Snapshot, rule: DriftRule | None = None) -> DriftReport:
    """Measure how far the map of each probe moved from its baseline, on the raw grid.

    Args:
        baseline: what to compare with.
        snapshot: of the same probes, made with the same method, target, score scale, scales, flip, shift,
            precision, fuse, layers and grid.
        rule: what flags a probe and makes an alarm; by default :class:`DriftRule` without arguments.

    Returns:
        One :class:`ProbeDrift` per probe, and what they amount to.

    Raises:
        IncomparableError: the snapshots differ in one of the above; the message names it.

    Example:
        Two probes, the second of which moved from the left half of its image to the right half:

        >>> from dataclasses import replace
        >>> import torch
        >>> from clipcam_lightning import DriftRule, Snapshot, compare
        >>> from clipcam_lightning.drift.snapshot import SnapshotInfo
        >>> info = SnapshotInfo(
        ...     digest="", step=0, epoch=0, method="gradcam", target="similarity", scales=(1.0,), flip=False,
        ...     fuse="mean", layers=("visual.layer4",), fingerprint="", dtype="float32", versions={})
        >>> left, no_mask = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.full((2,), torch.nan)
        >>> baseline = Snapshot(
        ...     maps=torch.stack([left, left]), similarity=torch.tensor([0.3, 0.3]), energy_inside_mask=no_mask,
        ...     pointing=no_mask, names=("cat", "dog"), prompts=("a cat", "a dog"), info=info)
        >>> later = replace(baseline, maps=torch.stack([left, left.flip(1)]), info=replace(info, step=100))
        >>> report = compare(baseline, later, DriftRule(max_drift=0.5))
        >>> [probe.drift for probe in report.probes]
        [0.0, 2.0]
        >>> report.alarm, [probe.name for probe in report.flagged]
        (True, ['dog'])
    """
    check_comparable(baseline, snapshot)
    rule = rule or DriftRule()
    drift = 1 - metrics.correlation(baseline.maps, snapshot.maps)
    iou = metrics.top_iou(baseline.maps, snapshot.maps)
    shift = metrics.center_shift(baseline.maps, snapshot.maps)
    distance = metrics.js_distance(baseline.maps, snapshot.maps)
    shared = metrics.shared_gain(baseline.maps, snapshot.maps, _number_images(baseline))
    concentration = metrics.concentration(baseline.maps, snapshot.maps)
    unknown = torch.full_like(drift, torch.nan)
    score, named = (_or_unknown(getattr(snapshot, name), unknown) for name in BACKGROUND)
    score_before, named_before = (_or_unknown(getattr(baseline, name), unknown) for name in BACKGROUND)
    covered_loss, control_loss = (
        _or_unknown(getattr(snapshot, name), unknown).where(drift >= MIN_DRIFT, torch.nan) for name in COVERED
    )
    closest, closest_before = snapshot.closest_prompts, baseline.closest_prompts
    transplants, transplants_before = map(count_transplants, (snapshot, baseline))
    floor = unknown if baseline.noise_floor is None else baseline.noise_floor.clamp_min(MIN_NOISE_FLOOR)
    probes = []
    for i, (before, now) in enumerate(zip(baseline.states, snapshot.states, strict=True)):
        degenerate, has_valid_baseline = now.is_degenerate or before.is_degenerate, not before.is_degenerate
        # The correlation of a degenerate map is undefined. 1 is that of unrelated maps: a map that vanished
        # must neither pass as unmoved nor put a NaN into a monitored metric.
        moved = 1.0 if degenerate else float(drift[i])
        vanished = now.is_degenerate and has_valid_baseline
        probe = ProbeDrift(
            name=snapshot.names[i],
            prompt=snapshot.prompts[i],
            drift=moved,
            top_iou=0.0 if degenerate else float(iou[i]),
            center_shift=1.0 if degenerate else float(shift[i]),
            js_distance=1.0 if degenerate else float(distance[i]),
            noise_ratio=moved / float(floor[i]) if has_valid_baseline else math.nan,
            shared_gain=math.nan if degenerate else float(shared[i]),
            concentration=math.nan if degenerate else float(concentration[i]),
            similarity=float(snapshot.similarity[i]),
            similarity_change=float(snapshot.similarity[i] - baseline.similarity[i]),
            energy_inside_mask=float(snapshot.energy_inside_mask[i]),
            energy_change=float(snapshot.energy_inside_mask[i] - baseline.energy_inside_mask[i]),
            pointing=float(snapshot.pointing[i]),
            background_score=float(score[i]),
            background_score_before=float(score_before[i]),
            named_without_object=float(named[i]),
            named_before=float(named_before[i]),
            closest_prompt=closest[i],
            closest_prompt_before=closest_before[i],
            transplants=transplants[i],
            transplants_before=transplants_before[i],
            covered_loss=float(covered_loss[i]),
            control_loss=float(control_loss[i]),
            state=now,
            baseline_state=before,
            severity=math.inf if vanished else 0.0,
            reason=f"its map is {now}" if vanished else "",
        )
        is_judged = not degenerate and (baseline.has_trusted_maps or rule.max_drift is not None)
        probes.append(_judge(probe, rule) if is_judged else probe)
    return DriftReport(tuple(probes), rule, snapshot.info.step, baseline.info.step)


def check_comparable(baseline: Snapshot, snapshot: Snapshot) -> None:
    """Refuse two snapshots whose maps mean different things.

    Args:
        baseline: what to compare with.
        snapshot: what to compare.

    Raises:
        IncomparableError: with the first difference, or one of them is no snapshot.
    """
    for each in (baseline, snapshot):
        if not isinstance(each, Snapshot):
            raise IncomparableError(
                f"snapshots are compared (got {type(each).__name__}); Snapshot.load(file) reads one, and evaluate(...) "
                "and the callback return one as .snapshot."
            )
    before, now = (
        {**vars(each.info), "grid": "x".join(map(str, each.maps.shape[1:]))} for each in (baseline, snapshot)
    )
    for field, difference in (
        ("digest", "other probes (images, prompts or masks)"),
        ("method", "another CAM method"),
        ("target", "another target"),
        ("score_scale", "another scale of the score"),
        ("scales", "other scales"),
        ("flip", "another flip setting"),
        ("shift", "another shift setting"),
        ("precision", "another precision"),
        ("fuse", "another way to fuse layers"),
        ("layers", "other layers"),
        ("grid", "another grid"),
    ):
        if before[field] != now[field]:
            other_model = field in ("layers", "grid") and before["fingerprint"] != now["fingerprint"]
            raise IncomparableError(
                f"the baseline was made with {difference}: {field} {before[field]!r}, now {now[field]!r}. "
                + ("The two models are of different architectures. " if other_model else "")
                + "Take a new baseline, or make the two agree."
            )


def _or_unknown(values: Float[Tensor, "n"] | None, unknown: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
    return unknown if values is None else values


def _number_images(baseline: Snapshot) -> Int[Tensor, "n"] | None:
    """A number per probe, equal for probes with the same image; ``None`` if the baseline has no images."""
    if not baseline.images:
        return None
    numbers = {image: i for i, image in enumerate(baseline.images)}
    return torch.tensor([numbers[image] for image in baseline.images], device="cpu")


def _judge(probe: ProbeDrift, rule: DriftRule) -> ProbeDrift:
    """Add severity and reason to a probe with valid maps."""
    severity, reason = rule.judge(
        drift=probe.drift,
        noise_ratio=probe.noise_ratio,
        shared_gain=probe.shared_gain,
        concentration=probe.concentration,
        energy=probe.energy_inside_mask,
        energy_change=probe.energy_change,
        background_gain=probe.background_gain,
        named_without_object=probe.named_without_object,
    )
    return replace(probe, severity=severity, reason=reason if severity > 1 else "")
