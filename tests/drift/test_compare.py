"""Comparisons of snapshots: drift, flagged probes, alarms and refusals."""

import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from string import ascii_lowercase
from typing import Any

import pytest
import torch
from scipy.spatial.distance import jensenshannon
from sklearn.metrics import cohen_kappa_score
from torch import Tensor

from clipcam_lightning.drift.compare import compare
from clipcam_lightning.drift.probe_drift import format_drift
from clipcam_lightning.drift.rule import (
    MAX_CONCENTRATION,
    MAX_DRIFT,
    MAX_ENERGY_LOSS,
    MAX_SHARED_GAIN,
    MIN_ENERGY,
    DriftRule,
)
from clipcam_lightning.drift.snapshot import Snapshot, SnapshotInfo
from clipcam_lightning.drift.transplants import NONE
from clipcam_lightning.errors import ConfigError, IncomparableError

MAP = torch.tensor([[1.0, 0.2, 0.0], [0.1, 0.0, 0.6]])
DEGENERATE = {
    "all zero": torch.zeros(2, 3),
    "constant": torch.full((2, 3), 0.1),
    "not finite": torch.full((2, 3), torch.nan),
    "nowhere positive": -MAP,
}


def snapshot(*maps: Tensor, step: int = 0, names: str = "abcdefghij", **info: Any) -> Snapshot:
    unknown = torch.full((len(maps),), torch.nan)
    fields = {
        "digest": "d", "method": "gradcam", "target": "similarity", "scales": (1.0,), "flip": False, "fuse": "mean",
        "layers": ("l",), **info,
    }  # fmt: skip
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
    (probe,) = compare(snapshot(before), snapshot(now), DriftRule(2.0)).probes
    assert probe.drift == pytest.approx(drift, abs=1e-6)
    assert not probe.flagged
    assert not probe.degenerate


def test_a_snapshot_compared_with_itself_has_a_drift_of_exactly_zero() -> None:
    same = snapshot(*torch.rand(10, 7, 7))
    report = compare(same, same, DriftRule(0.0))
    assert [(probe.drift, probe.top_iou, probe.center_shift) for probe in report.probes] == [(0.0, 1.0, 0.0)] * 10
    assert not report.flagged


@pytest.mark.parametrize("max_drift", [None, 2.0])
@pytest.mark.parametrize("why", DEGENERATE)
def test_a_map_that_became_degenerate_is_flagged_and_counts_as_drift_1(why: str, max_drift: float | None) -> None:
    report = compare(snapshot(MAP, MAP), snapshot(DEGENERATE[why], MAP), DriftRule(max_drift))
    assert report.alarm

    vanished, unchanged = report.probes
    assert (vanished.drift, vanished.top_iou, vanished.degenerate) == (1.0, 0.0, why)
    assert (vanished.has_valid_baseline, vanished.flagged) == (True, True)
    assert (vanished.center_shift, vanished.js_distance) == (1.0, 1.0)
    assert (unchanged.degenerate, unchanged.flagged) == ("", False)
    assert report.drift == pytest.approx(0.5)
    assert report.worst is vanished
    assert why in str(report)


@pytest.mark.parametrize("now", [MAP, DEGENERATE["all zero"]], ids=["valid now", "still degenerate"])
@pytest.mark.parametrize("why", DEGENERATE)
def test_a_probe_without_valid_baseline_is_not_flagged_and_counts_as_1_in_the_mean(why: str, now: Tensor) -> None:
    report = compare(snapshot(DEGENERATE[why], MAP), snapshot(now, 1 - MAP), DriftRule(0.5))

    unknown, inverted = report.probes
    assert (unknown.has_valid_baseline, unknown.flagged, unknown.drift) == (False, False, 1.0)
    assert unknown.degenerate == (why if now is MAP else "all zero")
    assert (unknown.baseline_state, unknown.state) == (why, "valid" if now is MAP else "all zero")
    assert report.flagged == [inverted]
    assert report.worst is inverted
    assert report.drift == pytest.approx((1.0 + 2.0) / 2)


def test_a_report_without_any_valid_baseline_is_finite() -> None:
    report = compare(snapshot(*DEGENERATE.values()), snapshot(*[MAP] * len(DEGENERATE)), DriftRule(0.1))
    assert report.drift == report.worst.drift == 1.0
    assert not report.flagged


@pytest.mark.parametrize(
    ("info", "field", "values"),
    [
        ({"digest": "e"}, "digest", ("d", "e")),
        ({"method": "layercam"}, "method", ("gradcam", "layercam")),
        ({"target": "contrast"}, "target", ("similarity", "contrast")),
        ({"score_scale": 100.0}, "score_scale", ("1.0", "100.0")),
        ({"scales": (1.0, 2.0)}, "scales", (r"\(1.0,\)", r"\(1.0, 2.0\)")),
        ({"flip": True}, "flip", ("False", "True")),
        ({"shift": True}, "shift", ("False", "True")),
        ({"precision": "bfloat16"}, "precision", ("float32", "bfloat16")),
        ({"fuse": "max"}, "fuse", ("mean", "max")),
        ({"layers": ("l", "m")}, "layers", ("'l'", "'m'")),
    ],
)
def test_snapshots_with_different_settings_are_refused_and_the_difference_is_named(
    info: dict[str, Any], field: str, values: tuple[str, str]
) -> None:
    with pytest.raises(IncomparableError, match=f"made with .*: {field} .*{values[0]}.*, now .*{values[1]}"):
        compare(snapshot(MAP), snapshot(MAP, **info))


