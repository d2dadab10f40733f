"""Charts of a run over its steps, as coordinates that a page draws as SVG."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import ceil, floor

from clipcam_lightning.drift.probe_drift import format_drift
from clipcam_lightning.monitoring.recorded_run import RecordedEvaluation, RecordedRun

WIDTH, HEIGHT, MARGIN, BAR = 1000.0, 100.0, 15.0, 24.0  # of a chart, in units of its viewBox
DRIFT_TOP, TICK = 0.5, 0.1  # the least top of a chart of drift, and what limits are rounded to


@dataclass(frozen=True)
class Extent:
    """What the charts of one or several runs span, so that equal heights are equal values.

    Attributes:
        steps: the first and the last.
        drift: the top; the bottom is 0.
        similarity: bottom and top.
        probes: the top of the number of flagged probes.
    """

    steps: tuple[int, int]
    drift: float
    similarity: tuple[float, float]
    probes: int

    @classmethod
    def of(cls, *runs: RecordedRun) -> "Extent":
        """Find what several runs span."""
        evaluations = [each for run in runs for each in run.evaluations]
        steps = [each.step for each in evaluations]
        similarities = [each.similarity for each in evaluations]
        worst = max(probe.drift for each in evaluations for probe in each.report.probes)
        low, high = min(similarities) / TICK, max(similarities) / TICK
        return cls(
            steps=(min(steps), max(steps)),
            drift=max(DRIFT_TOP, ceil(worst / TICK) * TICK),
            similarity=(floor(low) * TICK, max(floor(low) + 1, ceil(high)) * TICK),
            probes=max(len(each.report.probes) for each in evaluations),
        )

    def x(self, step: int) -> float:
        """Place a step, in units of the viewBox."""
        first, last = self.steps
        share = (step - first) / (last - first) if last > first else 0.5
        return round(MARGIN + (WIDTH - 2 * MARGIN) * share, 1)


@dataclass(frozen=True)
class Chart:
    """One chart, in units of a viewBox of 1000 by 100.

    Attributes:
        title: what it shows.
        label: text alternative of the chart.
        limits: bottom and top, as texts.
        lines: points by the name of the line, as SVG writes them.
        dots: points that stand out.
        bars: each with its left, top, width and height, and whether it is of an alarm.
        spots: an area per evaluation with its left, width and text, for a pointer to hover over.
    """

    title: str
    label: str
    limits: tuple[str, str]
    lines: dict[str, str] = field(default_factory=dict)
    dots: Sequence[tuple[float, float]] = ()
    bars: Sequence[tuple[float, float, float, float, bool]] = ()
    spots: Sequence[tuple[float, float, str]] = ()


def draw_timeline(run: RecordedRun, extent: Extent) -> list[Chart]:
    """Chart the drift, the similarity and the flagged probes of a run.

    Args:
        run: to chart.
        extent: of the charts.
    """
    reports = [each.report for each in run.evaluations]
    x = [extent.x(report.step) for report in reports]
    low, high = extent.similarity
    similarities = [each.similarity for each in run.evaluations]
    last = run.last
    return [
        Chart(
            title="Drift",
            label=f"Mean drift over the steps: {format_drift(reports[0].drift)} at step {reports[0].step}, "
            f"{format_drift(last.report.drift)} at step {last.step}; largest "
            f"{'unknown' if last.largest is None else format_drift(last.largest.drift)}",
            limits=("0", f"{extent.drift:.1f}"),
            lines={
                "largest": _points(
                    (left, each.largest.drift / extent.drift)
                    for left, each in zip(x, run.evaluations, strict=True)
                    if each.largest is not None
                ),
                "mean": _points((left, report.drift / extent.drift) for left, report in zip(x, reports, strict=True)),
            },
            spots=_spots(run, extent, [f"mean {format_drift(each.drift)}" for each in reports]),
        ),
        Chart(
            title="Similarity of image and prompt",
            label=f"Mean similarity over the steps: {similarities[0]:.2f} at step {reports[0].step}, "
            f"{similarities[-1]:.2f} at step {last.step}",
            limits=(f"{low:.1f}", f"{high:.1f}"),
            lines={"mean": _points((left, (v - low) / (high - low)) for left, v in zip(x, similarities, strict=True))},
            spots=_spots(run, extent, [f"mean {value:.3f}" for value in similarities]),
        ),
        Chart(
            title="Flagged probes",
            label=f"Flagged probes over the steps: {len(last.report.flagged)} of {len(last.report.probes)} at step "
            f"{last.step}; {_describe_alarms(run)}",
            limits=("0", str(extent.probes)),
            bars=_bars(run, extent),
            spots=_spots(run, extent, [f"{len(each.flagged)} flagged" for each in reports]),
        ),
    ]


def draw_probe_timeline(run: RecordedRun, name: str, extent: Extent) -> Chart:
    """Chart the drift of one probe, with a dot where it is flagged.

    Args:
        run: to chart.
        name: of the probe.
        extent: of the chart.
    """
    evaluations = [each for each in run.evaluations if name in each.probes]
    known = [each for each in evaluations if each.probes[name].has_valid_baseline]
    since = run.flagged_since(name)
    points = [
        (extent.x(each.step), each.probes[name].drift / extent.drift, each.probes[name].flagged) for each in known
    ]
    drift = format_drift(known[-1].probes[name].drift) if known else "unknown"
    return Chart(
        title="Drift",
        label=f"Drift of {name} over the steps: {drift} at the end; "
        + ("never flagged" if since is None else f"first flagged at step {since}"),
        limits=("0", f"{extent.drift:.1f}"),
        lines={"mean": _points((left, share) for left, share, _ in points)},
        dots=[(left, _y(share)) for left, share, is_flagged in points if is_flagged],
    )


def group_alarms(run: RecordedRun) -> list[list[RecordedEvaluation]]:
    """Group the alarms of a run: evaluations in a row that are alarms about the same."""
    groups: list[list[RecordedEvaluation]] = []
    previous = None
    for each in run.evaluations:
        if each.report.alarm:
            if previous is not None and previous.report.subject == each.report.subject:
                groups[-1].append(each)
            else:
                groups.append([each])
        previous = each
    return groups


def _describe_alarms(run: RecordedRun) -> str:
    steps = [str(each.step) for each in run.alarms]
    return f"alarm at step {', '.join(steps)}" if steps else "no alarm"


def _bars(run: RecordedRun, extent: Extent) -> list[tuple[float, float, float, float, bool]]:
    """Draw a bar per evaluation; an alarm without flagged probes still has one that can be seen."""
    x = [extent.x(each.step) for each in run.evaluations]
    width = min([BAR, *(0.7 * (b - a) for a, b in pairwise(x))])
    bars = []
    for middle, each in zip(x, run.evaluations, strict=True):
        height = HEIGHT * len(each.report.flagged) / extent.probes
        height = round(max(height, 4.0 if each.report.alarm else 0.0), 1)
        left = min(max(0.0, middle - width / 2), WIDTH - width)
        bars.append((round(left, 1), HEIGHT - height, round(width, 1), height, each.report.alarm))
    return bars


def _spots(run: RecordedRun, extent: Extent, texts: Iterable[str]) -> list[tuple[float, float, str]]:
    x = [extent.x(each.step) for each in run.evaluations]
    edges = [0.0, *((a + b) / 2 for a, b in pairwise(x)), WIDTH]
    return [
        (round(left, 1), round(right - left, 1), f"step {each.step}: {text}{', alarm' if each.report.alarm else ''}")
        for (left, right), each, text in zip(pairwise(edges), run.evaluations, texts, strict=True)
    ]


def _points(places: Iterable[tuple[float, float]]) -> str:
    """Write points, given as the place from the left and the share of the height, as SVG does."""
    return " ".join(f"{left},{_y(share)}" for left, share in places)


def _y(share: float) -> float:
    """Place a share of the height, 0 at the bottom, with room for the width of a line."""
    return round(HEIGHT - 3 - (HEIGHT - 6) * share, 1)
