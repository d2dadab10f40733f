"""A comparison on paper: a page for people that needs nothing but itself, and plain values for machines."""

import io
import math
from base64 import b64encode
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib.resources import files
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from jinja2 import Environment, StrictUndefined
from PIL import Image
from torch import Tensor

from clipcam_lightning.cam.colors import CHANGE, HEAT, colored
from clipcam_lightning.drift.compare import DriftReport, ProbeDrift
from clipcam_lightning.drift.snapshot import Snapshot
from clipcam_lightning.errors import SnapshotError
from clipcam_lightning.storage.jpeg import encode_jpeg
from clipcam_lightning.visualization.panels import heat_tiles, probe_tiles

ILLUSTRATED = 200  # probes with pictures, of 30 kB each: a page with more opens slowly
JPEG_QUALITY = 85
FIGURES = (
    "Drift",
    "Drift / noise",
    "Common gain",
    "Top-20 % IoU",
    "Centre shift",
    "JS distance",
    "Similarity",
    "Energy on object",
)


@dataclass(frozen=True)
class _Row:
    """One probe as the page shows it."""

    probe: ProbeDrift
    figures: dict[str, str]
    pictures: dict[str, str]


def html_report(baseline: Snapshot, snapshot: Snapshot, report: DriftReport) -> str:
    """The comparison as one HTML page: verdict first, then the probes, those that break the rule before the others.

    The page is a single file without a script and asks for nothing from outside. It shows the pictures of whichever
    snapshot has them, and the heat alone where neither has; of many probes those of the worst 200.

    Args:
        baseline: what was compared with.
        snapshot: what was compared.
        report: what :func:`~clipcam_lightning.drift.compare.compare` found.

    Returns:
        HTML, to be written as UTF-8.

    Raises:
        SnapshotError: a picture in the snapshot is damaged.
    """
    rows = [
        _Row(
            probe=report.probes[i],
            figures=figures(report.probes[i]),
            pictures=_pictures(baseline, snapshot, i) if rank < ILLUSTRATED else {},
        )
        for rank, i in enumerate(report.flagged_first)
    ]
    page = _environment().from_string(files(__package__).joinpath("report.html.jinja").read_text("utf-8"))
    html = page.render(
        report=report,
        illustrated=rows[:ILLUSTRATED],
        others=rows[ILLUSTRATED:],
        rows=rows,
        columns=FIGURES,
        blind=[row.probe for row in rows if not row.probe.has_valid_baseline],
        compared=_compared(baseline, snapshot),
        scales={"heat": _scale(HEAT), "change": _scale(CHANGE)},
    )
    return html.encode("utf-8", "replace").decode("utf-8")  # a prompt may hold half a surrogate pair


def report_as_json(report: DriftReport) -> dict[str, Any]:
    """The comparison as values that JSON knows; what is unknown (NaN) is ``None``, what is infinite ``"inf"``."""
    return {
        "alarm": report.alarm,
        "severity": _plain(report.severity),
        "summary": str(report),
        "rule": str(report.rule),
        "step": report.step,
        "baseline_step": report.baseline_step,
        "drift": report.drift,
        "worst": report.worst.name,
        "flagged": [probe.name for probe in report.flagged],
        "probes": [
            {name: _plain(value) for name, value in {**asdict(probe), "flagged": probe.flagged}.items()}
            for probe in report.probes
        ],
    }