def test_the_message_says_if_the_architectures_differ() -> None:
    other = snapshot(MAP, layers=("m",))
    other = replace(other, info=replace(other.info, fingerprint="g"))
    with pytest.raises(IncomparableError, match=r"layers \('l',\), now \('m',\)\. The two models are of different"):
        compare(snapshot(MAP), other)


def test_maps_on_different_grids_are_refused() -> None:
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


def test_a_probe_is_flagged_if_its_drift_is_above_the_limit() -> None:
    report = compare(
        snapshot(*[turned(0)] * 4), snapshot(*map(turned, (0, 59, 61, 180))), DriftRule(0.5)
    )  # cos 60 = .5
    assert [probe.drift for probe in report.probes] == pytest.approx(
        [1 - math.cos(math.radians(d)) for d in (0, 59, 61, 180)]
    )
    assert [probe.flagged for probe in report.probes] == [False, False, True, True]
    assert report.drift == pytest.approx(sum(probe.drift for probe in report.probes) / 4)


def test_the_message_names_the_largest_drift_first_and_at_most_three_probes() -> None:
    angles = (40, 90, 20, 180, 0, 60, 120, 150)
    report = compare(snapshot(*[turned(0)] * 8), snapshot(*map(turned, angles), step=12), DriftRule(0.05))

    assert [probe.name for probe in report.flagged] == list("dhgbfac")
    text = str(report)
    assert text.startswith("attention drifted on 7 of 8 probes at step 12 (baseline: step 0): ")
    places = [text.index(f"{name}: its map drifted by more than 0.05 (drift") for name in "dhg"]
    assert places == sorted(places)
    assert "b: its map" not in text
    assert text.endswith("; and 4 more")


def test_probes_are_ordered_flagged_first_unknown_last_then_by_drift() -> None:
    """The map of probe a drifts furthest, but within its noise floor; probe e has no valid baseline."""
    floor = torch.tensor([9.0, 0.1, 0.1, 0.1, 0.1])
    before = replace(snapshot(*[turned(0)] * 4, torch.zeros(2, 2)), noise_floor=floor)
    report = compare(before, snapshot(*map(turned, (180, 90, 10, 120, 0))))

    assert report.probes[0] is report.worst
    assert [report.probes[i].name for i in report.flagged_first] == list("dbace")
    assert [probe.name for probe in report.flagged] == list("db")
    assert 0 < str(report).index(" d: ") < str(report).index(" b: ")


def test_probes_of_equal_drift_keep_the_order_of_the_probe_set() -> None:
    report = compare(snapshot(*[turned(0)] * 4), snapshot(*[turned(90)] * 4), DriftRule(0.5))
    assert report.flagged_first == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("rule", "numbers"),
    [
        (
            DriftRule(),
            [
                "a false alarm in 1 % of the",
                "six or more objects",
                "less than 20 %",
                "7 %",
                "20 %",
                "18 %",
                "0.8",
            ],
        ),
        (DriftRule(false_alarm_rate=0.05), ["a false alarm in 5 % of the"]),
        (DriftRule(0.25), ["0.25"]),
    ],
    ids=["default", "rate", "max_drift"],
)
def test_a_rule_is_printed_with_one_clause_per_condition(rule: DriftRule, numbers: list[str]) -> None:
    clauses = str(rule).split("; or ")
    assert tuple(clauses) == rule.conditions
    assert [number for number in numbers if any(number in clause for clause in clauses)] == numbers


def test_the_message_says_if_there_is_no_alarm() -> None:
    text = str(compare(snapshot(MAP), snapshot(1 - MAP, step=5), DriftRule(2.0)))
    assert text == "no alarm at step 5; mean drift 2.00"


@pytest.mark.parametrize(("flagged", "verb"), [(1, "is"), (2, "are")])
def test_the_message_without_an_alarm_counts_the_flagged_probes(flagged: int, verb: str) -> None:
    now = snapshot(*[turned(90)] * flagged, *[turned(0)] * (8 - flagged))
    text = str(compare(snapshot(*[turned(0)] * 8), now))
    assert text.endswith(f"; {flagged} of 8 probes {verb} flagged")


