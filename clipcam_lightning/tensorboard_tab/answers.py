"""What the page gets: arrays and JSON in one safetensors file each, which a browser reads without a library."""

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

HEATS, CHANGE = ("inferno", "viridis", "magma", "turbo", "gray"), "crameri:vik"  # the first as in pictures
UNKNOWN = -(2**31)  # which map a look is compared with
_DRIFT, _SIMILARITY, _FLAGGED = (events.FIGURES.index(name) for name in ("drift", "similarity", "flagged"))


def evaluations_answer(evaluations: Evaluations, names: Sequence[str], rows: Rows) -> bytes:
    """All looks of a run in figures, and the maps of the probes that are shown first."""
    last = evaluations.told[-1]
    about = {
        "probes": {key: evaluations.probes[key] for key in ("names", "prompts", "digests")},
        "rule": str(evaluations.probes.get("rule", "")),
        "made": {key: last[key] for key in ("method", "target", "layers")},
        "figures": events.FIGURES,
        "notes": [told["notes"] for told in evaluations.told],
        "left_out": evaluations.left_out,
    }
    arrays = {
        "epoch": np.array([told["epoch"] for told in evaluations.told], np.float64),
        "baseline_step": np.array([told["baseline_step"] for told in evaluations.told], np.float64),
        "baseline": _baselines(evaluations),
        "alarm": np.array([told["alarm"] for told in evaluations.told], np.uint8),
        "drift": evaluations.figures[:, :, _DRIFT].T,
        "similarity": evaluations.figures[:, :, _SIMILARITY].T,
        "flagged": (evaluations.figures[:, :, _FLAGGED].T > 0).astype(np.uint8),
    }
    return _file({**arrays, **_rows(evaluations, names, rows)}, {**about, "rows": names})


def rows_answer(evaluations: Evaluations, names: Sequence[str], rows: Rows) -> bytes:
    """Maps, pictures and all figures of some probes; by the times of the looks the page knows its own again."""
    return _file(_rows(evaluations, names, rows), {"rows": names})


def colors_answer() -> bytes:
    """256 colours, RGB, of each scale."""
    tables = {name: cmap.Colormap(name).lut(256)[:, :3] for name in (*HEATS, CHANGE)}
    scales = {name: (table * 255).round().astype(np.uint8) for name, table in tables.items()}
    return _file(scales, {"heats": HEATS, "change": CHANGE})


def _rows(evaluations: Evaluations, names: Sequence[str], rows: Rows) -> dict[str, np.ndarray]:
    places = [evaluations.probes["names"].index(name) for name in names]
    arrays = {
        "step": np.array([step for step, _ in evaluations.moments], np.float64),
        "wall_time": np.array([wall_time for _, wall_time in evaluations.moments]),
        "maps": rows.maps,
        "row_figures": evaluations.figures[:, places].swapaxes(0, 1),
    }
    if evaluations.baselines:
        arrays["baselines"] = np.stack([maps[places] for maps in evaluations.baselines.values()])
    return arrays | {f"picture.{i}": np.frombuffer(jpeg, np.uint8) for i, jpeg in enumerate(rows.pictures)}


def _baselines(evaluations: Evaluations) -> Int32[np.ndarray, "l"]:
    """Of each look the number of the one it is compared with, or ``-1 - i`` for the i-th of ``baselines``."""
    numbers = {step: i for i, (step, _) in enumerate(evaluations.moments)}
    introduced = [wall_time for _, wall_time in evaluations.baselines]
    baselines = [
        -bisect_right(introduced, wall_time) or UNKNOWN
        if told["stored_baseline"]
        else numbers.get(told["baseline_step"], UNKNOWN)
        for (_, wall_time), told in zip(evaluations.moments, evaluations.told, strict=True)
    ]
    return np.array(baselines, np.int32)


def _file(arrays: dict[str, np.ndarray], about: dict[str, Any]) -> bytes:
    return save({name: np.ascontiguousarray(array) for name, array in arrays.items()}, {"about": json.dumps(about)})
