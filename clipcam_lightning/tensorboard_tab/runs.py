"""The looks of a run, as TensorBoard's data provider has them.

What is read here may have been written by anyone: a look that cannot be understood is left out and counted.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeGuard

import numpy as np
from jaxtyping import Float16, Float32
from tensorboard.context import RequestContext
from tensorboard.data.provider import DataProvider, RunTagFilter, TensorDatum
from tensorboard.errors import InvalidArgumentError, NotFoundError, PublicError

from clipcam_lightning import tab_events as events

Moment: TypeAlias = tuple[int, float]  # step and wall time, which all values of one event share
ALL = 1_000_000  # data points a tag: as many as the data provider has kept
LONGEST_SIDE = 4096  # of a grid that is believed
MOST_BYTES = 2**27  # of the maps in one answer; the fast loader sends 2**28 at once, with all that is around them
UNREADABLE = (ValueError, TypeError, LookupError, ArithmeticError, MemoryError)  # a tensor unlike its own shape
MADE = ("digest", "method", "target", "layers", "grid")  # looks that differ in one of these cannot be compared
KINDS = {  # what a look's JSON must say
    **{"epoch": int, "baseline_step": int, "alarmed": bool, "stored_baseline": bool, "notes": list},
    **{"digest": str, "method": str, "target": str, "layers": list, "grid": list},
}


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
class Looks:
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
    def worst_first(self) -> list[str]:
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
        listed = self._provider.list_tensors(**self._asked)
        end = events.tag("", events.LOOK)
        return [
            Watched(run, tag.removesuffix(end), _version_problem(series.plugin_content), _finite(series.max_wall_time))
            for run, tags in sorted(listed.items(), key=lambda item: _natural(item[0]))
            for tag, series in sorted(tags.items())
            if tag.endswith(end)
        ]

    def newest(self, run: str, root: str) -> Moment | None:
        """When the last look of one callback was taken; ``None`` if there is none."""
        tag = events.tag(root, events.LOOK)
        wanted = RunTagFilter(runs=[run], tags=[tag])
        series = self._provider.list_tensors(**self._asked, run_tag_filter=wanted).get(run, {}).get(tag)
        return series and (series.max_step, series.max_wall_time)

    def looks(self, run: str, root: str) -> Looks:
        """All looks of one callback.

        Raises:
            NotFoundError: there is no look that can be shown.
        """
        kinds = events.LOOK, events.FIGURES_TAG, events.PROBES, events.BASELINE
        read = self._read(run, [events.tag(root, kind) for kind in kinds])
        described, tables, sets, baselines = (read.get(events.tag(root, kind), []) for kind in kinds)
        looks = [(_moment(datum), _told(datum)) for datum in surviving(described)]
        last = next((told for _, told in reversed(looks) if told is not None), None)
        if last is None:
            raise NotFoundError(f"Run {run!r} has no look that can be read.")
        probes = next(
            (told for told in map(_probes, reversed(sets)) if told and told["digest"] == last["digest"]), None
        )
        if probes is None:
            raise NotFoundError(f"Run {run!r} does not tell which probes its last look is of.")
        count = len(probes["names"])
        figures = dict(_arrays(tables, (count, len(events.FIGURES)), np.float32))
        kept: list[tuple[Moment, Mapping[str, Any]]] = []
        left_out: Counter[str] = Counter()
        for moment, told in looks:
            if told is not None and any(told[key] != last[key] for key in MADE):
                left_out["were made in another way or of other probes than the last"] += 1
            elif told is None or moment not in figures:
                left_out["cannot be read"] += 1
            else:
                kept.append((moment, told))
        if not kept:
            raise NotFoundError(f"Run {run!r} has no look whose figures can be read.")
        return Looks(
            moments=[moment for moment, _ in kept],
            told=[told for _, told in kept],
            figures=np.stack([figures[moment] for moment, _ in kept]),
            probes=probes,
            baselines=dict(_arrays(baselines, (count, *last["grid"]), np.float32)),
            left_out=left_out,
        )

    def rows(self, run: str, root: str, names: Sequence[str], looks: Looks) -> Rows:
        """Maps and pictures of the probes ``names``; of one that is not known all is missing.

        Raises:
            InvalidArgumentError: the maps would take too much memory.
        """
        size = 2 * len(names) * len(looks.moments) * looks.grid[0] * looks.grid[1]
        if size > MOST_BYTES:
            raise InvalidArgumentError(
                f"The maps of {len(names)} probes at {len(looks.moments)} looks take {size / 2**20:.0f} MB, "
                f"of which {MOST_BYTES / 2**20:.0f} are answered."
            )
        tags = [[events.tag(root, kind, name) for name in names] for kind in (events.MAP, events.PICTURE)]
        read = self._read(run, tags[0] + tags[1])
        maps = np.full((len(names), len(looks.moments), *looks.grid), np.nan, np.float16)
        for row, tag in zip(maps, tags[0], strict=True):
            known = dict(_arrays(read.get(tag, []), looks.grid, np.float16))
            for i, moment in enumerate(looks.moments):
                row[i] = known.get(moment, np.nan)
        return Rows(maps, [_bytes(read.get(tag, [])) for tag in tags[1]])

    def _read(self, run: str, tags: Sequence[str]) -> Mapping[str, Sequence[TensorDatum]]:
        """Of each tag what the provider has, in the order of writing."""
        wanted = RunTagFilter(runs=[run], tags=tags)
        try:
            read = self._provider.read_tensors(**self._asked, run_tag_filter=wanted, downsample=ALL).get(run, {})
        except PublicError:
            raise
        except Exception as error:  # one such tensor spoils the answer for all
            if len(tags) == 1 and not _is_of_data(error):
                raise
            if len(tags) == 1:
                return {}
            return {tag: data for each in tags for tag, data in self._read(run, [each]).items()}
        return {tag: sorted(data, key=lambda datum: datum.wall_time) for tag, data in read.items()}


def _is_of_data(error: Exception) -> bool:
    """Whether a tensor cannot be had as it is, damaged or too large for the fast loader; not that nobody answers."""
    code = error.code() if hasattr(error, "code") else None  # of gRPC, which the legacy loader does not import
    return isinstance(error, UNREADABLE) or getattr(code, "name", "") == "RESOURCE_EXHAUSTED"


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


def _parsed(content: Any) -> Any:
    """What JSON says, ``None`` if it is none."""
    try:
        return json.loads(content)
    except (ValueError, TypeError, RecursionError):
        return None


def _bytes(data: Sequence[TensorDatum]) -> bytes:
    """The newest, if there is one."""
    content = data[-1].numpy.item() if data and data[-1].numpy.size == 1 else b""
    return content if isinstance(content, bytes) else b""


def _version_problem(metadata: bytes) -> str:
    version = _parsed(metadata)
    if type(version) is not int:
        return "Its data is damaged: it does not tell the version of its format."
    newer = version > events.VERSION
    return f"It was written by a later version (format {version}): update clipcam-lightning." if newer else ""


def _object(datum: TensorDatum) -> Mapping[str, Any]:
    """An object of this version, or an empty one."""
    told = _parsed(datum.numpy.item()) if datum.numpy.size == 1 else None
    return told if isinstance(told, dict) and told.get("version") == events.VERSION else {}


def _told(datum: TensorDatum) -> Mapping[str, Any] | None:
    """What a look's JSON says, with its grid as a shape; ``None`` if it does not say all or something else."""
    told = _object(datum)
    sound = (
        all(type(told.get(key)) is kind for key, kind in KINDS.items())
        and _are_texts(told["notes"])
        and _are_texts(told["layers"])
        and all(type(side) is int and 0 < side <= LONGEST_SIDE for side in told["grid"])
        and len(told["grid"]) == 2
        and max(abs(told["epoch"]), abs(told["baseline_step"])) < 2**63
    )
    return {**told, "grid": tuple(told["grid"])} if sound else None


def _probes(datum: TensorDatum) -> Mapping[str, Any] | None:
    told = _object(datum)
    names, prompts, digests = (told.get(key) for key in ("names", "prompts", "digests"))
    if not (_are_texts(names) and _are_texts(prompts) and _are_texts(digests)):
        return None
    sound = len(names) == len(set(names)) == len(prompts) == len(digests) > 0
    half = re.search(r"[\ud800-\udfff]", "".join(names))  # of a character, which no tag can hold
    return told if sound and not half and "digest" in told else None


def _are_texts(values: Any) -> TypeGuard[list[str]]:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)
