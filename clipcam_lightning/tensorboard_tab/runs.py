"""Read the evaluations of a run through TensorBoard's data provider.

Anyone may have written the event files: an evaluation that is not valid is left out and counted.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import sleep
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float16, Float32
from tensorboard.context import RequestContext
from tensorboard.data.provider import DataProvider, RunTagFilter, TensorDatum, TensorTimeSeries
from tensorboard.errors import InvalidArgumentError, NotFoundError, PublicError

from clipcam_lightning.tensorboard_tab import events
from clipcam_lightning.tensorboard_tab.parsing import newest_bytes, parse_evaluation, parse_probes, version_problem

Moment: TypeAlias = tuple[int, float]  # step and wall time, which all values of one event share
NO_DOWNSAMPLING = 1_000_000  # data points per tag: more than the data provider keeps
MAX_BYTES = 2**27  # of the maps in one response; a response of the fast loader, with its overhead, is limited to 2**28
UNREADABLE = (ValueError, TypeError, LookupError, ArithmeticError, MemoryError)  # a tensor that contradicts its shape
FILES = {"image": events.IMAGE, "mask": events.MASK, "ground": events.GROUND}  # tags by kind
SETTINGS = ("digest", "method", "target", "layers", "grid")  # evaluations that differ in these are not comparable


@dataclass(frozen=True)
class Source:
    """One callback in one run.

    Attributes:
        run: name of the run.
        root: first word of the callback's tags.
        problem: why it cannot be shown; empty if it can.
        alarm: whether its last evaluation is an alarm.
        wall_time: of its last evaluation, in seconds since the epoch.
    """

    run: str
    root: str
    problem: str
    alarm: bool
    wall_time: float


@dataclass(frozen=True)
class Evaluations:
    """Evaluations of one callback that are comparable with its last one, by step.

    Attributes:
        moments: step and wall time of each.
        descriptions: JSON of each: epoch, alarm, map settings and so on.
        metrics: one row per probe, one column for each of ``events.COLUMNS``.
        probes: JSON of the probe set: names, prompts, digests, rule.
        baselines: raw maps by the moment of their first use, in this order.
        left_out: number of evaluations that are left out, by reason.
    """

    moments: Sequence[Moment]
    descriptions: Sequence[Mapping[str, Any]]
    metrics: Float32[np.ndarray, "e n c"]
    probes: Mapping[str, Any]
    baselines: Mapping[Moment, Float32[np.ndarray, "n h w"]]
    left_out: Mapping[str, int]

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of the maps, in cells."""
        grid: tuple[int, int] = self.descriptions[-1]["grid"]
        return grid

    @property
    def flagged_first(self) -> list[str]:
        """Names of the probes at the last evaluation: flagged first, unknown drift last, then by drift, descending."""
        drift, flagged = (self.metrics[-1, :, events.COLUMNS.index(name)] for name in ("drift", "flagged"))
        order = np.lexsort((-np.nan_to_num(drift), np.isnan(drift), ~(flagged > 0)))  # the last key counts most
        return [self.probes["names"][i] for i in order]


@dataclass(frozen=True)
class Rows:
    """Maps and images of some probes at all evaluations.

    Attributes:
        maps: divided by their metric ``scale``; NaN where an evaluation has none.
        files: JPEG or PNG files by their kind in ``FILES``, empty where there is none.
    """

    maps: Float16[np.ndarray, "r e h w"]
    files: Mapping[str, Sequence[bytes]]


