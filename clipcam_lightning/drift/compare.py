"""Measure how far maps moved from their baseline, and flag probes by the rule."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import torch
from jaxtyping import Float, Int
from torch import Tensor

from clipcam_lightning.cam.map_state import MapState
from clipcam_lightning.drift import metrics
from clipcam_lightning.drift.rule import DriftRule
from clipcam_lightning.drift.snapshot import Snapshot
from clipcam_lightning.errors import IncomparableError

MIN_NOISE_FLOOR = 0.01  # a smaller noise floor counts as this one
MAX_NAMED = 5  # flagged probes in the message of an alarm
ROUNDING = 1e-6  # of a drift


@dataclass(frozen=True)
class ProbeDrift:
    """How far the map of one probe is from its baseline.

    Attributes:
        name: of the probe.
        prompt: of the probe.
        drift: 1 - CC of the raw maps: 0 for equal, 1 for unrelated, 2 for inverted maps. A degenerate map counts as 1.
        top_iou: overlap of the hottest 20 % of the cells, 0 to 1; a degenerate map counts as 0.
        center_shift: distance of the centres of mass, as a fraction of the image's diagonal, 0 to 1; a degenerate map
            counts as 1.
        js_distance: Jensen-Shannon distance of the maps' mass, 0 to 1; a degenerate map counts as 1.
        noise_ratio: drift in units of the probe's noise floor; NaN if the baseline has none.
        shared_gain: share of the map's mass that is new where the other images' maps gained most
            (:func:`~clipcam_lightning.drift.metrics.shared_gain`), -1 to 1; NaN for a degenerate map, which gained
            nothing anywhere, and if no other image has a valid map.
        concentration: share of the map's mass that is new in one spot
            (:func:`~clipcam_lightning.drift.metrics.concentration`), 0 to 1; NaN for a degenerate map.
        similarity: cosine of image and prompt now, -1 to 1.
        similarity_change: now minus baseline.
        energy_inside_mask: share of the map's mass on the object, 0 to 1; 0 for a degenerate map, NaN without mask.
        energy_change: now minus baseline; NaN without mask.
        pointing: 1 if the map's hottest pixel is on the object, else 0; 0 for a degenerate map, NaN without mask.
        background_score: how much nearer to its prompt the image without its object is than the other images without
            theirs, in standard deviations of these; NaN if unknown.
        background_gain: now minus baseline; NaN if unknown.
        named_without_object: 1 if the image without its object is closer to its own prompt than to those of the other
            probes, else 0; NaN if unknown.
        named_before: the same at the baseline.
        state: of the map of now: whether it carries information, and if not, why.
        baseline_state: of the baseline's map.
        severity: how far the map is off in units of what the rule tolerates; a probe above 1 is flagged. Infinite
            for a valid map that became degenerate, 0 without valid baseline.
        reason: why the probe is flagged, in words; empty if it is not.

    Example:
        >>> from clipcam_lightning import evaluate
        >>> from clipcam_lightning.shapes_world import WordTokenizer, draw_scenes, trained_clip
        >>> scenes = draw_scenes(2)
        >>> probes = list(zip(scenes.images, scenes.captions))
        >>> evaluation = evaluate(trained_clip("vit"), probes, tokenizer=WordTokenizer())
        >>> probe = evaluation.report.probes[0]
        >>> round(probe.drift, 3), probe.flagged, str(probe.state)
        (0.0, False, 'valid')
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
    background_score: float
    background_gain: float
    named_without_object: float
    named_before: float
    state: MapState
    baseline_state: MapState
    severity: float
    reason: str

    @property
    def has_valid_baseline(self) -> bool:
        """Whether the baseline's map carries information; if not, the drift is unknown."""
        return not self.baseline_state.is_degenerate

    @property
    def degenerate(self) -> str:
        """State of the map of now, or else of the baseline's map, if it is degenerate; empty if both are valid."""
        degenerate = (state.value for state in (self.state, self.baseline_state) if state.is_degenerate)
        return next(degenerate, "")

    @property
    def flagged(self) -> bool:
        """Whether the probe violates the rule."""
        return bool(self.reason)


