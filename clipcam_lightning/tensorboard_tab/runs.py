"""The looks of a run, as TensorBoard's data provider has them.

What is read here may have been written by anyone: a look that cannot be understood is left out and counted.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float16, Float32
from tensorboard.context import RequestContext
from tensorboard.data.provider import DataProvider, RunTagFilter, TensorDatum
from tensorboard.errors import NotFoundError, PublicError

from clipcam_lightning import tab_events as events

Moment: TypeAlias = tuple[int, float]  # step and wall time, which all values of one event share
ALL = 1_000_000  # data points a tag: as many as the data provider has kept
MADE = ("digest", "method", "target", "layers")  # looks that differ in one of these cannot be compared


@dataclass(frozen=True)
class Watched:
    """One callback in one run: the run's name, the first word of the callback's tags, why it cannot be shown."""

    run: str
    root: str
    problem: str


@dataclass(frozen=True)
class Looks:
    """The looks of one callback that can be compared with its last one, by step.

    Attributes:
        moments: when each was taken.
        told: what each look's JSON says.
        figures: a row a probe, a column each of ``tab_events.FIGURES``.
        probes: JSON: names, prompts, digests, rule.
        foreign: raw maps of baselines that are no looks of this run, by the moment of their first use.
        left_out: reasons and how many looks are left out for each.
    """

    moments: Sequence[Moment]
    told: Sequence[Mapping[str, Any]]
    figures: Float32[np.ndarray, "l n f"]
    probes: Mapping[str, Any]
    foreign: Mapping[Moment, Float32[np.ndarray, "n h w"]]
    left_out: Mapping[str, int]

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
        self._provider = provider
        self._asked = {"ctx": ctx, "experiment_id": experiment, "plugin_name": events.PLUGIN}

    def watched(self) -> list[Watched]:
        """All callbacks of all runs."""
        listed = self._provider.list_tensors(**self._asked)
        end = events.tag("", events.LOOK)
        return [
            Watched(run, tag.removesuffix(end), _version_problem(series.plugin_content))
            for run, tags in sorted(listed.items())
            for tag, series in sorted(tags.items())
            if tag.endswith(end)
        ]

    def looks(self, run: str, root: str) -> Looks:
        """All looks of one callback.

        Raises:
            NotFoundError: there is no look that can be shown.
        """
        kinds = events.LOOK, events.FIGURES_TAG, events.PROBES, events.BASELINE
        read = self._read(run, [events.tag(root, kind) for kind in kinds])
        described, tables, sets, baselines = (read.get(events.tag(root, kind), []) for kind in kinds)
        figures = {_moment(datum): datum.numpy for datum in tables}
        probes = next((told for told in map(_probes, reversed(sets)) if told is not None), None)
        looks: list[tuple[Moment, Mapping[str, Any], np.ndarray]] = []
        left_out: Counter[str] = Counter()
        if probes is not None:
            shape = len(probes["names"]), len(events.FIGURES)
            for datum in surviving(described):
                told, table = _told(datum), figures.get(_moment(datum))
                if told is None or table is None or table.shape != shape or table.dtype != np.float32:
                    left_out["cannot be read"] += 1
                else:
                    looks.append((_moment(datum), told, table))
        if probes is None or not looks:
            raise NotFoundError(f"Run {run!r} has no look that can be read.")
        last = looks[-1][1]
        same = [look for look in looks if all(look[1][key] == last[key] for key in MADE)]
        left_out["were made in another way or of other probes than the last"] += len(looks) - len(same)
        if last["digest"] != probes["digest"]:
            raise NotFoundError(f"Run {run!r} does not tell which probes its last look is of.")
        moments, told, tables = zip(*same, strict=True)
        foreign = {
            _moment(datum): datum.numpy
            for datum in baselines
            if datum.numpy.ndim == 3 and len(datum.numpy) == shape[0] and datum.numpy.dtype == np.float32
        }
        return Looks(moments, told, np.stack(tables), probes, foreign, +left_out)

    def rows(self, run: str, root: str, names: Sequence[str], moments: Sequence[Moment]) -> Rows:
        """Maps and pictures of the probes ``names``; of one that is not known all is missing."""
        kinds = [[events.tag(root, kind, name) for name in names] for kind in (events.MAP, events.PICTURE)]
        read = self._read(run, kinds[0] + kinds[1])
        at = {moment: i for i, moment in enumerate(moments)}
        series = [
            {at[_moment(datum)]: datum.numpy for datum in read.get(tag, []) if _moment(datum) in at and _is_map(datum)}
            for tag in kinds[0]
        ]
        newest = max(((max(maps), maps[max(maps)].shape) for maps in series if maps), default=(0, (1, 1)))
        joined = np.full((len(names), len(moments), *newest[1]), np.nan, np.float16)
        for row, maps in zip(joined, series, strict=True):
            for i, map_ in maps.items():
                if map_.shape == newest[1]:
                    row[i] = map_
        return Rows(joined, [_bytes(read.get(tag, [])) for tag in kinds[1]])

    def _read(self, run: str, tags: Sequence[str]) -> Mapping[str, Sequence[TensorDatum]]:
        wanted = RunTagFilter(runs=[run], tags=tags)
        try:
            read = self._provider.read_tensors(**self._asked, run_tag_filter=wanted, downsample=ALL)
        except PublicError:
            raise
        except Exception:  # one tensor that does not fit its own shape spoils the answer for all
            if len(tags) == 1:
                return {}
            return {tag: data for each in tags for tag, data in self._read(run, [each]).items()}
        found: Mapping[str, Sequence[TensorDatum]] = read.get(run, {})
        return {tag: sorted(data, key=lambda datum: datum.wall_time) for tag, data in found.items()}


def surviving(data: Iterable[TensorDatum]) -> list[TensorDatum]:
    """Of data in the order of writing what a resumed run has not overtaken: it begins anew at the step it resumes."""
    kept: list[TensorDatum] = []
    for datum in data:
        while kept and kept[-1].step >= datum.step:
            kept.pop()
        kept.append(datum)
    return kept


def _moment(datum: TensorDatum) -> Moment:
    return datum.step, datum.wall_time


def _is_map(datum: TensorDatum) -> bool:
    array: np.ndarray = datum.numpy
    return array.ndim == 2 and array.dtype == np.float16 and array.size > 0


def _bytes(data: Sequence[TensorDatum]) -> bytes:
    """The newest, if there is one."""
    content = data[-1].numpy.item() if data and data[-1].numpy.size == 1 else b""
    return content if isinstance(content, bytes) else b""


def _version_problem(metadata: bytes) -> str:
    try:
        version = json.loads(metadata)["version"]
        newer = version > events.VERSION
    except (ValueError, KeyError, TypeError):
        return "Its data is damaged: it does not tell the version of its format."
    return f"It was written by a later version (format {version}): update clipcam-lightning." if newer else ""


def _json(datum: TensorDatum) -> Mapping[str, Any] | None:
    """An object of this version, or ``None``."""
    try:
        value = json.loads(datum.numpy.item())
        return value if value["version"] <= events.VERSION else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _told(datum: TensorDatum) -> Mapping[str, Any] | None:
    value = _json(datum)
    kinds = {"epoch": int, "baseline_step": int, "alarmed": bool, "notes": list, "digest": str}
    if value is None or not all(type(value.get(key)) is kind for key, kind in kinds.items()):
        return None
    return value if all(key in value for key in MADE) and _are_texts(value["notes"]) else None


def _probes(datum: TensorDatum) -> Mapping[str, Any] | None:
    value = _json(datum)
    if value is None or not all(_are_texts(value.get(key)) for key in ("names", "prompts", "digests")):
        return None
    count = len(value["names"])
    sound = count > 0 and count == len(set(value["names"])) == len(value["prompts"]) == len(value["digests"])
    return value if sound and "digest" in value else None


def _are_texts(values: object) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)
