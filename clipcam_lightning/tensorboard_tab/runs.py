"""The looks of a run, as TensorBoard's data provider has them.

What is read here may have been written by anyone: a look that cannot be understood is left out and counted.
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
from clipcam_lightning.tensorboard_tab.parsing import evaluation_of, newest_bytes, probes_of, version_problem

Moment: TypeAlias = tuple[int, float]  # step and wall time, which all values of one event share
ALL = 1_000_000  # data points a tag: as many as the data provider has kept
MOST_BYTES = 2**27  # of the maps in one answer; the fast loader sends 2**28 at once, with all that is around them
UNREADABLE = (ValueError, TypeError, LookupError, ArithmeticError, MemoryError)  # a tensor unlike its own shape
MADE = ("digest", "method", "target", "layers", "grid")  # looks that differ in one of these cannot be compared


@dataclass(frozen=True)
class Watched:
    """One callback in one run.

    Attributes:
        run: its name.
        root: first word of the callback's tags.
        problem: why it cannot be shown; empty if it can.
        wall_time: of its last look.
    """

    run: str
    root: str
    problem: str
    wall_time: float


@dataclass(frozen=True)
class Evaluations:
    """The looks of one callback that can be compared with its last one, by step.

    Attributes:
        moments: when each was taken.
        told: what each look's JSON says.
        figures: a row a probe, a column each of ``tab_events.FIGURES``.
        probes: JSON: names, prompts, digests, rule.
        baselines: raw maps, by the moment of their first use, in its order.
        left_out: reasons and how many looks are left out for each.
    """

    moments: Sequence[Moment]
    told: Sequence[Mapping[str, Any]]
    figures: Float32[np.ndarray, "l n f"]
    probes: Mapping[str, Any]
    baselines: Mapping[Moment, Float32[np.ndarray, "n h w"]]
    left_out: Mapping[str, int]

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of the maps."""
        grid: tuple[int, int] = self.told[-1]["grid"]
        return grid

    @property
    def flagged_first(self) -> list[str]:
        """Names of the probes by drift at the last look, unknown drift last."""
        drift = self.figures[-1, :, events.FIGURES.index("drift")]
        return [self.probes["names"][i] for i in np.argsort(-np.nan_to_num(drift, nan=-1.0), kind="stable")]


@dataclass(frozen=True)
class Rows:
    """Some probes at all looks.

    Attributes:
        maps: divided by their figure ``scale``; NaN where a look has none.
        pictures: JPEG files, empty where there is none.
    """

    maps: Float16[np.ndarray, "r l h w"]
    pictures: Sequence[bytes]