class RunReader:
    """Reads runs for one request and keeps nothing.

    Args:
        provider: the only source that both of TensorBoard's loaders have.
        ctx: of the request.
        experiment: TensorBoard's experiment id.
    """

    def __init__(self, provider: DataProvider, ctx: RequestContext, experiment: str) -> None:
        self.experiment = experiment
        self._provider = provider
        self._query = {"ctx": ctx, "experiment_id": experiment, "plugin_name": events.PLUGIN}

    def sources(self) -> list[Source]:
        """List all callbacks of all runs, first those whose last evaluation is an alarm."""
        series_by_run, alarms = self._list(None), self._alarms()
        end = events.tag("", events.EVALUATION)
        sources = [
            Source(
                run,
                root := tag.removesuffix(end),
                version_problem(series.plugin_content),
                (run, events.tag(root, events.ALARM)) in alarms,
                _finite(series.max_wall_time),
            )
            for run, tags in sorted(series_by_run.items(), key=lambda item: _natural(item[0]))
            for tag, series in sorted(tags.items())
            if tag.endswith(end)
        ]
        return sorted(sources, key=lambda source: not source.alarm)

    def newest(self, run: str, root: str) -> Moment | None:
        """Return the moment of a callback's last evaluation; ``None`` if there is none."""
        tag = events.tag(root, events.EVALUATION)
        series = self._list(RunTagFilter(runs=[run], tags=[tag])).get(run, {}).get(tag)
        return series and (series.max_step, series.max_wall_time)

    def evaluations(self, run: str, root: str) -> Evaluations:
        """Read all evaluations of one callback.

        Args:
            run: name of the run.
            root: first word of the callback's tags.

        Raises:
            NotFoundError: no evaluation can be shown.
        """
        kinds = events.EVALUATION, events.METRICS, events.PROBES, events.BASELINE
        data = self._read(run, [events.tag(root, kind) for kind in kinds])
        descriptions, tables, sets, baselines = (data.get(events.tag(root, kind), []) for kind in kinds)
        evaluations = [(_moment(datum), parse_evaluation(datum)) for datum in drop_overtaken(descriptions)]
        last = next((description for _, description in reversed(evaluations) if description is not None), None)
        if last is None:
            raise NotFoundError(f"Run {run!r} has no readable evaluation.")
        candidates = (parse_probes(datum) for datum in reversed(sets))
        probes = next((each for each in candidates if each and each["digest"] == last["digest"]), None)
        if probes is None:
            raise NotFoundError(f"Run {run!r} has no probe set for its last evaluation.")
        count = len(probes["names"])
        metrics = dict(_arrays(tables, (count, len(events.COLUMNS)), np.float32))
        kept: list[tuple[Moment, Mapping[str, Any]]] = []
        left_out: Counter[str] = Counter()
        for moment, description in evaluations:
            if description is not None and any(description[key] != last[key] for key in SETTINGS):
                left_out["other probes or map settings than the last one"] += 1
            elif description is None or moment not in metrics:
                left_out["unreadable"] += 1
            else:
                kept.append((moment, description))
        if not kept:
            raise NotFoundError(f"Run {run!r} has no evaluation with readable metrics.")
        return Evaluations(
            moments=[moment for moment, _ in kept],
            descriptions=[description for _, description in kept],
            metrics=np.stack([metrics[moment] for moment, _ in kept]),
            probes=probes,
            baselines=dict(_arrays(baselines, (count, *last["grid"]), np.float32)),
            left_out=left_out,
        )

    def rows(self, run: str, root: str, names: Sequence[str], evaluations: Evaluations) -> Rows:
        """Read maps and images of some probes.

        Args:
            run: name of the run.
            root: first word of the callback's tags.
            names: of the probes.
            evaluations: of the callback.

        Returns:
            One row per name, empty for a probe that has no data.

        Raises:
            InvalidArgumentError: the maps would take too much memory.
        """
        size = 2 * len(names) * len(evaluations.moments) * evaluations.grid[0] * evaluations.grid[1]
        if size > MAX_BYTES:
            raise InvalidArgumentError(
                f"The maps of {len(names)} probes at {len(evaluations.moments)} evaluations take "
                f"{size / 2**20:.0f} MB; at most {MAX_BYTES / 2**20:.0f} MB fit in a response. Request fewer probes."
            )
        map_tags = [events.tag(root, events.MAP, name) for name in names]
        file_tags = {kind: [events.tag(root, tag, name) for name in names] for kind, tag in FILES.items()}
        data = self._read(run, [tag for tags in (map_tags, *file_tags.values()) for tag in tags])
        maps = np.full((len(names), len(evaluations.moments), *evaluations.grid), np.nan, np.float16)
        for row, tag in zip(maps, map_tags, strict=True):
            map_at = dict(_arrays(data.get(tag, []), evaluations.grid, np.float16))
            for i, moment in enumerate(evaluations.moments):
                row[i] = map_at.get(moment, np.nan)
        files = {kind: [newest_bytes(data.get(tag, [])) for tag in tags] for kind, tags in file_tags.items()}
        return Rows(maps, files)

    def _list(self, tag_filter: RunTagFilter | None) -> Mapping[str, Mapping[str, TensorTimeSeries]]:
        """List the time series of tensors, by run and tag."""
        query = {**self._query, "run_tag_filter": tag_filter}
        series: Mapping[str, Mapping[str, TensorTimeSeries]]
        try:
            series = self._provider.list_tensors(**query)
        except KeyError:  # while the legacy loader reads, it lists a tag shortly before its first tensor
            sleep(0.02)
            series = self._provider.list_tensors(**query)
        return series

    def _alarms(self) -> set[tuple[str, str]]:
        """Return run and tag of each ``alarm`` whose last value is not 0."""
        try:
            values = self._provider.read_last_scalars(**self._query)
        except UNREADABLE:  # of one run; the list of runs is shown all the same
            return set()
        return {(run, tag) for run, tags in values.items() for tag, datum in tags.items() if _is_positive(datum.value)}

    def _read(self, run: str, tags: Sequence[str]) -> Mapping[str, Sequence[TensorDatum]]:
        """Read all data of some tags, in the order of writing."""
        tag_filter = RunTagFilter(runs=[run], tags=tags)
        try:
            data = self._provider.read_tensors(
                **self._query, run_tag_filter=tag_filter, downsample=NO_DOWNSAMPLING
            ).get(run, {})
        except PublicError:
            raise
        except Exception as error:
            if len(tags) > 1:  # one bad tensor fails the whole call
                return {tag: data for each in tags for tag, data in self._read(run, [each]).items()}
            if _is_unreadable(error):
                return {}
            raise
        return {tag: sorted(series, key=lambda datum: datum.wall_time) for tag, series in data.items()}