def test_comparing_two_files_loads_no_model_library(tmp_path: Path) -> None:
    """Neither the code of the comparison nor that of its reports needs a model."""
    snapshot(MAP).save(tmp_path / "before")
    snapshot(1 - MAP).save(tmp_path / "now")
    heavy = ["lightning", "open_clip", "pytorch_lightning", "timm", "torchvision", "transformers"]
    program = f"""
import sys
from clipcam_lightning.cli import main
code = main(["compare", "before", "now", "--html", "report.html", "--json", "report.json"])
print(code, [name for name in {heavy} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "1 []"
    assert (tmp_path / "report.html").is_file()


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
    text, reason = str(report), "its map drifted by more than 1"
    # 5 % of six cells is one cell, rounded up: it gains 1 of the mass of 4.1.
    assert f"a: {reason} (drift 2.00, shared gain 24 %, energy on the object 0.75 -> 0.25)" in text
    assert f"b: {reason} (drift 2.00, shared gain 24 %)" in text


def test_a_signed_map_with_one_positive_cell_is_compared_by_all_of_its_cells() -> None:
    (probe,) = compare(snapshot(0.1 - MAP), snapshot(0.1 - MAP)).probes
    assert not probe.degenerate
    assert probe.drift == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("drift", "text"),
    [
        (0.0, "0.00"),
        (3e-8, "0.00"),
        (1.5e-4, "0.00015"),
        (0.0996, "0.100"),
        (0.0512, "0.051"),
        (0.1, "0.10"),
        (2.0, "2.00"),
    ],
)
def test_a_small_drift_is_formatted_with_two_digits_that_count(drift: float, text: str) -> None:
    assert format_drift(drift) == text


def test_the_message_shows_a_drift_above_a_small_limit() -> None:
    text = str(compare(snapshot(turned(0)), snapshot(turned(1.5)), DriftRule(1e-4)))
    assert "drifted by more than 0.0001 (drift 0.00034" in text


UNKNOWN = math.nan


def judge(
    drift: float = 0.0,
    noise_ratio: float = UNKNOWN,
    shared_gain: float = 0.0,
    concentration: float = 0.0,
    energy: tuple[float, float] = (UNKNOWN, UNKNOWN),
) -> tuple[float, str]:
    """Severity and reason by the default rule; ``energy`` is that before and that now."""
    before, now = energy
    severity, reason = DriftRule().judge(
        drift=drift,
        noise_ratio=noise_ratio,
        shared_gain=shared_gain,
        concentration=concentration,
        energy=now,
        energy_change=now - before,
    )
    return pytest.approx(severity, abs=1e-6), reason


CONCENTRATES = "attention concentrates where it does in the other images"
UNLIKE = "its map hardly resembles the baseline"
LEFT = "attention left the object"


def test_the_reason_is_the_shared_gain_or_the_drift_whichever_is_more_severe() -> None:
    assert judge(shared_gain=0.14) == (0.14 / MAX_SHARED_GAIN, CONCENTRATES)
    assert judge(drift=1.2) == (1.2 / MAX_DRIFT, UNLIKE)
    assert judge(drift=0.4, shared_gain=0.14) == (0.14 / MAX_SHARED_GAIN, CONCENTRATES)
    assert judge(drift=1.9, shared_gain=-0.3) == (1.9 / MAX_DRIFT, UNLIKE)
    assert judge(drift=0.4, shared_gain=UNKNOWN) == (0.4 / MAX_DRIFT, UNLIKE)  # a single probe


@pytest.mark.parametrize(("ratio", "severity"), [(0.9, 0.9), (1.5, 1.5), (50.0, 2.0), (UNKNOWN, 2.0)])
def test_the_severity_is_at_most_the_noise_ratio(ratio: float, severity: float) -> None:
    for values in (
        {"shared_gain": 2 * MAX_SHARED_GAIN},
        {"drift": 2 * MAX_DRIFT},
        {"energy": (0.5, 0.5 - MAX_ENERGY_LOSS), "concentration": 1.0},
    ):
        assert judge(**values, noise_ratio=ratio)[0] == severity  # type: ignore[arg-type]


def test_energy_must_leave_the_object_and_concentrate_in_one_spot() -> None:
    assert judge(energy=(0.5, 0.2), concentration=0.9) == (0.6 / MAX_ENERGY_LOSS, LEFT)
    assert judge(energy=(0.5, 0.2), concentration=0.2) == (0.2 / MAX_CONCENTRATION, LEFT)
    assert judge(energy=(0.5, 0.5), concentration=0.9)[0] == 0.0
    assert judge(energy=(0.9 * MIN_ENERGY, 0.0), concentration=0.9)[0] == 0.0  # there was hardly any energy to lose


def test_energy_gained_on_the_object_never_counts() -> None:
    assert judge(drift=1.5, shared_gain=0.3, energy=(0.2, 0.6))[0] == 0.0
    assert judge(drift=1.6, energy=(0.2, 0.2001)) == (2.0, UNLIKE)  # a tiny gain excuses nothing
    assert judge(shared_gain=0.3, energy=(0.2, 0.3)) == (0.2 / MAX_SHARED_GAIN, CONCENTRATES)  # 0.3 less the 0.1 gained


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


def test_maps_that_concentrate_at_one_place_are_an_alarm_and_each_at_its_own_place_are_not() -> None:
    before = snapshot(*[blob()] * 8)
    one_place = compare(before, snapshot(*[corner((9, 9), share=0.3)] * 8))
    own_places = compare(before, snapshot(*[corner((0, i), share=0.3) for i in range(8)]))

    assert one_place.alarm
    assert [(probe.shared_gain, probe.concentration, probe.reason) for probe in one_place.probes] == [
        (pytest.approx(0.3), pytest.approx(0.3), CONCENTRATES)
    ] * 8
    assert not own_places.alarm
    assert [probe.concentration for probe in own_places.probes] == [pytest.approx(0.3)] * 8


@pytest.mark.parametrize(("count", "enough"), [(1, 1), (2, 1), (3, 2), (4, 2), (8, 4), (9, 5)])
def test_an_alarm_needs_half_of_the_probes_flagged(count: int, enough: int) -> None:
    for flagged, alarm in ((enough, True), (enough - 1, False)):
        now = snapshot(*[turned(90)] * flagged, *[turned(0)] * (count - flagged))
        report = compare(snapshot(*[turned(0)] * count), now)
        assert (len(report.flagged), report.alarm) == (flagged, alarm)
        assert str(report).startswith("attention drifted on" if alarm else "no alarm")


def test_maps_that_became_degenerate_are_flagged_and_half_of_them_are_an_alarm() -> None:
    for count, alarm in ((3, False), (4, True)):
        now = snapshot(*[torch.zeros(2, 2)] * count, *[turned(0)] * (8 - count))
        report = compare(snapshot(*[turned(0)] * 8), now)
        assert (report.alarm, len(report.flagged)) == (alarm, count)
        assert {(probe.severity, probe.reason) for probe in report.flagged} == {(math.inf, "its map is all zero")}


def test_probes_with_the_same_image_do_not_count_for_each_other_s_shared_gain() -> None:
    before = replace(snapshot(*[blob()] * 4), images=(b"one", b"one", b"two", b"two"))
    now = snapshot(*[corner((0, 0), share=0.3)] * 2, *[corner((9, 9), share=0.3)] * 2)
    report = compare(before, now)
    assert [probe.shared_gain for probe in report.probes] == [pytest.approx(0, abs=1e-6)] * 4
    assert compare(replace(before, images=()), now).probes[0].shared_gain == pytest.approx(0.3)


def test_one_probe_above_max_drift_is_an_alarm() -> None:
    report = compare(snapshot(*[turned(0)] * 8), snapshot(turned(90), *[turned(0)] * 7), DriftRule(0.9))
    assert report.alarm
    assert report.severity == pytest.approx(1 / 0.9)


def test_an_evaluation_without_any_valid_baseline_is_no_alarm() -> None:
    report = compare(snapshot(torch.zeros(2, 3)), snapshot(MAP))
    assert (report.alarm, report.severity) == (False, 0.0)


def test_the_jensen_shannon_distance_equals_that_of_scipy() -> None:
    before, now = torch.rand(4, 7, 7), torch.rand(4, 7, 7) - 0.3
    report = compare(snapshot(*before), snapshot(*now))
    for probe, a, b in zip(report.probes, before, now, strict=True):
        expected = jensenshannon(a.flatten(), b.clamp_min(0).flatten(), base=2)
        assert probe.js_distance == pytest.approx(expected, abs=1e-5)


def with_background(before: list[float], now: list[float], prompts: str, named: list[int]) -> tuple[Snapshot, Snapshot]:
    """Two snapshots of maps that turned a little, with these scores and names of the background."""
    angles = [turned(30)] * len(now)
    baseline, later = snapshot(*[turned(0)] * len(now), names="p" * 99), snapshot(*angles, names="p" * 99, step=7)
    names = tuple(f"probe {i}" for i in range(len(now)))
    return tuple(
        replace(
            each,
            names=names,
            prompts=tuple(prompts),
            background_score=torch.tensor(scores),
            named_without_object=torch.tensor(flags, dtype=torch.float32),
        )
        for each, scores, flags in ((baseline, before, [0] * len(now)), (later, now, named))
    )  # type: ignore[return-value]


def test_one_prompt_of_many_whose_background_gains_is_an_alarm() -> None:
    gains = [3.0] * 4 + [0.0] * 28
    scores, prompts = [0.5 + gain for gain in gains], "aaaa" + "bcdefghi" * 3 + "jklm"
    before, now = with_background([0.5] * 32, scores, prompts, [1] * 3 + [0] * 29)

    report = compare(before, now)

    prompt_limit = 3.6 + 160 / 32**2
    assert report.evidence is not None
    assert report.evidence.prompt == "a"
    assert report.severity == report.evidence.gain_severity == pytest.approx(4 * 3 / 2 / prompt_limit)
    assert report.alarm
    assert [probe.name for probe in report.flagged] == ["probe 0", "probe 1", "probe 2"]  # 3 is not named
    assert "without the object, 3 of 4 images are still closest to 'a' (0 at the baseline)" in str(report)


def test_small_gains_of_all_prompts_together_are_an_alarm() -> None:
    before, now = with_background([0.0] * 16, [0.9] * 16, "abcdefgh" * 2, [1] * 8 + [0] * 8)

    report = compare(before, now)

    assert report.evidence is not None
    assert report.evidence.prompt == ""
    assert report.severity == report.evidence.gain_severity == pytest.approx(0.9 * 16 / 4 / (2.7 + 130 / 16**2))
    assert not report.flagged  # none by itself
    assert "8 of 16 images are still closest to their own prompts" in str(report)


def few_that_stand_out(count: int, rows: Sequence[int], gains: Sequence[float]) -> tuple[Snapshot, Snapshot]:
    """Two snapshots of many probes of eight prompts, with gains of few, which are named; and one without gain."""
    now, named = [0.0] * count, [0] * count
    for row, gain in zip(rows, gains, strict=True):
        now[row], named[row] = gain, 1
    named[-1] = 1
    return with_background([0.0] * count, now, "abcdefgh" * (count // 8), named)


@pytest.mark.parametrize(("rows", "prompt", "whose"), [((0, 1, 2), "", "their own prompts"), ((0, 8, 16), "a", "'a'")])
def test_three_of_many_probes_whose_background_gains_much_are_an_alarm(
    rows: tuple[int, ...], prompt: str, whose: str
) -> None:
    report = compare(*few_that_stand_out(256, rows, (3.5, 6.0, 4.0)))

    evidence = report.evidence
    assert evidence is not None
    assert (evidence.prompt, evidence.images, evidence.named_before) == (prompt, 3, 0)
    assert evidence.outstanding == tuple(f"probe {rows[i]}" for i in (1, 2, 0))  # the largest gain first
    assert report.severity == evidence.gain_severity == pytest.approx(4.5 / (3 + 160 / 256**2))
    names = ", ".join(evidence.outstanding)
    assert f"without the object, 3 of 256 images are now much closer to {whose}: {names}" in str(report)
    assert [probe.name for probe in report.probes if evidence.is_about(probe)] == [f"probe {row}" for row in rows]


def test_all_probes_beyond_the_limit_stand_out_and_three_are_named() -> None:
    report = compare(*few_that_stand_out(256, range(5), (4.0, 5.0, 6.0, 7.0, 2.9)))

    assert report.evidence is not None
    assert report.evidence.images == 4  # the fifth is not beyond the limit
    assert report.evidence.gain_severity == pytest.approx(6 / (3 + 160 / 256**2))
    assert "4 of 256 images are now much closer to their own prompts: probe 3, probe 2, probe 1 and 1 more" in str(
        report
    )


def test_the_limit_of_the_largest_gains_grows_with_the_number_of_probes_and_little_with_a_smaller_rate() -> None:
    severities = {
        (count, rate): DriftRule(false_alarm_rate=rate).rate_gain(1.0, count)
        for count in (256, 10_000)
        for rate in (0.01, 0.05)
    }

    growth = math.sqrt(math.log(10_000) / math.log(256))
    assert severities[256, 0.01] / severities[10_000, 0.01] == pytest.approx(growth, rel=1e-3)
    assert severities[256, 0.05] / severities[256, 0.01] == pytest.approx(5**0.1)
    torch.manual_seed(0)
    largest = {count: torch.randn(400, count).topk(3, dim=1).values.mean(1) for count in (256, 10_000)}
    above = {
        count: fmean(DriftRule().rate_gain(float(gain), count) > 1 for gain in gains)
        for count, gains in largest.items()
    }
    assert above[10_000] < above[256] + 0.1


def test_few_probes_below_their_limit_do_not_hide_that_a_prompt_is_suspicious() -> None:
    report = compare(*few_that_stand_out(256, range(0, 56, 8), [2.2] * 3 + [1.97] * 4))  # of prompt a

    assert report.evidence is not None
    assert report.evidence.outstanding
    assert not report.evidence.suspicious
    assert report.suspicious


def test_an_alarm_about_few_probes_is_another_than_one_about_all() -> None:
    few = compare(*few_that_stand_out(256, (0, 1, 2), (4.0, 4.0, 4.0)))
    all_probes = compare(*with_background([0.0] * 256, [2.0] * 256, "abcdefgh" * 32, [1] * 256))

    assert few.finding == all_probes.finding
    assert few.subject != all_probes.subject


@pytest.mark.parametrize(("gain", "named"), [(-7.0, 1), (9.0, 0)], ids=["the third lost", "the third is not named"])
def test_two_of_many_probes_whose_background_gains_much_are_no_alarm(gain: float, named: int) -> None:
    before, now = with_background(
        [0.0] * 256, [9.0, 9.0, gain, *[0.0] * 253], "abcdefgh" * 32, [1, 1, named] + [0] * 253
    )

    assert not compare(before, now).alarm


def test_losses_and_noise_of_the_background_are_no_alarm() -> None:
    for gains in ([-5.0] * 16, [1.0, -1.0] * 8):
        before, now = with_background([0.0] * 16, gains, "abcdefgh" * 2, [1] * 16)
        assert not compare(before, now).alarm


@pytest.mark.parametrize(
    ("named_before", "named", "alarm"),
    [([0, 1, 8, 9], [2, 3, 10, 11], True), ([0, 1, 8, 9], [0, 8], False), ([], [], False)],
    ids=["others as often", "less often", "never"],
)
def test_gains_are_an_alarm_if_as_many_images_are_named_as_at_the_baseline(
    named_before: list[int], named: list[int], alarm: bool
) -> None:
    flags = [int(i in named) for i in range(16)]
    before, now = with_background([0.0] * 16, [9.0] * 16, "a" * 8 + "b" * 8, flags)
    at_baseline = torch.tensor([float(i in named_before) for i in range(16)])

    report = compare(replace(before, named_without_object=at_baseline), now)

    assert report.alarm is alarm
    message = "without the object, 16 images are on average closer to their own prompts than at the baseline"
    assert (message in str(report)) is alarm


@pytest.mark.parametrize(
    ("before", "now", "gain"), [(-9.0, 0.5, 0.5), (-9.0, -3.0, 0.0), (2.0, -3.0, -2.0), (2.0, 3.0, 1.0)]
)
def test_negative_scores_of_a_background_count_as_0(before: float, now: float, gain: float) -> None:
    report = compare(*with_background([before] * 16, [now] * 16, "abcdefgh" * 2, [1] * 16))

    assert [probe.background_gain for probe in report.probes] == [gain] * 16
    assert [probe.background_score_before for probe in report.probes] == [before] * 16


def test_an_unchanged_background_says_nothing() -> None:
    scores = [-20.0, 5.0, 0.0, 1.0] * 4
    before, now = with_background(scores, scores, "abcdefgh" * 2, [1] * 16)

    assert compare(replace(before, named_without_object=now.named_without_object), now).evidence is None


def test_an_image_that_is_named_as_at_the_baseline_is_said_to_be_closer() -> None:
    before, now = with_background([0.0] * 16, [9.0] + [0.0] * 15, "abcdefghijklmnop", [1] + [0] * 15)

    report = compare(replace(before, named_without_object=now.named_without_object), now)

    assert "without the object, the image is closer to 'a' than at the baseline" in str(report)


def test_evidence_that_does_not_suffice_is_not_what_an_alarm_is_about() -> None:
    """Otherwise an alarm that rests on something else would be repeated as the evidence changes."""
    degenerate = torch.zeros(16, 2, 2)
    subjects = set()
    for prompt in range(3):
        scores = [1.0 if i == prompt else 0.0 for i in range(16)]
        before, now = with_background([0.0] * 16, scores, "abcdefghijklmnop", [1] * 16)
        report = compare(before, replace(now, maps=degenerate))
        assert report.evidence is not None
        subjects.add(report.subject)

    assert len(subjects) == 1


def test_a_larger_false_alarm_rate_lowers_the_limits() -> None:
    before, now = with_background([0.0] * 16, [0.7] * 16, "abcdefgh" * 2, [1] * 16)

    severities = [compare(before, now, DriftRule(false_alarm_rate=rate)).severity for rate in (0.001, 0.01, 0.05, 0.2)]

    assert severities == sorted(severities)
    assert severities[2] / severities[1] == pytest.approx(5**0.3)


def few_with_transplants(gains: Sequence[float], followed: Sequence[int]) -> tuple[Snapshot, Snapshot]:
    """Two snapshots of 256 probes of which some gained: with two objects on each ground, and six on theirs now.

    Args:
        gains: of the first probes.
        followed: how many of the six objects are called after the ground of each.
    """
    before, now = few_that_stand_out(256, range(len(gains)), gains)
    donors = torch.full((256, 6), NONE)
    donors[:, :2] = 15  # of a prompt of its own
    given = donors.clone()
    given[: len(gains)] = 15
    named = given.clone()
    for i, count in enumerate(followed):
        named[i, :count] = i
    return (
        replace(before, donors=donors, transplants_named=donors),
        replace(now, donors=given, transplants_named=named),
    )


@pytest.mark.parametrize(("gain", "followed", "shown"), [(2.3, 6, True), (2.3, 2, False), (2.2, 6, False)])
def test_few_grounds_that_gained_much_and_pull_other_objects_are_an_alarm(
    gain: float, followed: int, shown: bool
) -> None:
    report = compare(*few_with_transplants([gain] * 3, [followed] * 3))

    assert report.evidence is not None
    assert (report.evidence.transplants, report.evidence.followed) == (18, 3 * followed)
    assert report.alarm is report.evidence.shown is shown
    named = "18 of 18 other objects on the backgrounds of probe 0, probe 1, probe 2 now get their prompts"
    assert (f"{named} (0 of 6 before)" in str(report)) is shown


def test_the_few_grounds_that_pull_most_are_shown_rather_than_those_that_gained_most() -> None:
    report = compare(*few_with_transplants([2.8, 2.7, 2.6, 2.2, 2.1, 2.0], [0, 0, 0, 6, 6, 5]))

    assert report.evidence is not None
    assert report.evidence.outstanding == ("probe 3", "probe 4", "probe 5")
    assert report.evidence.followed == 17
    expected = (2.2 + 2.1 + 2.0 * 5 / 6) / 3 / (1.3 + 80 / 256**2)
    assert report.evidence.pull_severity == pytest.approx(expected)


def test_few_grounds_of_one_prompt_are_said_to_give_it() -> None:
    before, now = few_that_stand_out(256, range(0, 24, 8), [3.0] * 3)
    donors = torch.full((256, 6), 15)
    named = donors.clone()
    named[0:24:8] = 0
    before, now = (
        replace(each, donors=donors, transplants_named=called) for each, called in ((before, donors), (now, named))
    )

    assert (
        "18 of 18 other objects on the backgrounds of probe 0, probe 8, probe 16 are now called 'a' (0 before)"
    ) in str(compare(before, now))


def test_a_suspicion_of_few_grounds_is_withdrawn_if_they_do_not_pull() -> None:
    before, now = few_with_transplants([5.0] * 3, [0] * 3)

    assert not compare(before, now).alarm
    assert compare(before, replace(now, donors=None, transplants_named=None)).alarm
    assert compare(replace(before, donors=None, transplants_named=None), now).alarm, "what pulled before is not known"


def test_all_grounds_whose_gains_and_pulls_are_beyond_the_limit_are_named() -> None:
    evidence = compare(*few_with_transplants([5.0] * 5, [6, 0, 6, 6, 6])).evidence

    assert evidence is not None
    assert evidence.outstanding == ("probe 0", "probe 2", "probe 3", "probe 4")


def test_many_images_of_a_prompt_that_stand_out_are_no_alarm_if_other_objects_keep_their_names() -> None:
    before, now = few_that_stand_out(256, range(0, 160, 8), [5.5] * 20)
    donors = torch.full((256, 6), 15)
    before, now = (replace(each, donors=donors, transplants_named=donors) for each in (before, now))

    assert compare(before, replace(now, donors=None, transplants_named=None)).alarm
    assert not compare(before, now).alarm


@pytest.mark.parametrize(
    ("covered", "control", "said"),
    [
        ([0.3, 0.1, math.nan], [0.02, 0.0, math.nan], "covering what 2 maps turned to costs 0.200 of similarity"),
        ([0.3, math.nan, math.nan], [-0.0001, math.nan, math.nan], "covering what a map turned to costs 0.300"),
        ([0.3, 0.1, 0.2], [0.3, 0.1, 0.2], ""),  # no more than another place
        ([0.001] * 3, [0.0] * 3, ""),
        ([-0.2] * 3, [-0.4] * 3, ""),
        ([math.nan] * 3, [math.nan] * 3, ""),
    ],
)
def test_what_covering_a_place_costs_is_said_if_it_supports_the_alarm(
    covered: list[float], control: list[float], said: str
) -> None:
    before, now = few_that_stand_out(256, range(3), [5.0] * 3)
    rest = [math.nan] * 253

    report = compare(
        before, replace(now, covered_loss=torch.tensor(covered + rest), control_loss=torch.tensor(control + rest))
    )

    assert report.evidence is not None
    assert report.evidence.covered == sum(not math.isnan(loss) for loss in covered)
    assert ("; covering" in str(report)) is bool(said)
    assert said in str(report)
    assert "another place -" not in str(report)


def test_losses_of_a_map_that_did_not_move_from_this_baseline_are_unknown() -> None:
    _, now = few_that_stand_out(256, range(3), [5.0] * 3)
    now = replace(now, covered_loss=torch.ones(256), control_loss=torch.ones(256))

    assert all(math.isnan(probe.covered_loss) for probe in compare(now, now).probes)


def test_the_background_does_not_count_where_max_drift_decides() -> None:
    before, now = with_background([0.0] * 16, [9.0] * 16, "abcdefgh" * 2, [1] * 16)

    report = compare(before, now, DriftRule(1.9))

    assert report.evidence is None
    assert not report.alarm


def test_an_unknown_background_leaves_the_conditions_of_the_maps() -> None:
    before, now = with_background([math.nan] * 4, [math.nan] * 4, "aaaa", [0] * 4)

    report = compare(before, now)

    assert report.evidence is None
    assert math.isnan(report.probes[0].background_gain)
    assert report.severity == max(probe.severity for probe in report.probes)


def with_transplants(named: list[list[int]], named_before: list[list[int]]) -> tuple[Snapshot, Snapshot]:
    """Two snapshots of four prompts with two probes each, in which the background of prompt ``a`` is suspicious."""
    before, now = with_background([0.0] * 8, [9.0] * 2 + [0.0] * 6, "aabbccdd", [1] * 2 + [0] * 6)
    donors = torch.tensor([[2, 4, 6]] * 2 + [[4, 6, 0]] * 2 + [[6, 0, 2]] * 2 + [[0, 2, 4]] * 2)
    return (
        replace(before, donors=donors, transplants_named=torch.tensor(named_before)),
        replace(now, donors=donors, transplants_named=torch.tensor(named)),
    )


AFTER_OBJECT = [[2, 4, 6]] * 2 + [[4, 6, 0]] * 2 + [[6, 0, 2]] * 2 + [[0, 2, 4]] * 2
"""Every transplant is named after its object."""


def test_a_background_that_other_objects_are_called_after_is_shown() -> None:
    after_ground = [[0, 1, 6], [1, 0, 0], *AFTER_OBJECT[2:]]  # five of six are closest to prompt a

    report = compare(*with_transplants(after_ground, AFTER_OBJECT))

    evidence = report.evidence
    assert evidence is not None
    assert (evidence.prompt, evidence.transplants, evidence.followed, evidence.followed_before) == ("a", 6, 5, 0)
    assert evidence.pull == pytest.approx(5 / 6)  # nothing else is called a without its object or ground
    assert evidence.pull_severity == pytest.approx((5 / 6) / (0.2 + 2 / 6))
    assert evidence.shown
    assert report.finding == "the background predicts the prompt"
    assert "5 of 6 other objects on the background of 'a' are now called 'a' (0 before)" in str(report)


def test_a_prompt_that_is_called_on_every_ground_is_not_told_by_its_background() -> None:
    report = compare(*with_transplants([[0, 0, 0]] * 8, AFTER_OBJECT))

    assert report.evidence is not None
    assert report.evidence.followed == 6
    assert report.evidence.pull == 0
    assert not report.evidence.shown
    assert not report.alarm


@pytest.mark.parametrize(("count", "alarm"), [(5, True), (6, False)], ids=["5 objects", "6 objects"])
def test_a_suspicion_is_withdrawn_if_enough_other_objects_keep_their_names(count: int, alarm: bool) -> None:
    # A probe of each of nine prompts; objects of the others on each ground, named after the object.
    donors = torch.tensor([[j for j in range(9) if j != i][:count] for i in range(9)])
    before, now = with_background([0.0] * 9, [9.0] + [0.0] * 8, "abcdefghi", [1] + [0] * 8)
    before, now = (replace(each, donors=donors, transplants_named=donors) for each in (before, now))

    evidence = compare(before, now).evidence

    assert evidence is not None
    assert evidence.gain_severity > 1
    assert evidence.transplants == count
    assert (evidence.severity > 1) is alarm


def test_what_was_so_at_the_baseline_is_not_shown() -> None:
    after_ground = [[0, 1, 6], [1, 0, 0], *AFTER_OBJECT[2:]]

    report = compare(*with_transplants(after_ground, after_ground))

    assert report.evidence is not None
    assert not report.evidence.shown


def test_a_pull_without_suspicion_does_not_count() -> None:
    before, now = with_transplants([[0, 1, 6], [1, 0, 0], *AFTER_OBJECT[2:]], AFTER_OBJECT)

    report = compare(before, replace(now, background_score=torch.full((8,), 0.1)))

    assert not report.suspicious
    assert not report.alarm


def with_closest(prompts: str, now: list[int], before: list[int]) -> tuple[Snapshot, Snapshot]:
    """Two snapshots whose images are closest to the prompts of the given probes."""
    same = replace(snapshot(*[turned(0)] * len(prompts), names=ascii_lowercase), prompts=tuple(prompts))
    return replace(same, closest=torch.tensor(before)), replace(same, closest=torch.tensor(now))


@pytest.mark.parametrize(("recognized", "alarm"), [(24, False), (9, False), (8, False), (7, True), (0, True)])
def test_a_model_has_collapsed_if_it_recognizes_less_than_a_fifth_of_the_images_beyond_chance(
    recognized: int, alarm: bool
) -> None:
    """The standard error is that of Cohen 1960, for images of which a quarter is recognized by chance."""
    prompts = "abcd" * 6
    named = [*range(recognized), *((i + 1) % 24 for i in range(recognized, 24))]
    before, now = with_closest(prompts, named, [*range(24)])

    report = compare(before, now)

    assert report.collapse is not None
    kappa = cohen_kappa_score([*prompts], [prompts[i] for i in named])
    share = recognized / 24
    error = math.sqrt(share * (1 - share) / 24) / 0.75
    assert report.collapse.severity == pytest.approx(max(0, 1 - kappa - error) / 0.8)
    assert report.alarm is alarm
    assert alarm == (kappa + error < 0.2)
    text = f"{recognized} of 24 images are closest to their own prompts (24 at the baseline)"
    assert (text in str(report)) == alarm
    assert (report.finding == "the model hardly distinguishes the prompts of the probes") == alarm
    assert not report.suspicious, "no other object is needed to say so"


def test_a_collapse_is_of_the_images_that_were_recognized() -> None:
    before, now = with_closest("aaabbbcccddd", [6] * 12, [*range(9), 0, 0, 0])

    collapse = compare(before, now).collapse

    assert collapse is not None
    assert (collapse.images, collapse.recognized, collapse.recognized_before) == (12, 3, 9)
    assert collapse.severity == pytest.approx(1.25), "3 of 12 are right by chance"


def test_a_single_recognized_image_is_one() -> None:
    before, now = with_closest("abcdefghijkl", [0, *[0] * 11], [*range(12)])

    assert "1 of 12 images is closest to its own prompt (12 at the baseline)" in str(compare(before, now))


@pytest.mark.parametrize(
    ("prompts", "named_before"),
    [
        ("abc", [0, 1, 2]),  # by chance in one of 27 cases
        ("abab", [0, 1, 2, 3]),
        ("aaabbbcccddd", [0, 1, 2, *[0] * 9]),  # as many as by chance
        ("aaaa", [0, 1, 2, 3]),  # of one prompt there is nothing to tell apart
    ],
)
def test_a_model_that_may_have_been_right_by_chance_cannot_collapse(prompts: str, named_before: list[int]) -> None:
    wrong = [(i + len(prompts) - 1) % len(prompts) for i in range(len(prompts))]

    report = compare(*with_closest(prompts, wrong, named_before))

    assert report.collapse is None
    assert not report.alarm


def test_a_model_that_calls_everything_by_the_most_frequent_prompt_has_collapsed() -> None:
    report = compare(*with_closest("a" * 10 + "bcdefghij", [0] * 19, [*range(19)]))

    assert report.collapse is not None
    assert report.collapse.recognized == 10
    assert report.collapse.severity == pytest.approx(1.25)


def test_without_closest_prompts_a_collapse_is_unknown() -> None:
    before, now = with_closest("aabbccdd", [0] * 8, [*range(8)])

    assert compare(before, now).collapse is not None
    assert compare(replace(before, closest=None), now).collapse is None
    assert compare(before, replace(now, closest=None)).collapse is None
    assert compare(before, now, DriftRule(max_drift=0.5)).collapse is None


def test_maps_that_were_never_on_the_objects_raise_no_alarm_by_themselves() -> None:
    before, now = snapshot(*[turned(0)] * 4), snapshot(*[turned(90)] * 4)
    distrusted = replace(before, map_agrees=torch.tensor([1.0, 0.0, 0.0, 0.0]))

    assert compare(before, now).alarm
    assert compare(replace(before, map_agrees=torch.tensor([1.0, 0.0, 1.0, 0.0])), now).alarm
    assert not compare(distrusted, now).alarm
    assert compare(distrusted, now, DriftRule(0.5)).alarm, "max_drift is a limit on the maps, whatever they are"


def test_many_probes_with_a_gain_of_their_own_are_rated_together() -> None:
    """Half of the probes are flagged, but their gains add up to less than chance allows for so few."""
    before, now = with_background([0.0] * 8, [1.6] * 4 + [-1.0] * 4, "abcdefgh", [1] * 4 + [0] * 4)

    report = compare(before, now)

    assert len(report.flagged) == 4
    assert not report.alarm


@pytest.mark.parametrize("rate", [0.0, -0.1, 0.21, math.nan])
def test_a_false_alarm_rate_out_of_range_is_refused(rate: Any) -> None:
    with pytest.raises(ConfigError, match=r"false_alarm_rate must be above 0 and at most 0\.2"):
        DriftRule(false_alarm_rate=rate)


def test_only_maps_with_masks_are_said_to_be_on_the_objects() -> None:
    """Occlusion says what a model uses, not what the object is."""
    maps = torch.rand(4, 5, 5)
    agrees = torch.tensor([1.0, 0.0, 1.0, 1.0])
    masked = replace(snapshot(*maps), map_agrees=agrees, energy_inside_mask=torch.tensor([0.5, 0.5, 0.5, 0.5]))
    unmasked = replace(masked, energy_inside_mask=torch.full((4,), torch.nan))
    some = replace(masked, energy_inside_mask=torch.tensor([0.5, torch.nan, torch.nan, torch.nan]))

    assert masked.map_agreement == "3 of 4 maps are on the objects"
    assert unmasked.map_agreement == "3 of 4 maps agree with occlusion"
    assert some.map_agreement == "1 of 1 maps are on the objects and 2 of 3 maps agree with occlusion"
