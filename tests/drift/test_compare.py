"""Drift from 0 to 2, the alarms, and what is refused."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from scipy.spatial.distance import jensenshannon
from torch import Tensor

from clipcam_lightning.drift.compare import compare
from clipcam_lightning.drift.rule import COMMON, LEAST_ENERGY, LOST, MOVED, PEAK, DriftRule
from clipcam_lightning.drift.snapshot import Snapshot, SnapshotInfo
from clipcam_lightning.errors import ConfigError, IncomparableError

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
    assert not row.flagged
    assert not row.degenerate


def test_an_identical_snapshot_drifts_by_exactly_nothing() -> None:
    taken = snapshot(*torch.rand(10, 7, 7))
    report = compare(taken, taken, DriftRule(0.0))
    assert [(row.drift, row.top_iou, row.center_shift) for row in report.probes] == [(0.0, 1.0, 0.0)] * 10
    assert not report.flagged


@pytest.mark.parametrize("max_drift", [None, 2.0])
@pytest.mark.parametrize("why", BROKEN)
def test_a_map_that_vanished_is_an_alarm_and_never_a_nan(why: str, max_drift: float | None) -> None:
    report = compare(snapshot(MAP, MAP), snapshot(BROKEN[why], MAP), DriftRule(max_drift))
    assert report.alarm

    gone, kept = report.probes
    assert (gone.drift, gone.top_iou, gone.degenerate, not gone.has_valid_baseline, gone.flagged) == (
        1.0,
        0.0,
        why,
        False,
        True,
    )
    assert math.isnan(gone.center_shift)
    assert (kept.degenerate, kept.flagged) == ("", False)
    assert report.drift == pytest.approx(0.5)
    assert report.worst is gone
    assert why in str(report)


@pytest.mark.parametrize("now", [MAP, BROKEN["all zero"]], ids=["sound now", "still nothing"])
@pytest.mark.parametrize("why", BROKEN)
def test_a_baseline_that_says_nothing_is_no_alarm_and_not_in_the_mean(why: str, now: Tensor) -> None:
    report = compare(snapshot(BROKEN[why], MAP), snapshot(now, 1 - MAP), DriftRule(0.5))

    blind, seen = report.probes
    assert (not blind.has_valid_baseline, blind.flagged, blind.drift) == (True, False, 1.0)
    assert blind.degenerate == (why if now is MAP else "all zero")
    assert report.flagged == [seen]
    assert report.worst is seen
    assert report.drift == pytest.approx(2.0)


def test_a_report_of_blind_probes_only_is_finite() -> None:
    report = compare(snapshot(*BROKEN.values()), snapshot(MAP, MAP, MAP), DriftRule(0.1))
    assert report.drift == report.worst.drift == 1.0
    assert not report.flagged


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


def test_of_models_of_two_architectures_it_is_said() -> None:
    other = snapshot(MAP, layers=("m",))
    other = replace(other, info=replace(other.info, fingerprint="g"))
    with pytest.raises(IncomparableError, match=r"layers \('l',\), now \('m',\)\. The two models are of different"):
        compare(snapshot(MAP), other)


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
    assert [row.flagged for row in report.probes] == [False, False, True, True]
    assert report.drift == pytest.approx(sum(row.drift for row in report.probes) / 4)


def test_the_report_names_the_furthest_first_and_five_at_most() -> None:
    angles = (40, 90, 20, 180, 0, 60, 120, 150)
    report = compare(snapshot(*[turned(0)] * 8), snapshot(*map(turned, angles), step=12), DriftRule(0.05))

    assert [row.name for row in report.flagged] == list("dhgbfac")
    text = str(report)
    assert text.startswith("attention drifted on 7 of 8 probes at step 12 (baseline: step 0): ")
    places = [text.index(f"{name}: its map moved further than 0.05 (drift") for name in "dhgbf"]
    assert places == sorted(places)
    assert "a: its map" not in text
    assert text.endswith("; and 2 more")


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
    text, moved = str(report), "its map moved further than 1"
    # The mass of a twentieth of six cells, one: 1 of 4.1 where there was none.
    assert f"a: {moved} (drift 2.00, common gain 24%, energy on the object 0.75 -> 0.25)" in text
    assert f"b: {moved} (drift 2.00, common gain 24%)" in text


def test_a_signed_map_without_positive_cell_has_a_drift_but_no_center() -> None:
    (row,) = compare(snapshot(-MAP), snapshot(-MAP)).probes
    assert not row.degenerate
    assert row.drift == pytest.approx(0, abs=1e-6)
    assert math.isnan(row.center_shift)


UNKNOWN = math.nan


def judged(
    drift: float = 0.0,
    noise_ratio: float = UNKNOWN,
    shared_gain: float = 0.0,
    concentration: float = 0.0,
    energy: tuple[float, float] = (UNKNOWN, UNKNOWN),
) -> tuple[float, str]:
    """Severity and reason by the default rule; the energy is that before and that now."""
    before, now = energy
    severity, reason = DriftRule().judged(
        drift=drift,
        noise_ratio=noise_ratio,
        shared_gain=shared_gain,
        concentration=concentration,
        energy=now,
        energy_change=now - before,
    )
    return pytest.approx(severity, abs=1e-6), reason


GATHERS = "attention gathers where it does in the other pictures"
ANOTHER = "its map hardly resembles what it was"
LEFT = "attention left the object"


def test_a_map_gathers_at_the_common_place_or_becomes_another_one() -> None:
    assert judged(shared_gain=0.14) == (0.14 / COMMON, GATHERS)
    assert judged(drift=1.2) == (1.2 / MOVED, ANOTHER)
    assert judged(drift=0.4, shared_gain=0.14) == (0.14 / COMMON, GATHERS)
    assert judged(drift=1.9, shared_gain=-0.3) == (1.9 / MOVED, ANOTHER)
    assert judged(drift=0.4, shared_gain=UNKNOWN) == (0.4 / MOVED, ANOTHER)  # a single probe


@pytest.mark.parametrize(("ratio", "severity"), [(0.9, 0.9), (1.5, 1.5), (50.0, 2.0), (UNKNOWN, 2.0)])
def test_nothing_counts_within_a_probe_s_own_noise(ratio: float, severity: float) -> None:
    for figures in (
        {"shared_gain": 2 * COMMON},
        {"drift": 2 * MOVED},
        {"energy": (0.5, 0.5 - LOST), "concentration": 1.0},
    ):
        assert judged(**figures, noise_ratio=ratio)[0] == severity  # type: ignore[arg-type]


def test_where_the_object_is_known_attention_must_leave_it_and_gather_in_a_spot() -> None:
    assert judged(energy=(0.5, 0.2), concentration=0.9) == (0.6 / LOST, LEFT)
    assert judged(energy=(0.5, 0.2), concentration=0.2) == (0.2 / PEAK, LEFT)
    assert judged(energy=(0.5, 0.5), concentration=0.9)[0] == 0.0
    assert judged(energy=(0.9 * LEAST_ENERGY, 0.0), concentration=0.9)[0] == 0.0  # it never was on the object


def test_what_comes_onto_the_object_is_no_offence() -> None:
    assert judged(drift=1.5, shared_gain=0.3, energy=(0.2, 0.6))[0] == 0.0
    assert judged(drift=1.6, energy=(0.2, 0.2001)) == (2.0, ANOTHER)  # a trifle is no excuse
    assert judged(shared_gain=0.3, energy=(0.2, 0.3)) == (0.2 / COMMON, GATHERS)  # a third of that is on the object


def corner(*cells: tuple[int, int], share: float = 1.0) -> Tensor:
    """A map over 10 x 10 cells: ``share`` of its mass in ``cells``, the rest where ``blob`` has its own."""
    map_ = (1 - share) * blob()
    for cell in cells:
        map_[cell] += share / len(cells)
    return map_


def blob() -> Tensor:
    map_ = torch.zeros(10, 10)
    map_[4:6, 4:6] = 0.25
    return map_


def test_pictures_that_all_gather_at_one_place_are_an_alarm_and_each_at_its_own_are_not() -> None:
    before = snapshot(*[blob()] * 8)
    one_place = compare(before, snapshot(*[corner((9, 9), share=0.3)] * 8))
    own_places = compare(before, snapshot(*[corner((0, i), share=0.3) for i in range(8)]))

    assert one_place.alarm
    assert [(row.shared_gain, row.concentration, row.reason) for row in one_place.probes] == [
        (pytest.approx(0.3), pytest.approx(0.3), GATHERS)
    ] * 8
    assert not own_places.alarm
    assert [row.concentration for row in own_places.probes] == [pytest.approx(0.3)] * 8


@pytest.mark.parametrize(("count", "enough"), [(1, 1), (2, 1), (3, 2), (4, 2), (8, 4), (9, 5)])
def test_half_of_the_probes_make_an_alarm(count: int, enough: int) -> None:
    for breaking, alarm in ((enough, True), (enough - 1, False)):
        now = snapshot(*[turned(90)] * breaking, *[turned(0)] * (count - breaking))
        report = compare(snapshot(*[turned(0)] * count), now)
        assert (len(report.flagged), report.alarm) == (breaking, alarm)
        assert str(report).startswith("attention drifted on" if alarm else "no alarm")


def test_maps_that_vanished_break_the_rule_and_half_of_them_are_an_alarm() -> None:
    for gone, alarm in ((3, False), (4, True)):
        now = snapshot(*[torch.zeros(2, 2)] * gone, *[turned(0)] * (8 - gone))
        report = compare(snapshot(*[turned(0)] * 8), now)
        assert (report.alarm, len(report.flagged)) == (alarm, gone)
        assert {(row.severity, row.reason) for row in report.flagged} == {(math.inf, "its map is all zero")}


def test_two_prompts_of_one_picture_are_no_witness_to_each_other() -> None:
    before = replace(snapshot(*[blob()] * 4), pictures=(b"one", b"one", b"two", b"two"))
    now = snapshot(*[corner((0, 0), share=0.3)] * 2, *[corner((9, 9), share=0.3)] * 2)
    report = compare(before, now)
    assert [row.shared_gain for row in report.probes] == [pytest.approx(0, abs=1e-6)] * 4
    assert compare(replace(before, pictures=()), now).probes[0].shared_gain == pytest.approx(0.3)


def test_one_probe_beyond_a_limit_of_one_s_own_is_an_alarm() -> None:
    report = compare(snapshot(*[turned(0)] * 8), snapshot(turned(90), *[turned(0)] * 7), DriftRule(0.9))
    assert report.alarm
    assert report.severity == pytest.approx(1 / 0.9)


def test_a_evaluation_whose_baseline_says_nothing_at_all_is_no_alarm() -> None:
    report = compare(snapshot(torch.zeros(2, 3)), snapshot(MAP))
    assert (report.alarm, report.severity) == (False, 0.0)


def test_the_distance_of_the_mass_is_that_of_scipy() -> None:
    before, now = torch.rand(4, 7, 7), torch.rand(4, 7, 7) - 0.3
    report = compare(snapshot(*before), snapshot(*now))
    for row, a, b in zip(report.probes, before, now, strict=True):
        expected = jensenshannon(a.flatten(), b.clamp_min(0).flatten(), base=2)
        assert row.js_distance == pytest.approx(expected, abs=1e-5)
