"""Encode what the page requests: arrays and JSON in one safetensors file, which a browser parses without a library."""

import json
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import cmap
import numpy as np
from jaxtyping import Int32
from safetensors.numpy import save

from clipcam_lightning.tensorboard_tab import events
from clipcam_lightning.tensorboard_tab.runs import Evaluations, Rows

HEAT_COLORS, CHANGE_COLORS = (
    ("inferno", "viridis", "magma", "turbo", "gray"),
    "crameri:vik",
)  # first the defaults of the logged images
UNKNOWN = -(2**31)  # in ``baseline``: the map that an evaluation is compared with is not available
_DRIFT, _SIMILARITY, _FLAGGED = (events.COLUMNS.index(name) for name in ("drift", "similarity", "flagged"))


def encode_evaluations(evaluations: Evaluations, names: Sequence[str], rows: Rows) -> bytes:
    """Encode the metrics of all evaluations of a run and the maps of the probes that are shown first.

    Args:
        evaluations: of the run.
        names: of the probes in ``rows``.
        rows: maps and images of these probes.

    Returns:
        A safetensors file.
    """
    descriptions = evaluations.descriptions
    last = descriptions[-1]
    about = {
        "probes": {key: evaluations.probes[key] for key in ("names", "prompts", "digests", "visible")},
        "rule": str(evaluations.probes.get("rule", "")),
        "settings": {key: last[key] for key in ("method", "target", "layers")},
        "metrics": events.COLUMNS,
        "reasons": [description["reason"] for description in descriptions],
        "notes": [description["notes"] for description in descriptions],
        "states": [description["states"] for description in descriptions],
        "baseline_states": [description["baseline_states"] for description in descriptions],
        "state_words": {name: words for each in descriptions for name, words in each["state_words"].items()},
        "grounds": [description["grounds"] for description in descriptions],
        "left_out": evaluations.left_out,
    }
    arrays = {
        "epoch": np.array([description["epoch"] for description in descriptions], np.float64),
        "baseline_step": np.array([description["baseline_step"] for description in descriptions], np.float64),
        "baseline": _baseline_indices(evaluations),
        "alarm": np.array([description["alarm"] for description in descriptions], np.uint8),
        "drift": evaluations.metrics[:, :, _DRIFT].T,
        "similarity": evaluations.metrics[:, :, _SIMILARITY].T,
        "flagged": (evaluations.metrics[:, :, _FLAGGED].T > 0).astype(np.uint8),
    }
    return _encode({**arrays, **_row_arrays(evaluations, names, rows)}, {**about, "rows": names})


def encode_rows(evaluations: Evaluations, names: Sequence[str], rows: Rows) -> bytes:
    """Encode maps, images and all metrics of some probes, and the times by which the page detects stale rows.

    Args:
        evaluations: of the run.
        names: of the probes in ``rows``.
        rows: maps and images of these probes.

    Returns:
        A safetensors file.
    """
    return _encode(_row_arrays(evaluations, names, rows), {"rows": names})


def encode_colors() -> bytes:
    """Encode 256 RGB colours of each colour map as a safetensors file."""
    tables = {name: cmap.Colormap(name).lut(256)[:, :3] for name in (*HEAT_COLORS, CHANGE_COLORS)}
    colors = {name: (table * 255).round().astype(np.uint8) for name, table in tables.items()}
    return _encode(colors, {"heat": HEAT_COLORS, "change": CHANGE_COLORS})


def _row_arrays(evaluations: Evaluations, names: Sequence[str], rows: Rows) -> dict[str, np.ndarray]:
    indices = [evaluations.probes["names"].index(name) for name in names]
    arrays = {
        "step": np.array([step for step, _ in evaluations.moments], np.float64),
        "wall_time": np.array([wall_time for _, wall_time in evaluations.moments]),
        "maps": rows.maps,
        "row_metrics": evaluations.metrics[:, indices].swapaxes(0, 1),
    }
    if evaluations.baselines:
        arrays["baselines"] = np.stack([maps[indices] for maps in evaluations.baselines.values()])
    return arrays | {
        f"{kind}.{i}": np.frombuffer(file, np.uint8)
        for kind, files in rows.files.items()
        for i, file in enumerate(files)
    }


def _baseline_indices(evaluations: Evaluations) -> Int32[np.ndarray, "e"]:
    """Index, for each evaluation, the evaluation it is compared with; ``-1 - i`` stands for ``baselines[i]``."""
    index_at = {step: i for i, (step, _) in enumerate(evaluations.moments)}
    introduced = [wall_time for _, wall_time in evaluations.baselines]
    indices = [
        -bisect_right(introduced, wall_time) or UNKNOWN
        if description["stored_baseline"]
        else index_at.get(description["baseline_step"], UNKNOWN)
        for (_, wall_time), description in zip(evaluations.moments, evaluations.descriptions, strict=True)
    ]
    return np.array(indices, np.int32)


def _encode(arrays: dict[str, np.ndarray], about: dict[str, Any]) -> bytes:
    return save({name: np.ascontiguousarray(array) for name, array in arrays.items()}, {"about": json.dumps(about)})