def figures(probe: ProbeDrift) -> dict[str, str]:
    """What is known of a probe, in words, by the names of :data:`FIGURES`; what is unknown is left out."""
    before = probe.similarity - probe.similarity_change
    energy = probe.energy_inside_mask - probe.energy_change
    seen = probe.has_valid_baseline  # else drift and IoU only stand in for what is unknown
    known = {
        "Drift": (seen, f"{probe.drift:.2f}"),
        "Drift / noise": (math.isfinite(probe.noise_ratio), f"{probe.noise_ratio:.1f}"),
        "Common gain": (math.isfinite(probe.shared_gain), f"{100 * max(0.0, probe.shared_gain):.0f} %"),
        "Top-20 % IoU": (seen, f"{probe.top_iou:.2f}"),
        "Centre shift": (math.isfinite(probe.center_shift), f"{100 * probe.center_shift:.0f} %"),
        "JS distance": (math.isfinite(probe.js_distance), f"{probe.js_distance:.2f}"),
        "Similarity": (math.isfinite(probe.similarity_change), f"{before:.3f} → {probe.similarity:.3f}"),
        "Energy on object": (math.isfinite(probe.energy_change), f"{energy:.2f} → {probe.energy_inside_mask:.2f}"),
    }
    return {name: text for name, (is_known, text) in known.items() if is_known}


def _compared(baseline: Snapshot, snapshot: Snapshot) -> list[tuple[str, str, str]]:
    """What the two snapshots are, side by side; of models and packages only what differs."""
    before, now = _described(baseline), _described(snapshot)
    versions, newer = baseline.info.versions, snapshot.info.versions
    rows = [(name, value, now[name]) for name, value in before.items()]
    rows += [
        (package, versions.get(package, "none"), newer.get(package, "none"))
        for package in sorted({*versions, *newer})
        if versions.get(package) != newer.get(package)
    ]
    if baseline.info.fingerprint != snapshot.info.fingerprint:
        rows.append(("Model architecture", baseline.info.fingerprint[:12], snapshot.info.fingerprint[:12]))
    return rows


def _described(snapshot: Snapshot) -> dict[str, str]:
    info = snapshot.info
    height, width = snapshot.maps.shape[1:]
    return {
        "Step": f"{info.step}",
        "Epoch": f"{info.epoch}",
        "Method": info.method,
        "Target": info.target,
        "Layers": ", ".join(info.layers),
        "Grid": f"{height}x{width}",
        "Computed in": info.dtype,
    }


def _pictures(baseline: Snapshot, snapshot: Snapshot, i: int) -> dict[str, str]:
    """Input (where known), baseline, now and change of a probe, as data URIs."""
    pictures = snapshot.pictures or baseline.pictures
    maps = baseline.maps[i], snapshot.maps[i]
    if not pictures:
        return dict(zip(("Baseline", "Now", "Change"), map(_jpeg, heat_tiles(*maps)), strict=True))
    tiles = probe_tiles(_pixels(pictures[i], snapshot.names[i]), *maps)
    return dict(zip(("Input", "Baseline", "Now", "Change"), map(_jpeg, tiles), strict=True))


def _pixels(file: bytes, name: str) -> UInt8[Tensor, "3 y x"]:
    try:
        with Image.open(io.BytesIO(file), formats=["JPEG"]) as picture:
            return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise SnapshotError(f"the picture of probe {name!r} is damaged ({error}); take the snapshot again.") from error


def _jpeg(image: Image.Image) -> str:
    return _data_uri("jpeg", encode_jpeg(image, JPEG_QUALITY))


def _scale(colors: str) -> str:
    """A colour scale from 0 to 1 as a picture one pixel high."""
    ramp = (colored(torch.linspace(0, 1, 256)[None], colors) * 255).round().to(torch.uint8)
    file = io.BytesIO()
    Image.fromarray(ramp.permute(1, 2, 0).numpy()).save(file, "PNG")
    return _data_uri("png", file.getvalue())


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{b64encode(content).decode()}"


def _environment() -> Environment:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["probes"] = _counted
    return environment


def _counted(probes: Iterable[ProbeDrift]) -> str:
    count = len(list(probes))
    return f"{count} probe" if count == 1 else f"{count} probes"


def _plain(value: Any) -> Any:
    if isinstance(value, float) and math.isinf(value):
        return str(value)
    if isinstance(value, float) and math.isnan(value):
        return None
    return list(value) if isinstance(value, tuple) else value
