"""Reports of a comparison as plain values for JSON, and back."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from clipcam_lightning.cam.map_state import MapState
from clipcam_lightning.drift.probe_drift import ProbeDrift
from clipcam_lightning.drift.report import DriftReport
from clipcam_lightning.drift.rule import DriftRule
from clipcam_lightning.drift.transplants import Transplants

TEXTS = ("name", "prompt", "closest_prompt", "closest_prompt_before", "reason")
"""Fields of a probe that are texts; the others are numbers, states and counts."""

DIGITS = 7  # of a number: those of float32, in which maps are; more would double the history of thousands of probes


def report_as_json(report: DriftReport) -> dict[str, Any]:
    """Convert a comparison to values that JSON can represent.

    Args:
        report: of :func:`~clipcam_lightning.drift.compare.compare`.

    Returns:
        A summary, and one entry per probe in the order of the probe set, numbers with seven significant digits.
        Unknown values (NaN) are ``None``, infinite ones ``"inf"``.

    Example:
        >>> from clipcam_lightning import evaluate, report_as_json
        >>> from clipcam_lightning.shapes_world import WordTokenizer, draw_scenes, trained_clip
        >>> scenes = draw_scenes(2)
        >>> probes = list(zip(scenes.images, scenes.captions))
        >>> evaluation = evaluate(trained_clip("vit"), probes, tokenizer=WordTokenizer())
        >>> report_as_json(evaluation.report)["summary"]
        'no alarm at step 0; mean drift 0.00'
    """
    return {
        "alarm": report.alarm,
        "severity": _to_json(report.severity),
        "summary": str(report),
        "finding": report.finding,
        "grounds": report.grounds,
        "evidence": _values_to_json(asdict(report.evidence)) if report.evidence else None,
        "rule": str(report.rule),
        **asdict(report.rule),
        "step": report.step,
        "baseline_step": report.baseline_step,
        "drift": _to_json(report.drift),
        "worst": report.worst.name,
        "flagged": [probe.name for probe in report.flagged],
        "probes": [_values_to_json({**asdict(probe), "flagged": probe.flagged}) for probe in report.probes],
    }


def report_from_json(values: Mapping[str, Any]) -> DriftReport:
    """Invert :func:`report_as_json`, up to the digits that it keeps.

    Args:
        values: with ``max_drift``, ``false_alarm_rate``, ``step``, ``baseline_step`` and ``probes``; all other values
            follow from these.

    Raises:
        KeyError, TypeError, ValueError: they are not those of a comparison.
    """
    step, baseline_step, probes = values["step"], values["baseline_step"], values["probes"]
    if not type(step) is type(baseline_step) is int:
        raise TypeError("step and baseline_step must be integers")
    if not isinstance(probes, list) or not probes:
        raise ValueError("probes must be a list of at least one")
    rule = DriftRule(values["max_drift"], values["false_alarm_rate"])
    return DriftReport(tuple(map(_probe_from_json, probes)), rule, step, baseline_step)


def _probe_from_json(values: Any) -> ProbeDrift:
    if not isinstance(values, dict):
        raise TypeError("a probe must be an object")
    fields = {name: value for name, value in values.items() if name != "flagged"}
    return ProbeDrift(**{name: _field_from_json(name, value) for name, value in fields.items()})


def _field_from_json(name: str, value: Any) -> Any:
    if name in TEXTS:
        if not isinstance(value, str):
            raise TypeError(f"{name} must be a text")
        return value
    if name in ("state", "baseline_state"):
        return MapState(value)
    if name in ("transplants", "transplants_before"):
        return Transplants(**value)
    return math.nan if value is None else float(value)


def _values_to_json(values: dict[str, Any]) -> dict[str, Any]:
    return {name: _to_json(value) for name, value in values.items()}


def _to_json(value: Any) -> Any:
    if isinstance(value, dict):
        return _values_to_json(value)
    if isinstance(value, tuple):
        return list(value)
    if not isinstance(value, float):
        return value
    if math.isnan(value):
        return None
    return str(value) if math.isinf(value) else _round(value)


def _round(value: float) -> float:
    """Round to the digits that are kept, but never onto or across 1, above which a severity is an alarm."""
    rounded = float(f"{value:.{DIGITS}g}")
    return value if (rounded > 1) != (value > 1) else rounded
