"""The HTML page of a comparison."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import UInt8
from torch import Tensor

from clipcam_lightning.drift.probe_drift import ProbeDrift, format_drift, format_loss
from clipcam_lightning.drift.report import DriftReport
from clipcam_lightning.drift.snapshot import Snapshot, decode_image
from clipcam_lightning.visualization.evidence import GroundImages, draw_crops, draw_transplants
from clipcam_lightning.visualization.page import draw_scales, jpeg_uri, render
from clipcam_lightning.visualization.paging import Page, Pages
from clipcam_lightning.visualization.panels import heat_tiles, probe_tiles

PAGE = "report.html.jinja"
ILLUSTRATED = 200  # probes with images per page, of 30 kB each: a page with more opens slowly
CROPPED = 12  # flagged probes in the crop sheet
METRICS = {
    "Drift": "1 - the correlation with the baseline's map: 0 the same map, 1 an unrelated one, 2 an inverted one.",
    "Drift / noise floor": "Drift divided by how far the map moves if the prompt is paraphrased or the image hardly "
    "changes: up to about 2 is noise, higher is more.",
    "Background score": "How much nearer to its prompt the image without its object is than the other images without "
    "theirs, in standard deviations, at the baseline → now: about 0 or lower if only the object predicts the prompt, "
    "higher is worse. A probe is flagged for it only if its map moved visibly, too.",
    "Shared gain": "Share of the map that is new where the maps of the other images gained most, 0 to 100 %: the "
    "higher, the more the model looks there in all images.",
    "Top-20 % IoU": "Overlap of the hottest 20 % of the cells with the baseline's: 1 the same cells, 0 none in common.",
    "Centre shift": "How far the centre of the map moved, 0 to 100 % of the image's diagonal: higher is further.",
    "JS distance": "Jensen-Shannon distance from the baseline's map: 0 the same map, 1 one without overlap.",
    "Similarity": "Cosine of image and prompt, -1 to 1, at the baseline → now: higher is a better match.",
    "Loss by covering": "What the similarity loses if the place outside the object is covered where the map has gained "
    "most, and if another place is: the higher the first, the more the model relies on that place.",
    "Energy on object": "Share of the map that lies on the object, 0 to 1, at the baseline → now: higher is better. It "
    "needs a probe with a mask.",
}
"""Titles of the metrics, with what they mean."""


@dataclass(frozen=True)
class _Row:
    """One probe as the page shows it.

    Attributes:
        probe: its values.
        metrics: of :func:`format_metrics`.
        images: data URIs by title; empty for a probe that is not illustrated.
    """

    probe: ProbeDrift
    metrics: dict[str, str]
    images: dict[str, str]


def html_report(baseline: Snapshot, snapshot: Snapshot, report: DriftReport) -> str:
    """Render a comparison as one HTML page: the verdict, then the probes, flagged ones first.

    The page is a single file without scripts that loads nothing. It shows the images of whichever snapshot has them,
    and the heat alone if neither has; beyond 200 probes it lists only the metrics. :func:`html_pages` divides many
    probes among several files.

    Args:
        baseline: what was compared with.
        snapshot: what was compared.
        report: of :func:`~clipcam_lightning.drift.compare.compare`.

    Returns:
        HTML, to be written as UTF-8.

    Raises:
        SnapshotError: an image in the snapshot is damaged.

    Example:
        >>> from clipcam_lightning import evaluate, html_report
        >>> from clipcam_lightning.shapes_world import WordTokenizer, draw_scenes, trained_clip
        >>> scenes = draw_scenes(2)
        >>> probes = list(zip(scenes.images, scenes.captions))
        >>> evaluation = evaluate(trained_clip("vit"), probes, tokenizer=WordTokenizer())
        >>> page = html_report(evaluation.baseline, evaluation.snapshot, evaluation.report)
        >>> page.startswith("<!DOCTYPE html>")
        True
    """
    ((_, html),) = _render_pages(baseline, snapshot, report, None)
    return html


def html_pages(
    baseline: Snapshot, snapshot: Snapshot, report: DriftReport, file: str = "report.html"
) -> Iterator[tuple[str, str]]:
    """Render a comparison as HTML pages: the verdict and 200 probes on the first, the others on further ones.

    The first 1,000 probes are shown with images, flagged ones first, and the others in tables. Pages link to each
    other.

    Args:
        baseline, snapshot, report: as in :func:`html_report`.
        file: name of the first page; further ones lie in a folder beside it, such as ``report_pages/2.html``.

    Returns:
        The path of each page, relative to the folder of the first, and its HTML. The first page comes last.

    Raises:
        ConfigError: ``file`` names a folder, too.
        SnapshotError: an image in the snapshot is damaged.

    Example:
        >>> from pathlib import Path
        >>> from clipcam_lightning import evaluate, html_pages
        >>> from clipcam_lightning.shapes_world import WordTokenizer, draw_scenes, trained_clip
        >>> scenes = draw_scenes(2)
        >>> probes = list(zip(scenes.images, scenes.captions))
        >>> evaluation = evaluate(trained_clip("vit"), probes, tokenizer=WordTokenizer())
        >>> [path for path, html in html_pages(evaluation.baseline, evaluation.snapshot, evaluation.report)]
        ['report.html']
    """
    return _render_pages(baseline, snapshot, report, file)


def _render_pages(
    baseline: Snapshot, snapshot: Snapshot, report: DriftReport, file: str | None
) -> Iterator[tuple[str, str]]:
    order = report.flagged_first

    def make_row(place: int, *, is_illustrated: bool) -> _Row:
        i = order[place]
        images = _embed_images(baseline, snapshot, i) if is_illustrated else {}
        return _Row(report.probes[i], format_metrics(report.probes[i]), images)

    def render_page(page: Page) -> str:
        crops, grounds = draw_evidence(baseline, snapshot, report) if page.is_first else ([], [])
        return render(
            PAGE,
            report=report,
            page=page,
            crops=crops,
            grounds=grounds,
            illustrated=[make_row(place, is_illustrated=True) for place in page.illustrated],
            others=[make_row(place, is_illustrated=False) for place in page.listed],
            meanings=METRICS,
            compared=compare_settings(baseline, snapshot),
            scales=draw_scales(),
        )

    return Pages([report.probes[i].name for i in order], ILLUSTRATED, file).render(render_page)


def format_metrics(probe: ProbeDrift) -> dict[str, str]:
    """Format the metrics of a probe for people.

    Args:
        probe: its values.

    Returns:
        Texts by the names in :data:`METRICS`; unknown metrics are left out.
    """
    before = probe.similarity - probe.similarity_change
    energy = probe.energy_inside_mask - probe.energy_change
    # Without valid baseline the drift is unknown, and a degenerate map has no place: their values are stand-ins.
    is_measured, has_place = probe.has_valid_baseline, not probe.degenerate
    metrics = {
        "Drift": (is_measured, format_drift(probe.drift)),
        "Drift / noise floor": (math.isfinite(probe.noise_ratio), f"{probe.noise_ratio:.1f}"),
        "Background score": (
            math.isfinite(probe.background_gain),
            f"{probe.background_score_before:.1f} → {probe.background_score:.1f}",
        ),
        "Shared gain": (math.isfinite(probe.shared_gain), f"{100 * max(0.0, probe.shared_gain):.0f} %"),
        "Top-20 % IoU": (is_measured, f"{probe.top_iou:.2f}"),
        "Centre shift": (has_place, f"{100 * probe.center_shift:.0f} %"),
        "JS distance": (has_place, f"{probe.js_distance:.2f}"),
        "Similarity": (math.isfinite(probe.similarity_change), f"{before:.3f} → {probe.similarity:.3f}"),
        "Loss by covering": (
            math.isfinite(probe.covered_loss),
            f"{format_loss(probe.covered_loss)}, another place {format_loss(probe.control_loss)}",
        ),
        "Energy on object": (math.isfinite(probe.energy_change), f"{energy:.2f} → {probe.energy_inside_mask:.2f}"),
    }
    return {name: text for name, (is_known, text) in metrics.items() if is_known}


def compare_settings(baseline: Snapshot, snapshot: Snapshot) -> list[tuple[str, str, str]]:
    """Tabulate the settings of two snapshots.

    Returns:
        Rows of name, baseline and now; packages and architecture only if they differ.
    """
    before, now = _describe(baseline), _describe(snapshot)
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


def _describe(snapshot: Snapshot) -> dict[str, str]:
    info = snapshot.info
    height, width = snapshot.maps.shape[1:]
    return {
        "Step": f"{info.step}",
        "Epoch": f"{info.epoch}",
        "Method": info.method,
        "Target": info.target,
        "Score scale": f"{info.score_scale:g}",
        "Scales": ", ".join(f"{scale:g}" for scale in info.scales),
        "Flip": "yes" if info.flip else "no",
        "Shift": "yes" if info.shift else "no",
        "Precision": info.precision,
        "Fuse": info.fuse,
        "Layers": ", ".join(info.layers),
        "Grid": f"{height}x{width}",
        "Computed in": info.dtype,
    }


def draw_evidence(
    baseline: Snapshot, snapshot: Snapshot, report: DriftReport
) -> tuple[list[tuple[ProbeDrift, str, str]], list[GroundImages]]:
    """Draw what speaks for an alarm.

    Returns:
        The first flagged probes with what their maps looked at and look at, as data URIs; and other objects on the
        grounds.

    Raises:
        SnapshotError: an image in the snapshot is damaged.
    """
    files = snapshot.images or baseline.images
    if not files:
        return [], []
    flagged = [i for i in report.flagged_first if report.probes[i].flagged][:CROPPED]
    crops: list[tuple[ProbeDrift, str, str]] = []
    for i in flagged:
        pixels = decode_image(files[i], snapshot.names[i])
        before, now = map(jpeg_uri, draw_crops(pixels, baseline.maps[i], snapshot.maps[i]))
        crops.append((report.probes[i], before, now))
    if report.evidence is None or not report.evidence.shown:
        return crops, []

    def decode(numbers: list[int]) -> UInt8[Tensor, "n 3 y x"]:
        return torch.stack([decode_image(files[i], snapshot.names[i]) for i in numbers])

    return crops, draw_transplants(decode, baseline, snapshot, report)


def _embed_images(baseline: Snapshot, snapshot: Snapshot, i: int) -> dict[str, str]:
    """Draw input (if available), baseline, now and change of a probe, as data URIs by title."""
    images = snapshot.images or baseline.images
    maps = baseline.maps[i], snapshot.maps[i]
    if not images:
        return dict(zip(("Baseline", "Now", "Change"), map(jpeg_uri, heat_tiles(*maps)), strict=True))
    tiles = probe_tiles(decode_image(images[i], snapshot.names[i]), *maps)
    return dict(zip(("Input", "Baseline", "Now", "Change"), map(jpeg_uri, tiles), strict=True))