@dataclass(frozen=True)
class DriftReport:
    """All probes of one evaluation, compared with the baseline by :func:`compare`.

    Printed, it is the alarm in words, or one line that says that there is none.

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

    @property
    def severity(self) -> float:
        """How far the evaluation is off in units of what the rule tolerates; above 1 is an alarm.

        The larger of the severity of the background, and the k-th largest of the probes, where k flagged probes make
        an alarm.
        """
        ordered = sorted((probe.severity for probe in self._measured), reverse=True)
        return max(ordered[self.rule.count_required(len(ordered)) - 1], self.background[0])

    @property
    def background(self) -> tuple[float, str]:
        """The severity of the background's gains, 0 if unknown, and the prompt with the most severe ones.

        The prompt is empty if the gains of all probes together are the most severe. Gains of which no image without its
        object is named that was not named at the baseline have severity 0.
        """
        known = self._with_known_background
        if not known or self.rule.max_drift is not None:
            return 0.0, ""
        by_prompt: dict[str, list[ProbeDrift]] = defaultdict(list)
        for probe in known:
            by_prompt[probe.prompt].append(probe)
        rated = [(0.0, "")]
        for prompt, probes in (("", known), *by_prompt.items()):
            now, before = _count_named(probes)
            if now > before:
                gains = [probe.background_gain for probe in probes]
                rate = (
                    self.rule.rate_background(gains, len(known)) if prompt else self.rule.rate_whole_background(gains)
                )
                rated.append((rate, prompt))
        return max(rated)

    @property
    def _with_known_background(self) -> list[ProbeDrift]:
        return [probe for probe in self.probes if not math.isnan(probe.background_gain)]

    @property
    def alarm(self) -> bool:
        """Whether enough probes are flagged."""
        return self.severity > 1

    @property
    def _measured(self) -> Sequence[ProbeDrift]:
        """The probes with a valid baseline, or all probes if there are none."""
        return [probe for probe in self.probes if probe.has_valid_baseline] or self.probes

    def __str__(self) -> str:
        flagged, count = self.flagged, len(self._measured)
        if not self.alarm:
            verb = "is" if len(flagged) == 1 else "are"
            too_few = f"; {len(flagged)} of {count} probes {verb} flagged, too few for an alarm" if flagged else ""
            return f"no alarm at step {self.step}; mean drift {format_drift(self.drift)}{too_few}"
        evidence, baseline = self.evidence, f"(baseline: step {self.baseline_step})"
        named = "; ".join(_describe(probe, with_reason=not evidence) for probe in flagged[:MAX_NAMED])
        more = f"; and {len(flagged) - MAX_NAMED} more" if len(flagged) > MAX_NAMED else ""
        if evidence:
            details = f". Flagged: {named}{more}" if flagged else ""
            return f"the background tells the prompt at step {self.step} {baseline}: {evidence}{details}"
        return f"attention drifted on {len(flagged)} of {count} probes at step {self.step} {baseline}: {named}{more}"

    @property
    def evidence(self) -> str:
        """A sentence on what images without their objects show; empty if the background is no reason for an alarm."""
        severity, prompt = self.background
        if severity <= 1:
            return ""
        probes = [probe for probe in self._with_known_background if probe.prompt == prompt or not prompt]
        now, before = _count_named(probes)
        which = f"{now} of {len(probes)} images are" if len(probes) > 1 else "the image is"
        own = repr(prompt) if prompt else "their own prompts"
        return f"without the object, {which} still closest to {own} ({before} at the baseline)"


def compare(baseline: Snapshot, snapshot: Snapshot, rule: DriftRule | None = None) -> DriftReport:
    """Measure how far the map of each probe moved from its baseline, on the raw grid.

    Args:
        baseline: what to compare with.
        snapshot: of the same probes, made with the same method, target, score scale, scales, flip, shift, fuse,
            layers and grid.
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
    score, named = _or_unknown(snapshot, unknown)
    score_before, named_before = _or_unknown(baseline, unknown)
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
            background_gain=float(score[i] - score_before[i]),
            named_without_object=float(named[i]),
            named_before=float(named_before[i]),
            state=now,
            baseline_state=before,
            severity=math.inf if vanished else 0.0,
            reason=f"its map is {now}" if vanished else "",
        )
        probes.append(probe if degenerate else _judge(probe, rule))
    return DriftReport(tuple(probes), rule, snapshot.info.step, baseline.info.step)


def format_drift(drift: float) -> str:
    """Format a drift for people: two digits after the point, below 0.1 as many as show two that count.

    Args:
        drift: 0 to 2; below 1e-6 it is rounding and formatted as 0.

    Example:
        >>> format_drift(1.234), format_drift(0.000128), format_drift(0.0)
        ('1.23', '0.00013', '0.00')
    """
    decimals = 1 - math.floor(math.log10(drift)) if ROUNDING <= drift < 0.1 else 2
    return f"{drift:.{decimals}f}"


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


def _or_unknown(snapshot: Snapshot, unknown: Float[Tensor, "n"]) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"]]:
    """Get score and names of the background; NaN if they were not measured."""
    if snapshot.background_score is None or snapshot.named_without_object is None:
        return unknown, unknown
    return snapshot.background_score, snapshot.named_without_object


def _count_named(probes: Sequence[ProbeDrift]) -> tuple[int, int]:
    """How many images without their objects are closest to their own prompts, now and at the baseline."""
    return sum(probe.named_without_object > 0 for probe in probes), sum(probe.named_before > 0 for probe in probes)


def _number_images(baseline: Snapshot) -> Int[Tensor, "n"] | None:
    """A number per probe, equal for probes with the same image; ``None`` if the baseline has no images."""
    if not baseline.images:
        return None
    numbers = {image: i for i, image in enumerate(baseline.images)}
    return torch.tensor([numbers[image] for image in baseline.images])


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


def _describe(probe: ProbeDrift, with_reason: bool) -> str:
    values = [f"drift {format_drift(probe.drift)}"]
    if probe.shared_gain > 0 and math.isnan(probe.background_gain):
        values.append(f"shared gain {100 * probe.shared_gain:.0f} %")
    if math.isfinite(probe.energy_inside_mask) and math.isfinite(probe.energy_change):
        before = probe.energy_inside_mask - probe.energy_change
        values.append(f"energy on the object {before:.2f} -> {probe.energy_inside_mask:.2f}")
    reason = f": {probe.reason}" if with_reason else ""
    return f"{probe.name}{reason} ({', '.join(values)})"
