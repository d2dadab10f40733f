"""The HTML page of a whole training: its timeline, its alarms and what each probe's maps did."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from clipcam_lightning.cam.display.drawing import to_image
from clipcam_lightning.drift.probe_drift import ProbeDrift, format_drift
from clipcam_lightning.drift.report_json import report_as_json
from clipcam_lightning.drift.snapshot import Snapshot, decode_image
from clipcam_lightning.errors import SnapshotError
from clipcam_lightning.monitoring.baselines import has_valid_map
from clipcam_lightning.monitoring.history import relative_saliency
from clipcam_lightning.monitoring.recorded_run import RecordedEvaluation, RecordedRun
from clipcam_lightning.visualization.columns import choose_columns
from clipcam_lightning.visualization.drawing import TILE, draw_heat, draw_overlay, enlarge
from clipcam_lightning.visualization.evidence import GroundImages
from clipcam_lightning.visualization.page import draw_scales, jpeg_uri, render
from clipcam_lightning.visualization.paging import Page, Pages
from clipcam_lightning.visualization.report import (
    METRICS,
    compare_settings,
    draw_evidence,
    format_metrics,
)
from clipcam_lightning.visualization.timeline import Chart, Extent, draw_probe_timeline, draw_timeline, group_alarms

ILLUSTRATED, COLUMNS = 64, 11  # probes with maps per page, and maps per probe, of 6 kB each
FRAME = TILE * 3 // 4  # pixels of a map among those of other evaluations


@dataclass(frozen=True)
class MapFrame:
    """The map of a probe at one evaluation.

    Attributes:
        when: "baseline" or the step.
        image: overlay, or heat alone if the image is not known.
        drift: formatted; empty for the baseline.
        flagged: whether the probe is flagged.
        words: what the state of a degenerate map says; else empty.
    """

    when: str
    image: Image.Image
    drift: str
    flagged: bool
    words: str


@dataclass(frozen=True)
class _Row:
    """One probe as the page shows it.

    Attributes:
        probe: its values at the last evaluation.
        metrics: of :func:`format_metrics`.
        since: the first step at which it was flagged; ``None`` if it never was.
        input: a data URI; empty if the image is not known.
        frames: its maps, each with a data URI.
        chart: its drift.
    """

    probe: ProbeDrift
    metrics: dict[str, str]
    since: int | None
    input: str = ""
    frames: Sequence[tuple[MapFrame, str]] = ()
    chart: Chart | None = None


def run_report(run: RecordedRun, file: str, first: str = "") -> Iterator[tuple[str, str]]:
    """Render a run as HTML pages: the headline, the timeline, the alarms, then the probes, worst first.

    The pages have no scripts and load nothing. Each shows the maps of 64 probes at 11 evaluations; beyond 320 probes
    they list only the metrics.

    Args:
        run: as :func:`~clipcam_lightning.monitoring.recorded_run.load_run` returns it.
        file: name of the first page; others lie in a folder beside it.
        first: name of a probe that comes before the others; by default the worst one does.

    Returns:
        Path and HTML of each page, as of :meth:`~clipcam_lightning.visualization.paging.Pages.render`.
    """
    problems = list(run.problems)
    extent = Extent.of(run)
    columns = choose_evaluations(run, COLUMNS)
    names = sorted(run.worst_first, key=lambda name: name != first)
    shown = run.last if run.last.report.alarm or not run.alarms else run.alarms[-1]

    def render_page(page: Page) -> str:
        rows = [_illustrate(run, names[i], columns, extent, problems) for i in page.illustrated]
        crops, grounds = _draw_evidence(shown, problems) if page.is_first else ([], [])
        return render(
            "run_report.html.jinja",
            run=run,
            page=page,
            headline=describe_alarm(run),
            last=run.last.report,
            prompt=shared_prompt(run.last),
            trust=describe_trust(run.last.baseline),
            problems=list(dict.fromkeys(problems)),
            charts=draw_timeline(run, extent),
            alarms=group_alarms(run),
            shown=shown,
            crops=crops,
            grounds=grounds,
            illustrated=rows,
            others=[_row(run, names[i]) for i in page.listed],
            columns=columns,
            meanings=METRICS,
            settings=describe_run(run),
            scales=draw_scales(),
        )

    return Pages(names, ILLUSTRATED, file).render(render_page)


def run_as_json(run: RecordedRun) -> dict[str, Any]:
    """Convert a run to values that JSON can represent.

    Args:
        run: as :func:`~clipcam_lightning.monitoring.recorded_run.load_run` returns it.

    Returns:
        A summary, and one entry per evaluation, each with all that :func:`~clipcam_lightning.report_as_json` says.
    """
    return {
        "run": str(run.folder),
        "started": run.started or None,
        "alarm": run.last.report.alarm,
        "alarm_since": run.alarm_since,
        "summary": describe_alarm(run),
        "prompt": shared_prompt(run.last),
        "worst_first": run.worst_first,
        "problems": list(run.problems),
        "evaluations": [{"epoch": each.epoch, **report_as_json(each.report)} for each in run.evaluations],
    }


def describe_alarm(run: RecordedRun) -> str:
    """Say since when there is an alarm, or whether there was one.

    Args:
        run: of at least one evaluation.
    """
    if run.alarm_since is not None:
        return f"Alarm since step {run.alarm_since}"
    if not run.alarms:
        return "No alarm"
    return f"No alarm at the last evaluation, but one at step {run.alarms[-1].step}"


def shared_prompt(evaluation: RecordedEvaluation) -> str | None:
    """Return the prompt of all flagged probes; ``None`` if they have several, or none is flagged."""
    prompts = {probe.prompt for probe in evaluation.report.flagged}
    return prompts.pop() if len(prompts) == 1 else None


def describe_trust(baseline: Snapshot | None) -> str:
    """Say whether the maps of a run can be trusted, by what was measured at its baseline.

    Args:
        baseline: of the last evaluation; ``None`` if it cannot be read.
    """
    if baseline is not None and not has_valid_map(baseline):
        return "All maps of the baseline are degenerate, so there is no map to compare with."
    if baseline is None or baseline.map_agrees is None:
        return "It was not measured whether the maps show what the model uses."
    fact = f"At the baseline, {baseline.map_agreement}."
    if not baseline.has_trusted_maps:
        return f"{fact} So their drift raises no alarm; clipcam rank finds a method that fits."
    known = torch.isfinite(baseline.energy_inside_mask).all()
    return fact if known else f"{fact} Whether the model uses the object, only a mask can tell."


def choose_evaluations(run: RecordedRun, limit: int) -> list[RecordedEvaluation]:
    """Choose the evaluations whose maps are drawn: the first, the last, that of the first alarm, others evenly spread.

    Args:
        run: with any number of evaluations.
        limit: at least 3.
    """
    drawable = run.drawable
    if not drawable:
        return []
    alarm = next((i for i, each in enumerate(drawable) if each.report.alarm), None)
    return [drawable[i] for i in choose_columns(len(drawable), limit, alarm)]


def draw_frames(
    run: RecordedRun,
    name: str,
    evaluations: Sequence[RecordedEvaluation],
    pixels: UInt8[Tensor, "3 y x"] | None,
    side: int,
) -> list[MapFrame]:
    """Draw the maps of a probe, each scaled to its own maximum.

    Args:
        run: of the evaluations.
        name: of the probe.
        evaluations: whose maps to draw.
        pixels: input of the model; ``None`` draws the heat alone.
        side: of the images, in pixels.

    Returns:
        One frame per evaluation that has the probe; before them the baseline's if it is of another run.
    """
    frames = []
    baseline = run.last.baseline
    own = [each.snapshot.maps for each in run.drawable if each.snapshot is not None]
    if baseline is not None and name in baseline.names and not any(baseline.maps is maps for maps in own):
        image, words = _draw_map(baseline, name, pixels, side)
        frames.append(MapFrame("baseline", image, "", False, words))
    for each in evaluations:
        if each.snapshot is None or name not in each.probes:
            continue
        probe = each.probes[name]
        image, words = _draw_map(each.snapshot, name, pixels, side)
        drift = format_drift(probe.drift) if probe.has_valid_baseline else "unknown"
        frames.append(MapFrame(f"step {each.step}", image, drift, probe.flagged, words))
    return frames


def read_pixels(run: RecordedRun, name: str, problems: list[str]) -> UInt8[Tensor, "3 y x"] | None:
    """Decode the image of a probe; ``None`` if the run has none, or with a problem if it is damaged."""
    file = run.image(name)
    try:
        return None if file is None else decode_image(file, name)
    except SnapshotError as error:
        problems.append(f"{error}")
        return None


def describe_run(run: RecordedRun) -> list[tuple[str, str, str]]:
    """Tabulate the settings of a run: rows of name, value at the baseline and value at the end."""
    evaluation = next((each for each in reversed(run.drawable)), None)
    rows = [("Run", str(run.folder), str(run.folder))]
    if run.started:
        rows.append(("Started", run.started, run.started))
    count = str(len(run.evaluations))
    rows.append(("Evaluations", count, count))
    if evaluation is None or evaluation.snapshot is None:
        return rows
    return rows + compare_settings(evaluation.baseline or evaluation.snapshot, evaluation.snapshot)


def _row(run: RecordedRun, name: str, **images: Any) -> _Row:
    probe = run.last.probes[name]
    return _Row(probe, format_metrics(probe), run.flagged_since(name), **images)


def _illustrate(
    run: RecordedRun, name: str, columns: Sequence[RecordedEvaluation], extent: Extent, problems: list[str]
) -> _Row:
    pixels = read_pixels(run, name, problems)
    frames = draw_frames(run, name, columns, pixels, FRAME)
    return _row(
        run,
        name,
        input="" if pixels is None else jpeg_uri(to_image(enlarge(pixels, FRAME))),
        frames=[(frame, jpeg_uri(frame.image)) for frame in frames],
        chart=draw_probe_timeline(run, name, extent),
    )


def _draw_map(
    snapshot: Snapshot, name: str, pixels: UInt8[Tensor, "3 y x"] | None, side: int
) -> tuple[Image.Image, str]:
    i = snapshot.names.index(name)
    state, heat = snapshot.states[i], relative_saliency(snapshot.maps[i][None])[0]
    if pixels is not None:
        return draw_overlay(enlarge(pixels, side), heat, state), state.words
    height, width = heat.shape
    scale = side / max(height, width)
    return draw_heat(heat, (round(height * scale), round(width * scale)), state=state), state.words


def _draw_evidence(
    evaluation: RecordedEvaluation, problems: list[str]
) -> tuple[Collection[tuple[ProbeDrift, str, str]], list[GroundImages]]:
    if evaluation.snapshot is None or evaluation.baseline is None:
        return [], []
    try:
        return draw_evidence(evaluation.baseline, evaluation.snapshot, evaluation.report)
    except SnapshotError as error:
        problems.append(f"No evidence is drawn: {error}")
        return [], []
