"""Runs as their folders keep them: every evaluation with its report and maps, without model and logger."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from functools import cached_property
from statistics import fmean
from typing import Any

from upath import UPath

from clipcam_lightning.drift.compare import compare
from clipcam_lightning.drift.probe_drift import ProbeDrift
from clipcam_lightning.drift.report import DriftReport
from clipcam_lightning.drift.report_json import report_from_json
from clipcam_lightning.drift.rule import DriftRule
from clipcam_lightning.drift.snapshot import OF_BASELINES, Snapshot
from clipcam_lightning.errors import ClipCamError, ConfigError, SnapshotError, abridge, describe_error
from clipcam_lightning.storage.paths import is_remote
from clipcam_lightning.storage.reading import exists, is_folder, read_bytes
from clipcam_lightning.storage.run_folder import (
    BASELINE,
    HISTORY,
    RUN,
    SNAPSHOTS,
    is_file_of_a_run,
    list_folder,
    name_snapshot,
)

MAX_NAMED = 10  # runs or steps in a message


@dataclass(frozen=True, eq=False)
class RecordedEvaluation:
    """One evaluation of a run, as its folder keeps it.

    Attributes:
        epoch: counted from 0.
        report: the comparison with the baseline, as it was when the evaluation was made.
        snapshot: maps and metrics; ``None`` if the file is missing or damaged.
        baseline: what it was compared with, with the images if they are known; ``None`` if it cannot be had.
    """

    epoch: int
    report: DriftReport
    snapshot: Snapshot | None
    baseline: Snapshot | None

    @property
    def step(self) -> int:
        """Optimizer steps taken before it."""
        return self.report.step

    @property
    def similarity(self) -> float:
        """Mean cosine of image and prompt, where a value that is not finite counts as -1."""
        values = (probe.similarity for probe in self.report.probes)
        return fmean(value if math.isfinite(value) else -1.0 for value in values)

    @property
    def largest(self) -> ProbeDrift | None:
        """The probe with the largest drift of those whose drift is known; ``None`` if that of none is."""
        known = (probe for probe in self.report.probes if probe.has_valid_baseline)
        return max(known, key=lambda probe: probe.drift, default=None)

    @property
    def unknown(self) -> list[ProbeDrift]:
        """The probes whose drift is unknown, because their baseline is degenerate."""
        return [probe for probe in self.report.probes if not probe.has_valid_baseline]

    @cached_property
    def probes(self) -> dict[str, ProbeDrift]:
        """The probes by name."""
        return {probe.name: probe for probe in self.report.probes}


@dataclass(frozen=True, eq=False)
class RecordedRun:
    """A run as its folder keeps it.

    Attributes:
        folder: that was read.
        started: when the run began, in ISO format; empty if unknown.
        evaluations: by step, at least one; without those that a resumed run has overtaken.
        problems: what could not be read, as sentences.
    """

    folder: UPath
    started: str
    evaluations: Sequence[RecordedEvaluation]
    problems: Sequence[str]

    @property
    def last(self) -> RecordedEvaluation:
        """The last evaluation."""
        return self.evaluations[-1]

    @property
    def alarm_since(self) -> int | None:
        """The step of the first of the alarms that last until the end; ``None`` if the last evaluation is none."""
        since = None
        for evaluation in reversed(self.evaluations):
            if not evaluation.report.alarm:
                break
            since = evaluation.step
        return since

    @property
    def alarms(self) -> list[RecordedEvaluation]:
        """The evaluations that are alarms."""
        return [each for each in self.evaluations if each.report.alarm]

    @property
    def drawable(self) -> list[RecordedEvaluation]:
        """The evaluations whose maps are known."""
        return [each for each in self.evaluations if each.snapshot is not None]

    def flagged_since(self, name: str) -> int | None:
        """Return the first step at which a probe is flagged; ``None`` if it never is."""
        steps = (each.step for each in self.evaluations if name in each.probes and each.probes[name].flagged)
        return next(steps, None)

    @property
    def worst_first(self) -> list[str]:
        """Names of the probes: flagged at the end, then flagged before, then by the drift at the end."""
        report = self.last.report
        names = [report.probes[i].name for i in report.flagged_first]
        return sorted(
            names, key=lambda name: (not self.last.probes[name].flagged, self.flagged_since(name) is None)
        )  # stable

    def image(self, name: str) -> bytes | None:
        """Return the JPEG file of a probe; ``None`` if no snapshot of the run has it."""
        for snapshot in self._with_images:
            if name in snapshot.names:
                return snapshot.images[snapshot.names.index(name)]
        return None

    @cached_property
    def _with_images(self) -> list[Snapshot]:
        snapshots = (each for pair in ((e.snapshot, e.baseline) for e in self.evaluations) for each in pair)
        return [each for each in snapshots if each is not None and each.images]


def find_run(place: UPath) -> UPath:
    """Find the folder of the run that a user means.

    Args:
        place: the folder of a run, or a folder that holds that of one run at any depth, such as a log directory.

    Raises:
        ConfigError: there is no such folder, or it holds no run or several; the message lists them.
        OSError: the folder cannot be read.
    """
    if not exists(place):
        raise ConfigError(f"{place} does not exist; give the folder of a run, or a log directory.")
    if not is_folder(place):
        raise ConfigError(
            f"{place} is a file; give the folder of a run. clipcam compare compares two snapshots, which are files."
        )
    runs = [place] if _is_run(list_folder(place)) else sorted(_find_runs(place), key=str)
    if not runs:
        raise ConfigError(
            f"{place} holds no run: none of its folders has a {HISTORY} or {SNAPSHOTS}, which ClipCamCallback writes."
        )
    if len(runs) > 1:
        named = ", ".join(map(str, runs[:MAX_NAMED])) + (" ..." if len(runs) > MAX_NAMED else "")
        raise ConfigError(f"{place} holds {len(runs)} runs; give the folder of one of them: {named}.")
    return runs[0]


def load_run(folder: UPath) -> RecordedRun:
    """Read all files of a run; what is missing or damaged becomes a problem of the run.

    Args:
        folder: of the run, as :func:`find_run` returns it.

    Raises:
        SnapshotError: no evaluation can be read.
        OSError: the folder cannot be read.
    """
    problems: list[str] = []
    snapshots = _load_snapshots(folder, problems)
    lines, overtaken = _read_history(folder, problems)
    evaluations = {report.step: (line, report) for line, report in lines}
    rule = lines[-1][1].rule if lines else DriftRule()
    for report, epoch in _compare_others(snapshots, {*evaluations, *overtaken}, rule, problems):
        evaluations[report.step] = {"epoch": epoch}, report
    if not evaluations:
        details = " ".join(problems) or "the run has no evaluation yet."
        raise SnapshotError(f"{folder} holds no evaluation that can be read: {details}")
    missing = [str(step) for step in sorted(evaluations) if name_snapshot(step) not in snapshots]
    if missing:
        named = ", ".join(missing[:MAX_NAMED]) + (" ..." if len(missing) > MAX_NAMED else "")
        problems.append(f"The maps of {len(missing)} evaluations are missing: of step {named}.")
    started = _read_start(folder, problems)
    return RecordedRun(
        folder,
        started,
        [_assemble(*evaluations[step], snapshots) for step in sorted(evaluations)],
        problems,
    )


def _is_run(files: Sequence[UPath]) -> bool:
    return any(is_file_of_a_run(file.name) and file.name != BASELINE for file in files)


def _find_runs(folder: UPath) -> Iterator[UPath]:
    """Find the folders below a folder that hold files of a run; links to folders are not followed."""
    for child in _list_readable(folder):
        if (not is_remote(child) and child.is_symlink()) or not is_folder(child):
            continue
        if _is_run(_list_readable(child)):
            yield child
        yield from _find_runs(child)


def _list_readable(folder: UPath) -> list[UPath]:
    try:
        return list_folder(folder)
    except PermissionError:  # it is somebody else's
        return []


def _load_snapshots(folder: UPath, problems: list[str]) -> dict[str, Snapshot]:
    """Load the snapshots of a run by their file names."""
    snapshots = {}
    for file in sorted(list_folder(folder), key=str):
        if file.name != BASELINE and not fnmatch(file.name, SNAPSHOTS):
            continue
        try:
            snapshots[file.name] = Snapshot.load(file)
        except SnapshotError as error:
            problems.append(str(error))
    return snapshots


def _read_history(folder: UPath, problems: list[str]) -> tuple[list[tuple[Any, DriftReport]], set[int]]:
    """Read the history of a run.

    Returns:
        The lines with their reports, by step, and the steps that a resumed run has overtaken.
    """
    try:
        lines = read_bytes(folder / HISTORY).splitlines()
    except OSError as error:
        problems.append(f"{describe_error(error)}. The evaluations are compared anew, by the rule's default.")
        return [], set()
    kept: list[tuple[Any, DriftReport]] = []
    overtaken: set[int] = set()
    for number, line in enumerate(lines, start=1):
        try:
            values = json.loads(line)
            report = report_from_json(values)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, ClipCamError) as error:
            problems.append(f"Line {number} of {folder / HISTORY} cannot be read: {abridge(describe_error(error))}.")
            continue
        while kept and kept[-1][1].step >= report.step:  # a resumed run starts again at the step of its checkpoint
            overtaken.add(kept.pop()[1].step)
        kept.append((values, report))
    return kept, overtaken - {report.step for _, report in kept}


def _compare_others(
    snapshots: Mapping[str, Snapshot], known: set[int], rule: DriftRule, problems: list[str]
) -> Iterator[tuple[DriftReport, int]]:
    """Compare the snapshots without a line in the history with the baseline, or the first one that there is."""
    if not snapshots:
        return
    baseline = snapshots.get(BASELINE) or next(iter(snapshots.values()))
    for name, snapshot in snapshots.items():
        step = snapshot.info.step
        if name == BASELINE or step in known:
            continue
        try:
            yield compare(baseline, snapshot, rule), snapshot.info.epoch
        except SnapshotError as error:
            problems.append(f"Step {step} is not in the history and cannot be compared: {error}")


def _assemble(line: Mapping[str, Any], report: DriftReport, snapshots: Mapping[str, Snapshot]) -> RecordedEvaluation:
    name = line.get("baseline")
    if name not in snapshots:
        name = BASELINE if BASELINE in snapshots and name is None else name_snapshot(report.baseline_step)
    baseline = snapshots.get(str(name))
    if baseline is not None and not baseline.images:
        baseline = _complete(baseline, snapshots.values())
    epoch = line.get("epoch")
    return RecordedEvaluation(
        epoch=epoch if isinstance(epoch, int) else 0,
        report=report,
        snapshot=_of_same_probes(snapshots.get(name_snapshot(report.step)), report),
        baseline=_of_same_probes(baseline, report),
    )


def _complete(baseline: Snapshot, snapshots: Iterable[Snapshot]) -> Snapshot:
    """Add what only the first baseline of a run has, if it is of the same probes."""
    for each in snapshots:
        if each.images and each.info.digest == baseline.info.digest:
            return replace(baseline, **{name: getattr(each, name) for name in OF_BASELINES})
    return baseline


def _of_same_probes(snapshot: Snapshot | None, report: DriftReport) -> Snapshot | None:
    """Return a snapshot if it is of the probes of a report, which a damaged folder need not have."""
    names = tuple(probe.name for probe in report.probes)
    return snapshot if snapshot is not None and snapshot.names == names else None


def _read_start(folder: UPath, problems: list[str]) -> str:
    try:
        return str(json.loads(read_bytes(folder / RUN))["started"])
    except OSError as error:
        problems.append(f"{describe_error(error)}. It is not known when the run began.")
    except (ValueError, KeyError, TypeError) as error:
        problems.append(f"{folder / RUN} cannot be read: {abridge(describe_error(error))}.")
    return ""
