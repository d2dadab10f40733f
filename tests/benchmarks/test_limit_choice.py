"""Changed limits are judged with the same evaluations, and counted by what a run is."""

from dataclasses import replace
from itertools import cycle
from unittest.mock import patch

import pytest

from benchmarks.drift_runs import Run
from benchmarks.finetunes import FineTune
from benchmarks.limit_choice import AS_IT_IS, FACTORS, LIMITS, settings, summarize
from clipcam_lightning.drift import rule
from tests.support.shortcuts import shortcut_evaluations


def test_each_limit_is_multiplied_by_each_factor() -> None:
    changes = list(settings())

    assert changes[0][0] == AS_IT_IS
    limits = [(module, name) for module, names in LIMITS.items() for name in names for _ in FACTORS]
    assert [(module, name) for _, module, name, _ in changes[1:]] == limits
    for (_, module, name, value), factor in zip(changes[1:], cycle(FACTORS), strict=False):
        assert value == factor * getattr(module, name)
    assert len({title for title, *_ in changes}) == len(changes)


@pytest.mark.parametrize(
    ("kind", "used", "counts"),
    [
        ("stamp", 1, {"used": 1, "detected": True, "shown": True}),
        ("stamp", 2, {"used": 1, "detected": False, "shown": False}),  # the alarm came before
        ("usual", None, {"evaluations": 2, "false": 1, "suspicious": 1}),
        ("collapse by rate", None, {"collapses": 1, "collapses detected": True}),
    ],
)
def test_alarms_are_counted_by_what_the_run_is(kind: str, used: int | None, counts: dict[str, int]) -> None:
    unchanged, alarm = (each.report for each in shortcut_evaluations())

    assert summarize(Run(FineTune("shapes", "class token", kind, 1000), used, False, {}), [alarm, unchanged]) == counts


def test_a_report_that_is_copied_follows_a_changed_limit() -> None:
    report = shortcut_evaluations()[1].report
    severity = report.severity

    with patch.object(rule, "PROMPT_PULL", 10.0), patch.object(rule, "WHOLE_PULL", 10.0):
        assert replace(report).severity < severity == report.severity