class RunReader:
    """Reads through ``provider`` alone, which is all that both of TensorBoard's loaders have; keeps nothing."""

    def __init__(self, provider: DataProvider, ctx: RequestContext, experiment: str) -> None:
        self.experiment = experiment
        self._provider = provider
        self._asked = {"ctx": ctx, "experiment_id": experiment, "plugin_name": events.PLUGIN}

    def watched(self) -> list[Watched]:
        """All callbacks of all runs."""
        listed = self._list(None)
        end = events.tag("", events.EVALUATION)
        return [
            Watched(run, tag.removesuffix(end), version_problem(series.plugin_content), _finite(series.max_wall_time))
            for run, tags in sorted(listed.items(), key=lambda item: _natural(item[0]))
            for tag, series in sorted(tags.items())
            if tag.endswith(end)
        ]

    def newest(self, run: str, root: str) -> Moment | None:
        """When the last look of one callback was taken; ``None`` if there is none."""
        tag = events.tag(root, events.EVALUATION)
        series = self._list(RunTagFilter(runs=[run], tags=[tag])).get(run, {}).get(tag)
        return series and (series.max_step, series.max_wall_time)

    def evaluations(self, run: str, root: str) -> Evaluations:
        """All looks of one callback.

        Raises:
            NotFoundError: there is no look that can be shown.
        """
        kinds = events.EVALUATION, events.FIGURES_TAG, events.PROBES, events.BASELINE
        read = self._read(run, [events.tag(root, kind) for kind in kinds])
        described, tables, sets, baselines = (read.get(events.tag(root, kind), []) for kind in kinds)
        evaluations = [(_moment(datum), evaluation_of(datum)) for datum in surviving(described)]
        last = next((told for _, told in reversed(evaluations) if told is not None), None)
        if last is None:
            raise NotFoundError(f"Run {run!r} has no look that can be read.")
        probes = next(
            (told for told in map(probes_of, reversed(sets)) if told and told["digest"] == last["digest"]), None
        )
        if probes is None:
            raise NotFoundError(f"Run {run!r} does not tell which probes its last look is of.")
        count = len(probes["names"])
        figures = dict(_arrays(tables, (count, len(events.FIGURES)), np.float32))
        kept: list[tuple[Moment, Mapping[str, Any]]] = []
        left_out: Counter[str] = Counter()
        for moment, told in evaluations:
            if told is not None and any(told[key] != last[key] for key in MADE):
                left_out["were made in another way or of other probes than the last"] += 1
            elif told is None or moment not in figures:
                left_out["cannot be read"] += 1
            else:
                kept.append((moment, told))
        if not kept:
            raise NotFoundError(f"Run {run!r} has no look whose figures can be read.")
        return Evaluations(
            moments=[moment for moment, _ in kept],
            told=[told for _, told in kept],
            figures=np.stack([figures[moment] for moment, _ in kept]),
            probes=probes,
            baselines=dict(_arrays(baselines, (count, *last["grid"]), np.float32)),
            left_out=left_out,
        )

    def rows(self, run: str, root: str, names: Sequence[str], evaluations: Evaluations) -> Rows:
        """Maps and pictures of the probes ``names``; of one that is not known all is missing.

        Raises:
            InvalidArgumentError: the maps would take too much memory.
        """
        size = 2 * len(names) * len(evaluations.moments) * evaluations.grid[0] * evaluations.grid[1]
        if size > MOST_BYTES:
            raise InvalidArgumentError(
                f"The maps of {len(names)} probes at {len(evaluations.moments)} looks take {size / 2**20:.0f} MB, "
                f"of which {MOST_BYTES / 2**20:.0f} are answered."
            )
        tags = [[events.tag(root, kind, name) for name in names] for kind in (events.MAP, events.PICTURE)]
        read = self._read(run, tags[0] + tags[1])
        maps = np.full((len(names), len(evaluations.moments), *evaluations.grid), np.nan, np.float16)
        for row, tag in zip(maps, tags[0], strict=True):
            known = dict(_arrays(read.get(tag, []), evaluations.grid, np.float16))
            for i, moment in enumerate(evaluations.moments):
                row[i] = known.get(moment, np.nan)
        return Rows(maps, [newest_bytes(read.get(tag, [])) for tag in tags[1]])

    def _list(self, wanted: RunTagFilter | None) -> Mapping[str, Mapping[str, TensorTimeSeries]]:
        """Which tensors there are, by run and tag."""
        asked = {**self._asked, "run_tag_filter": wanted}
        listed: Mapping[str, Mapping[str, TensorTimeSeries]]
        try:
            listed = self._provider.list_tensors(**asked)
        except KeyError:  # the legacy loader, while it reads, knows a tag a moment before its first tensor
            sleep(0.02)
            listed = self._provider.list_tensors(**asked)
        return listed

    def _read(self, run: str, tags: Sequence[str]) -> Mapping[str, Sequence[TensorDatum]]:
        """Of each tag what the provider has, in the order of writing."""
        wanted = RunTagFilter(runs=[run], tags=tags)
        try:
            read = self._provider.read_tensors(**self._asked, run_tag_filter=wanted, downsample=ALL).get(run, {})
        except PublicError:
            raise
        except Exception as error:
            if len(tags) > 1:  # one tensor spoils the answer for all
                return {tag: data for each in tags for tag, data in self._read(run, [each]).items()}
            if _is_of_data(error):
                return {}
            raise
        return {tag: sorted(data, key=lambda datum: datum.wall_time) for tag, data in read.items()}


def _is_of_data(error: Exception) -> bool:
    """Whether a tensor cannot be had as it is, damaged or too large for the fast loader; not that nobody answers."""
    code = getattr(error, "code", None)  # of gRPC, which the legacy loader does not import
    too_large = callable(code) and getattr(code(), "name", "") == "RESOURCE_EXHAUSTED"
    return too_large or isinstance(error, UNREADABLE)


def surviving(data: Iterable[TensorDatum]) -> list[TensorDatum]:
    """Of data in the order of writing what a resumed run has not overtaken: it begins anew at the step it resumes."""
    kept: list[TensorDatum] = []
    for datum in data:
        while kept and kept[-1].step >= datum.step:
            kept.pop()
        kept.append(datum)
    return kept


def _finite(time: float | None) -> float:
    return time if time is not None and math.isfinite(time) else 0.0


def _natural(name: str) -> list[tuple[str, int]]:
    """By which ``version_10`` comes after ``version_9``."""
    return [(text, int(digits or 0)) for text, digits in re.findall(r"(\D*)(\d*)", name)]


def _moment(datum: TensorDatum) -> Moment:
    return datum.step, datum.wall_time


def _arrays(
    data: Iterable[TensorDatum], shape: tuple[int, ...], dtype: type[np.floating[Any]]
) -> Iterator[tuple[Moment, np.ndarray]]:
    """Those of this shape and type, and when they were written."""
    for datum in data:
        if datum.numpy.shape == shape and datum.numpy.dtype == dtype:
            yield _moment(datum), datum.numpy
