"""Reports of a ranking of methods: one HTML page with all maps side by side, and plain values for JSON."""

import math
from typing import Any

from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from clipcam_lightning.analysis.method_measurement import RankedMethod
from clipcam_lightning.analysis.method_ranking import MethodRanking
from clipcam_lightning.monitoring.history import relative_saliency
from clipcam_lightning.visualization.drawing import TILE, draw_outline, draw_overlay, enlarge
from clipcam_lightning.visualization.page import draw_scales, jpeg_uri, render

ILLUSTRATED = 16  # probes with images: each has one per method
METRICS = {
    "Pointing": "pointing",
    "Energy": "energy",
    "Effect": "effect",
    "Agreement": "agreement",
    "Insertion": "insertion",
    "Deletion": "deletion",
    "Shuffled weights": "randomization",
    "Other prompt": "other_prompt",
    "Degenerate": "degenerate",
}
"""Titles of the metrics, with their attributes in :class:`RankedMethod`."""

MARGINS = ("effect", "insertion", "deletion")  # differences of cosines, which are small on large models

MEANINGS = {
    "Pointing": "share of the probes with a mask whose hottest pixel is on the object, 0 to 1: higher is better.",
    "Energy": "mean share of a map that lies on the object, 0 to 1: higher is better.",
    "Effect": "mean margin over the other prompts, a difference of cosines, that an image loses if a disc around the "
    "hottest pixel is hidden, plus what images of other prompts gain from that disc: higher is better. Without masks "
    "the methods are ordered by it.",
    "Agreement": "mean correlation with the map of occlusion, -1 to 1: higher is better.",
    "Insertion": "mean margin while the hottest pixels are inserted: higher is better.",
    "Deletion": "mean margin while the hottest pixels are deleted: lower is better.",
    "Shuffled weights": "mean correlation with the map of the same model with shuffled weights, -1 to 1: lower is "
    "better, and from 0.5 on the map does not depend on the weights.",
    "Other prompt": "mean correlation with the map for another prompt, -1 to 1: lower is better, and from 0.95 on the "
    "map does not depend on the prompt.",
    "Degenerate": "share of the maps that carry no information, 0 to 1: lower is better.",
    "Forwards": "cost of one map in forwards of the image tower, where a backward counts as two.",
}
"""What the columns of a ranking mean."""


def format_row(row: RankedMethod) -> dict[str, str]:
    """Format the metrics of a method for people.

    Args:
        row: a measured method.

    Returns:
        Texts by the titles in :data:`METRICS`; metrics that were not measured are left out.
    """
    values = {title: getattr(row, name) for title, name in METRICS.items()}
    return {
        title: f"{value:.3f}" if METRICS[title] in MARGINS else f"{value:.2f}"
        for title, value in values.items()
        if math.isfinite(value)
    }


def ranking_as_json(ranking: MethodRanking) -> dict[str, Any]:
    """Convert a ranking to values that JSON can represent.

    Args:
        ranking: of :func:`~clipcam_lightning.rank_methods`.

    Returns:
        The recommended method and layers; one entry per method, the best first, with its metrics by the names of their
        attributes in :class:`RankedMethod`; and the methods that were left out. Metrics that were not measured are
        ``None``.
    """
    return {
        "recommended": {"method": ranking.best.method, "layers": list(ranking.best.layers)},
        "probes": ranking.probes.names,
        "masked": ranking.masked,
        "methods": [
            {
                "method": row.method,
                "layers": list(row.layers),
                "forwards": row.forwards,
                **{name: _json_value(getattr(row, name)) for name in ("necessity", "sufficiency", *METRICS.values())},
                "problems": list(row.problems),
            }
            for row in ranking.rows
        ],
        "left_out": ranking.left_out,
    }


def ranking_report(
    ranking: MethodRanking, pixels: UInt8[Tensor, "n 3 y x"], masks: Bool[Tensor, "n y x"] | None = None
) -> str:
    """Render a ranking as one HTML page: the table, then the probes under each method side by side.

    The page is a single file without scripts that loads nothing. It shows the first 16 probes.

    Args:
        ranking: of :func:`~clipcam_lightning.rank_methods`.
        pixels: input of the model.
        masks: of the objects, outlined on the input; all ``False`` where a probe has none.

    Returns:
        HTML, to be written as UTF-8.
    """
    probes = [
        {
            "name": probe.name,
            "prompt": probe.prompt,
            "images": _draw_probe(ranking, i, pixels[i], None if masks is None or not masks[i].any() else masks[i]),
        }
        for i, probe in enumerate(ranking.probes[:ILLUSTRATED])
    ]
    rows = [(title, row, format_row(row)) for title, row in zip(ranking.titles, ranking.rows, strict=True)]
    columns = [title for title in METRICS if any(title in texts for _, _, texts in rows)]
    return render(
        "ranking_report.html.jinja",
        ranking=ranking,
        rows=rows,
        columns=columns,
        meanings=MEANINGS,
        probes=probes,
        scales=draw_scales(),
    )


def _draw_probe(
    ranking: MethodRanking, i: int, pixels: UInt8[Tensor, "3 y x"], mask: Bool[Tensor, "y x"] | None
) -> list[tuple[str, str]]:
    """Draw the input and the map of each method, as titles with data URIs."""
    large = enlarge(pixels, TILE)

    def overlay(map_: Float[Tensor, "h w"]) -> str:
        return jpeg_uri(draw_overlay(large, relative_saliency(map_[None])[0]))

    overlays = [(title, overlay(row.maps[i])) for title, row in zip(ranking.titles, ranking.rows, strict=True)]
    return [("input", jpeg_uri(draw_outline(large, mask))), *overlays]


def _json_value(value: float) -> float | None:
    return value if math.isfinite(value) else None
