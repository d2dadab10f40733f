"""Drift from 0 to 2, the alarms, and what is refused."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from scipy.spatial.distance import jensenshannon
from torch import Tensor

from clipcam_lightning.drift import FLOORS, LEAST_ENERGY, LOST, MOVED, DriftReport, DriftRule, compare
from clipcam_lightning.errors import ConfigError, IncomparableError
from clipcam_lightning.snapshot import Snapshot, SnapshotInfo

MAP = torch.tensor([[1.0, 0.2, 0.0], [0.1, 0.0, 0.6]])
BROKEN = {
    "all zero": torch.zeros(2, 3),
    "constant": torch.full((2, 3), 0.1),
    "not finite": torch.full((2, 3), torch.nan),
}


def snapshot(*maps: Tensor, step: int = 0, names: str = "abcdefghij", **info: Any) -> Snapshot:
    unknown = torch.full((len(maps),), torch.nan)
    fields = {"digest": "d", "method": "gradcam", "target": "similarity", "layers": ("l",), **info}
    return Snapshot(
        maps=torch.stack(maps),
        similarity=torch.zeros(len(maps)),
        energy_inside_mask=unknown,
        pointing=unknown,
        names=tuple(names[: len(maps)]),
        prompts=tuple(f"prompt {name}" for name in names[: len(maps)]),
        info=SnapshotInfo(step=step, epoch=0, fingerprint="f", dtype="float32", versions={}, **fields),
    )


@pytest.mark.parametrize(
    ("now", "drift"),
    [
        (MAP, 0.0),
        (MAP * 1e-4, 0.0),
        (MAP * 7 + 0.5, 0.0),
        (1 - MAP, 2.0),
        (torch.tensor([[0.0, 1.0], [0.0, 1.0]]), 1.0),  # orthogonal to the baseline below
    ],
    ids=["the same", "smaller", "scaled and lifted", "inverted", "unrelated"],
)
def test_drift_is_one_minus_correlation(now: Tensor, drift: float) -> None:
    before = MAP if now.shape == MAP.shape else torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    (row,) = compare(snapshot(before), snapshot(now), DriftRule(2.0)).probes
    assert row.drift == pytest.approx(drift, abs=1e-6)
    assert not row.alarm
    assert not row.degenerate


def test_an_identical_snapshot_drifts_by_exactly_nothing() -> None:
    taken = snapshot(*torch.rand(10, 7, 7))
    report = compare(taken, taken, DriftRule(0.0))
    assert [(row.drift, row.top_iou, row.center_shift) for row in report.probes] == [(0.0, 1.0, 0.0)] * 10
    assert not report.alarms


@pytest.mark.parametrize("max_drift", [None, 2.0])
@pytest.mark.parametrize("why", BROKEN)
def test_a_map_that_vanished_is_an_alarm_and_never_a_nan(why: str, max_drift: float | None) -> None:
    report = compare(snapshot(MAP, MAP), snapshot(BROKEN[why], MAP), DriftRule(max_drift))

    gone, kept = report.probes
    assert (gone.drift, gone.top_iou, gone.degenerate, gone.blind, gone.alarm) == (1.0, 0.0, why, False, True)
    assert math.isnan(gone.center_shift)
    assert (kept.degenerate, kept.alarm) == ("", False)
    assert report.drift == pytest.approx(0.5)
    assert report.worst is gone
    assert why in str(report)


@pytest.mark.parametrize("now", [MAP, BROKEN["all zero"]], ids=["sound now", "still nothing"])
@pytest.mark.parametrize("why", BROKEN)
def test_a_baseline_that_says_nothing_is_no_alarm_and_not_in_the_mean(why: str, now: Tensor) -> None:
    report = compare(snapshot(BROKEN[why], MAP), snapshot(now, 1 - MAP), DriftRule(0.5))

    blind, seen = report.probes
    assert (blind.blind, blind.alarm, blind.drift) == (True, False, 1.0)
    assert blind.degenerate == (why if now is MAP else "all zero")
    assert report.alarms == [seen]
    assert report.worst is seen
    assert report.drift == pytest.approx(2.0)


def test_a_report_of_blind_probes_only_is_finite() -> None:
    report = compare(snapshot(*BROKEN.values()), snapshot(MAP, MAP, MAP), DriftRule(0.1))
    assert report.drift == report.worst.drift == 1.0
    assert not report.alarms


@pytest.mark.parametrize(
    ("info", "field", "values"),
    [
        ({"digest": "e"}, "digest", ("d", "e")),
        ({"method": "layercam"}, "method", ("gradcam", "layercam")),
        ({"target": "contrast"}, "target", ("similarity", "contrast")),
        ({"layers": ("l", "m")}, "layers", ("'l'", "'m'")),
    ],
)
def test_snapshots_made_differently_are_refused_and_the_difference_named(
    info: dict[str, Any], field: str, values: tuple[str, str]
) -> None:
    with pytest.raises(IncomparableError, match=f"{field} .*{values[0]}.*{values[1]}"):
        compare(snapshot(MAP), snapshot(MAP, **info))


def test_maps_on_another_grid_are_refused() -> None:
    with pytest.raises(IncomparableError, match="grid '2x3', now '3x2'"):
        compare(snapshot(MAP), snapshot(MAP.T))


def test_step_epoch_dtype_and_versions_may_differ() -> None:
    later = snapshot(MAP, step=9)
    later = replace(later, info=replace(later.info, epoch=4, dtype="bfloat16", versions={"torch": "9"}))
    report = compare(snapshot(MAP, step=3), later)
    assert (report.baseline_step, report.step, report.drift) == (3, 9, 0.0)


@pytest.mark.parametrize("max_drift", [-0.01, 2.01, math.nan, math.inf])
def test_a_rule_outside_0_to_2_is_refused(max_drift: float) -> None:
    with pytest.raises(ConfigError, match=f"max_drift .*got {max_drift}"):
        DriftRule(max_drift)


def turned(degrees: float) -> Tensor:
    """A map whose drift from ``turned(0)`` is ``1 - cos(degrees)``: a mix of two orthogonal patterns."""
    a, b = torch.tensor([[1.0, -1.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [1.0, -1.0]])
    return a * math.cos(math.radians(degrees)) + b * math.sin(math.radians(degrees))


def test_an_alarm_is_drift_above_the_rule() -> None:
    report = compare(
        snapshot(*[turned(0)] * 4), snapshot(*map(turned, (0, 59, 61, 180))), DriftRule(0.5)
    )  # cos 60 = .5
    assert [row.drift for row in report.probes] == pytest.approx(
        [1 - math.cos(math.radians(d)) for d in (0, 59, 61, 180)]
    )
    assert [row.alarm for row in report.probes] == [False, False, True, True]
    assert report.drift == pytest.approx(sum(row.drift for row in report.probes) / 4)


def test_the_report_names_the_furthest_first_and_five_at_most() -> None:
    angles = (40, 90, 20, 180, 0, 60, 120, 150)
    report = compare(snapshot(*[turned(0)] * 8), snapshot(*map(turned, angles), step=12), DriftRule(0.05))

    assert [row.name for row in report.alarms] == list("dhgbfac")
    text = str(report)
    assert "7 of 8 probes at step 12 (baseline: step 0; rule: drift above 0.05" in text
    places = [text.index(f"{name} (drift") for name in "dhgbf"]
    assert places == sorted(places)
    assert "a (drift" not in text
    assert text.endswith("; ...")


def test_a_report_without_alarm_says_so() -> None:
    text = str(compare(snapshot(MAP), snapshot(1 - MAP, step=5), DriftRule(2.0)))
    assert text.startswith("no alarm at step 5; mean drift 2.00")


def test_changes_are_now_minus_before() -> None:
    before = replace(
        snapshot(MAP, MAP),
        similarity=torch.tensor([0.5, 0.1]),
        energy_inside_mask=torch.tensor([0.75, torch.nan]),
        pointing=torch.tensor([1.0, torch.nan]),
    )
    now = replace(
        snapshot(1 - MAP, 1 - MAP),
        similarity=torch.tensor([0.25, 0.35]),
        energy_inside_mask=torch.tensor([0.25, torch.nan]),
        pointing=torch.tensor([0.0, torch.nan]),
    )

    masked, unmasked = (report := compare(before, now, DriftRule(1.0))).probes

    assert (masked.similarity, masked.similarity_change) == (0.25, -0.25)
    assert (masked.energy_inside_mask, masked.energy_change, masked.pointing) == (0.25, -0.5, 0.0)
    assert unmasked.similarity_change == pytest.approx(0.25)
    assert math.isnan(unmasked.energy_change)
    assert math.isnan(unmasked.pointing)
    assert "a (drift 2.00, energy on the object 0.75 -> 0.25); b (drift 2.00)" in str(report)


def test_a_signed_map_without_positive_cell_has_a_drift_but_no_center() -> None:
    (row,) = compare(snapshot(-MAP), snapshot(-MAP)).probes
    assert not row.degenerate
    assert row.drift == pytest.approx(0, abs=1e-6)
    assert math.isnan(row.center_shift)


def judged(
    drifts: Sequence[float], noise: float | None = None, energy: tuple[float, float] = (math.nan, math.nan)
) -> DriftReport:
    """A report by the default rule on maps that drifted that far, all with one noise floor and one loss of energy."""
    angles = [math.degrees(math.acos(1 - drift)) for drift in drifts]
    count = len(drifts)
    before = replace(
        snapshot(*[turned(0)] * count, names="abcdefghijkl"),
        noise=None if noise is None else torch.full((count,), noise),
        energy_inside_mask=torch.full((count,), energy[0]),
    )
    now = snapshot(*map(turned, angles), names="abcdefghijkl")
    return compare(before, replace(now, energy_inside_mask=torch.full((count,), energy[1])))


@pytest.mark.parametrize(
    ("drift", "noise", "severity"),
    [
        (0.25, 0.02, 0.25 / MOVED),  # far above its noise, but hardly moved
        (0.60, 0.02, 0.60 / MOVED),
        (0.60, 0.50, 0.60 / 0.50 / FLOORS),  # moved, but hardly further than noise moves it
        (0.60, None, 0.60 / MOVED),  # where no noise was measured the limit alone counts
        (0.60, math.nan, 0.60 / MOVED),
        (0.60, 0.0, 0.60 / MOVED),  # a floor of nothing is no division by zero
    ],
)
def test_without_mask_a_map_must_move_far_and_further_than_its_noise(
    drift: float, noise: float | None, severity: float
) -> None:
    report = judged([drift] * 3, noise)

    assert report.severity == pytest.approx(severity, rel=1e-4)
    assert report.alarmed == (severity > 1)
    assert {probe.reason for probe in report.probes} == {"its map moved" if severity > 1 else ""}
    if noise:
        assert report.probes[0].noise_ratio == pytest.approx(drift / noise, rel=1e-4, nan_ok=True)


@pytest.mark.parametrize(
    ("energy", "severity"),
    [((0.5, 0.5), 0.0), ((0.5, 0.7), -0.4 / LOST), ((0.5, 0.4), 0.2 / LOST), ((0.5, 0.2), 0.6 / LOST)],
)
def test_where_the_object_is_known_attention_must_leave_it(energy: tuple[float, float], severity: float) -> None:
    """However far the map moves on it."""
    report = judged([0.9] * 3, 0.02, energy)

    assert report.severity == pytest.approx(severity, abs=1e-5)
    assert {probe.reason for probe in report.probes} == {"attention left the object" if severity > 1 else ""}


@pytest.mark.parametrize("energy", [(0.9 * LEAST_ENERGY, 0.0), (0.0, 0.0), (0.5, math.nan)])
def test_attention_that_was_never_on_the_object_is_judged_by_drift(energy: tuple[float, float]) -> None:
    assert judged([0.9] * 3, 0.02, energy).severity == pytest.approx(0.9 / MOVED, rel=1e-4)
    assert judged([0.0] * 3, 0.02, energy).severity == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(("count", "enough"), [(1, 1), (3, 2), (4, 3), (8, 6), (12, 8)])
def test_two_thirds_of_the_probes_make_an_alarm(count: int, enough: int) -> None:
    for breaking, alarmed in ((enough, True), (enough - 1, False)):
        report = judged([0.6] * breaking + [0.1] * (count - breaking), 0.02)
        assert (len(report.alarms), report.alarmed) == (breaking, alarmed)
        assert str(report).startswith("attention drifted on" if alarmed else "no alarm")


def test_one_map_that_vanished_is_an_alarm_among_many() -> None:
    report = compare(snapshot(*[turned(0)] * 8), snapshot(torch.zeros(2, 2), *[turned(0)] * 7))
    assert (report.alarmed, report.severity, report.alarms[0].reason) == (True, math.inf, "its map is all zero")


def test_one_probe_beyond_a_limit_of_one_s_own_is_an_alarm() -> None:
    report = compare(snapshot(*[turned(0)] * 8), snapshot(turned(90), *[turned(0)] * 7), DriftRule(0.9))
    assert report.alarmed
    assert report.severity == pytest.approx(1 / 0.9)


def test_a_look_whose_baseline_says_nothing_at_all_is_no_alarm() -> None:
    report = compare(snapshot(torch.zeros(2, 3)), snapshot(MAP))
    assert (report.alarmed, report.severity) == (False, 0.0)


def test_the_distance_of_the_mass_is_that_of_scipy() -> None:
    before, now = torch.rand(4, 7, 7), torch.rand(4, 7, 7) - 0.3
    report = compare(snapshot(*before), snapshot(*now))
    for row, a, b in zip(report.probes, before, now, strict=True):
        expected = jensenshannon(a.flatten(), b.clamp_min(0).flatten(), base=2)
        assert row.js_distance == pytest.approx(expected, abs=1e-5)