def _is_unreadable(error: Exception) -> bool:
    """Whether the data is damaged or too large for the fast loader, as opposed to a connection error."""
    code = getattr(error, "code", None)  # of gRPC, which the legacy loader does not import
    is_too_large = callable(code) and getattr(code(), "name", "") == "RESOURCE_EXHAUSTED"
    return is_too_large or isinstance(error, UNREADABLE)


def drop_overtaken(data: Iterable[TensorDatum]) -> list[TensorDatum]:
    """Drop data that a resumed run has overtaken: it starts again at the step from which it resumes.

    Args:
        data: in the order of writing.

    Returns:
        The remaining data, by step.
    """
    kept: list[TensorDatum] = []
    for datum in data:
        while kept and kept[-1].step >= datum.step:
            kept.pop()
        kept.append(datum)
    return kept


def _is_positive(value: object) -> bool:
    """Whether a scalar is a number above 0; the legacy loader returns what is no number, too."""
    return isinstance(value, float) and value > 0


def _finite(time: float | None) -> float:
    return time if time is not None and math.isfinite(time) else 0.0


def _natural(name: str) -> list[tuple[str, int]]:
    """Return a sort key that puts ``version_10`` after ``version_9``."""
    return [(text, int(digits or 0)) for text, digits in re.findall(r"(\D*)(\d*)", name)]


def _moment(datum: TensorDatum) -> Moment:
    return datum.step, datum.wall_time


def _arrays(
    data: Iterable[TensorDatum], shape: tuple[int, ...], dtype: type[np.floating[Any]]
) -> Iterator[tuple[Moment, np.ndarray]]:
    """Yield the arrays of this shape and type with the moments at which they were written."""
    for datum in data:
        if datum.numpy.shape == shape and datum.numpy.dtype == dtype:
            yield _moment(datum), datum.numpy
