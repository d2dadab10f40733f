"""Two runs side by side: where their maps end on the probes that they share."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from clipcam_lightning.drift.compare import check_comparable
from clipcam_lightning.drift.metrics import correlation
from clipcam_lightning.drift.probe_drift import ProbeDrift, format_drift
from clipcam_lightning.drift.rule import MIN_DRIFT
from clipcam_lightning.drift.snapshot import Snapshot
from clipcam_lightning.errors import IncomparableError
from clipcam_lightning.monitoring.recorded_run import RecordedEvaluation, RecordedRun
from clipcam_lightning.visualization.page import draw_scales, jpeg_uri, render
from clipcam_lightning.visualization.paging import Page, Pages
from clipcam_lightning.visualization.panels import heat_tiles, probe_tiles
from clipcam_lightning.visualization.report import METRICS, compare_settings
from clipcam_lightning.visualization.run_report import describe_alarm, read_pixels, shared_prompt
from clipcam_lightning.visualization.timeline import Chart, Extent, draw_timeline

ILLUSTRATED = 100  # probes with images per page, of 30 kB each
LABELS = ("A", "B")
DIFFERENCE = (
    "1 - the correlation of the last maps of the two runs: 0 the same map, 1 an unrelated one, 2 an inverted one."
)


@dataclass(frozen=True)
class SharedProbe:
    """A probe of both runs, at their last evaluations.

    Attributes:
        probes: its values in each run.
        difference: 1 - CC of the two last maps, 0 to 2; 1 if one of them is degenerate, 0 if both are, NaN if they
            cannot be compared.
    """

    probes: tuple[ProbeDrift, ProbeDrift]
    difference: float

    @property
    def name(self) -> str:
        """Of the probe."""
        return self.probes[0].name

    @property
    def prompt(self) -> str:
        """Of the probe."""
        return self.probes[0].prompt

    @property
    def flagged_once(self) -> bool:
        """Whether the probe is flagged in one run only."""
        return self.probes[0].flagged != self.probes[1].flagged

    @property
    def differs(self) -> bool:
        """Whether the probe is flagged in one run only, or a difference between the last maps can be seen."""
        return self.flagged_once or self.difference >= MIN_DRIFT

    @property
    def values(self) -> dict[str, tuple[str, str]]:
        """The metrics of both runs, formatted, by title."""
        a, b = self.probes
        rows = {"Drift": tuple(format_drift(each.drift) if each.has_valid_baseline else "unknown" for each in (a, b))}
        rows["Similarity"] = tuple(f"{each.similarity:.3f}" for each in (a, b))
        if all(math.isfinite(each.energy_inside_mask) for each in (a, b)):
            rows["Energy on object"] = tuple(f"{each.energy_inside_mask:.2f}" for each in (a, b))
        rows["Flagged"] = tuple("yes" if each.flagged else "no" for each in (a, b))
        return {title: (texts[0], texts[1]) for title, texts in rows.items()}

    @property
    def difference_text(self) -> str:
        """The difference, formatted; "unknown" if the maps cannot be compared."""
        return format_drift(self.difference) if math.isfinite(self.difference) else "unknown"


@dataclass(frozen=True, eq=False)
class RunComparison:
    """Two runs and the probes that they share: those of the same name, prompt and, where it is known, image.

    Attributes:
        runs: the two.
        shared: those that differ most first.
        only: names of the probes of one run alone, for each run.
        incomparable: why the maps of the two runs cannot be compared with one another; empty if they can.
    """

    runs: tuple[RecordedRun, RecordedRun]
    shared: Sequence[SharedProbe]
    only: tuple[Sequence[str], Sequence[str]]
    incomparable: str

    @classmethod
    def of(cls, a: RecordedRun, b: RecordedRun) -> "RunComparison":
        """Compare two runs at their last evaluations.

        Raises:
            IncomparableError: they share no probe.
        """
        names = [name for name in a.worst_first if _is_shared(name, a, b)]
        if not names:
            raise IncomparableError(
                f"the runs {a.folder} and {b.folder} share no probe: none has the same name, prompt and image in both."
            )
        last, incomparable = (_last_snapshot(a), _last_snapshot(b)), ""
        try:
            _check_maps(*last)
        except IncomparableError as error:
            incomparable = str(error)
        shared = [
            SharedProbe((a.last.probes[name], b.last.probes[name]), math.nan if incomparable else _differ(name, *last))
            for name in names
        ]
        shared.sort(key=lambda each: (not each.flagged_once, -_zero_if_nan(each.difference)))
        only = [[name for name in run.worst_first if name not in names] for run in (a, b)]
        return cls((a, b), shared, (only[0], only[1]), incomparable)

    @property
    def differing(self) -> list[SharedProbe]:
        """The probes that differ."""
        return [each for each in self.shared if each.differs]

    @cached_property
    def mean_drift(self) -> tuple[float, float]:
        """Mean drift of each run at its end, over the shared probes."""
        drifts = [[each.probes[i].drift for each in self.shared] for i in range(2)]
        return sum(drifts[0]) / len(drifts[0]), sum(drifts[1]) / len(drifts[1])

    def __str__(self) -> str:
        verb = "differs" if len(self.differing) == 1 else "differ"
        a, b = map(format_drift, self.mean_drift)
        return (
            f"{len(self.differing)} of {len(self.shared)} shared probes {verb} at the end; mean drift {a} in "
            f"{self.runs[0].folder}, {b} in {self.runs[1].folder}"
        )


@dataclass(frozen=True)
class _Row:
    """One shared probe as the page shows it: its images as data URIs by title; none if it is not illustrated."""

    shared: SharedProbe
    images: dict[str, str]


@dataclass(frozen=True)
class _Side:
    """One run as the page shows it."""

    label: str
    run: RecordedRun
    headline: str
    prompt: str | None
    drift: float
    only: Sequence[str]
    charts: Sequence[Chart]


def comparison_report(comparison: RunComparison, file: str) -> Iterator[tuple[str, str]]:
    """Render the comparison of two runs as HTML pages: both timelines, then the shared probes.

    The pages have no scripts and load nothing. Each shows the images of 100 probes; beyond 500 probes they list only
    the metrics.

    Args:
        comparison: of the runs.
        file: name of the first page; others lie in a folder beside it.

    Returns:
        Path and HTML of each page, as of :meth:`~clipcam_lightning.visualization.paging.Pages.render`.
    """
    extent = Extent.of(*comparison.runs)
    sides = [
        _Side(label, run, describe_alarm(run), shared_prompt(run.last), drift, only, draw_timeline(run, extent))
        for label, run, drift, only in zip(LABELS, comparison.runs, comparison.mean_drift, comparison.only, strict=True)
    ]
    problems = [
        f"{label}: {problem}" for label, run in zip(LABELS, comparison.runs, strict=True) for problem in run.problems
    ]
    a, b = map(_last_snapshot, comparison.runs)
    shared = comparison.shared

    def render_page(page: Page) -> str:
        rows = [_Row(shared[i], _draw(comparison, shared[i].name, problems)) for i in page.illustrated]
        return render(
            "run_comparison.html.jinja",
            comparison=comparison,
            page=page,
            sides=sides,
            steps=extent.steps,
            problems=list(dict.fromkeys(problems)),
            illustrated=rows,
            others=[_Row(shared[i], {}) for i in page.listed],
            meanings={"Difference": DIFFERENCE, "Drift": METRICS["Drift"], "Similarity": METRICS["Similarity"]},
            settings=compare_settings(a, b) if a is not None and b is not None else [],
            scales=draw_scales(),
        )

    return Pages([each.name for each in shared], ILLUSTRATED, file).render(render_page)


def comparison_as_json(comparison: RunComparison) -> dict[str, Any]:
    """Convert the comparison of two runs to values that JSON can represent; unknown ones are ``None``."""
    return {
        "summary": str(comparison),
        "runs": [
            {
                "run": str(run.folder),
                "summary": describe_alarm(run),
                "alarm": run.last.report.alarm,
                "alarm_since": run.alarm_since,
                "step": run.last.step,
                "drift": drift,
                "only_here": list(only),
                "problems": list(run.problems),
            }
            for run, drift, only in zip(comparison.runs, comparison.mean_drift, comparison.only, strict=True)
        ],
        "incomparable": comparison.incomparable or None,
        "probes": [
            {
                "name": each.name,
                "prompt": each.prompt,
                "differs": each.differs,
                "difference": each.difference if math.isfinite(each.difference) else None,
                "drift": [probe.drift for probe in each.probes],
                "flagged": [probe.flagged for probe in each.probes],
            }
            for each in comparison.shared
        ],
    }


def _is_shared(name: str, a: RecordedRun, b: RecordedRun) -> bool:
    if name not in b.last.probes or a.last.probes[name].prompt != b.last.probes[name].prompt:
        return False
    images = a.image(name), b.image(name)
    return None in images or images[0] == images[1]


def _last_snapshot(run: RecordedRun) -> Snapshot | None:
    """Return the snapshot of the last evaluation whose maps are known."""
    drawable: list[RecordedEvaluation] = run.drawable
    return drawable[-1].snapshot if drawable else None


def _check_maps(a: Snapshot | None, b: Snapshot | None) -> None:
    """Refuse maps of different meaning; those of probes that only one run has do not matter.

    Raises:
        IncomparableError: with the first difference.
    """
    if a is None or b is None:
        raise IncomparableError("one of the runs has no maps that can be read.")
    check_comparable(a, replace(b, info=replace(b.info, digest=a.info.digest)))


def _differ(name: str, a: Snapshot | None, b: Snapshot | None) -> float:
    """Return 1 - CC of the maps of a probe; NaN if one is missing."""
    if a is None or b is None or name not in a.names or name not in b.names:
        return math.nan
    i, j = a.names.index(name), b.names.index(name)
    degenerate = a.states[i].is_degenerate, b.states[j].is_degenerate
    if any(degenerate):
        return 0.0 if all(degenerate) else 1.0
    return max(0.0, 1 - float(correlation(a.maps[i][None], b.maps[j][None])[0]))


def _draw(comparison: RunComparison, name: str, problems: list[str]) -> dict[str, str]:
    """Draw input (if available), both last maps and, if they can be compared, the change, as data URIs by title."""
    a, b = map(_last_snapshot, comparison.runs)
    if a is None or b is None or name not in a.names or name not in b.names:
        return {}
    maps = a.maps[a.names.index(name)], b.maps[b.names.index(name)]
    titles = [f"{label}, step {each.info.step}" for label, each in zip(LABELS, (a, b), strict=True)]
    pixels = next(
        filter(lambda each: each is not None, (read_pixels(r, name, problems) for r in comparison.runs)), None
    )
    tiles = heat_tiles(*maps) if pixels is None else probe_tiles(pixels, *maps)
    titles = [*([] if pixels is None else ["Input"]), *titles, "Change"]
    return dict(zip(titles, map(jpeg_uri, tiles), strict=True))


def _zero_if_nan(value: float) -> float:
    return 0.0 if math.isnan(value) else value
