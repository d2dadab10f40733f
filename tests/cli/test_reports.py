"""What ``clipcam compare`` and ``clipcam check`` print of a comparison."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from clipcam_lightning.cli.reports import report_on
from clipcam_lightning.cli.terminal import TEXT_WIDTH
from clipcam_lightning.drift.compare import compare
from clipcam_lightning.drift.rule import DriftRule
from clipcam_lightning.drift.snapshot import Snapshot
from clipcam_lightning.visualization.report import METRICS
from tests.support.synthetic_evaluations import snapshot_of

NAMES = ("cat", "dog")
LEFT, RIGHT = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]])


def snapshot(*maps: Tensor) -> Snapshot:
    return snapshot_of(torch.stack(maps), NAMES, NAMES, NAMES)


def printed(
    before: Snapshot, now: Snapshot, rule: DriftRule, capsys: pytest.CaptureFixture[str]
) -> tuple[int, list[str]]:
    code = report_on(before, now, compare(before, now, rule), json_file=None, html_file=None)
    return code, capsys.readouterr().out.splitlines()


def test_the_rule_is_printed_below_an_alarm_with_one_condition_per_item(capsys: pytest.CaptureFixture[str]) -> None:
    rule = DriftRule()

    code, lines = printed(snapshot(LEFT, LEFT), snapshot(RIGHT, RIGHT), rule, capsys)

    start = lines.index("an alarm means that")
    assert code == 1
    assert lines[start - 1].startswith("attention drifted on 2 of 2 probes")
    rule_lines = lines[start + 1 :]
    assert max(map(len, rule_lines)) <= TEXT_WIDTH
    items = " ".join(line.strip() for line in rule_lines).removeprefix("- ").removesuffix(".").split("; or - ")
    assert items == list(rule.conditions)


def test_each_column_with_a_metric_is_explained_below_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    before = snapshot(LEFT, LEFT)

    _, lines = printed(before, before, DriftRule(), capsys)

    table_end = max(i for i, line in enumerate(lines) if line.startswith("└"))
    text = " ".join(line.strip() for line in lines[table_end + 1 : -1])
    assert text == " ".join(f"{name}: {METRICS[name]}" for name in ("Drift", "Drift / noise floor", "Shared gain"))


def test_without_alarm_there_is_one_line_and_no_rule(capsys: pytest.CaptureFixture[str]) -> None:
    before = snapshot(LEFT, LEFT)

    code, lines = printed(before, before, DriftRule(), capsys)

    assert (code, lines[-1]) == (0, "no alarm at step 0; mean drift 0.00")
    assert not any("alarm means" in line for line in lines)


def test_a_drift_just_above_a_small_limit_is_printed_with_enough_digits(capsys: pytest.CaptureFixture[str]) -> None:
    nudged = LEFT + torch.tensor([[0.0, 0.0], [0.0, 0.02]])
    drift = compare(snapshot(LEFT, LEFT), snapshot(nudged, LEFT)).probes[0].drift
    assert 1e-5 < drift < 1e-3

    code, lines = printed(snapshot(LEFT, LEFT), snapshot(nudged, LEFT), DriftRule(1e-5), capsys)

    row = next(line for line in lines if "cat" in line)
    shown = row.replace("│", " ").split()[1]
    assert (code, float(shown)) == (1, pytest.approx(drift, rel=0.05))
    assert f"(drift {shown}" in next(line for line in lines if line.startswith("attention drifted"))


def test_a_map_that_vanished_is_described_in_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    before, now = snapshot(LEFT, LEFT), snapshot(-LEFT, LEFT)
    _, lines = printed(before, now, DriftRule(), capsys)
    row = next(line for line in lines if "cat" in line)
    assert "its map is nowhere positive; nothing in this image raises the similarity" in row

    _, lines = printed(replace(now, info=before.info), before, DriftRule(), capsys)
    assert "no valid baseline: nowhere positive" in next(line for line in lines if "cat" in line)
