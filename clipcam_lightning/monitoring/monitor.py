"""Evaluate one probe set again and again: explain, take a snapshot, compare it with the baseline, write it."""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any
from uuid import uuid4

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from upath import UPath

from clipcam_lightning.cam.arguments import suggest
from clipcam_lightning.cam.model import ClipModel
from clipcam_lightning.cam.preprocessing import Preprocessing
from clipcam_lightning.cam.urls import PathLike
from clipcam_lightning.drift.compare import check_comparable, compare
from clipcam_lightning.drift.evidence import list_outstanding
from clipcam_lightning.drift.report import DriftReport
from clipcam_lightning.drift.rule import DriftRule
from clipcam_lightning.drift.snapshot import OF_BASELINES, Snapshot
from clipcam_lightning.errors import IncomparableError, SnapshotError, describe_error
from clipcam_lightning.monitoring.evaluation import Evaluation, Outcome, Sink
from clipcam_lightning.monitoring.explainer import Explainer
from clipcam_lightning.monitoring.history import HistoryEntry, thinned
from clipcam_lightning.monitoring.notices import UNTRAINED, Notice
from clipcam_lightning.monitoring.snapshots import add_background, add_evidence, complete_baseline, take_snapshot
from clipcam_lightning.monitoring.texts import KeptTexts
from clipcam_lightning.probes.prepared import PreparedProbes
from clipcam_lightning.probes.probe import LoadedProbe
from clipcam_lightning.probes.probe_set import ProbeSet
from clipcam_lightning.storage.tensorfile import VERSION

# Before the first evaluation drift counts as 1: unknown must not look like unmoved. So does the background.
UNKNOWN = {
    "drift": 1.0,
    "drift_max": 1.0,
    "named_without_object": 1.0,
    "similarity": 0.0,
    "flagged": 0.0,
    "alarm": 0.0,
    "degenerate": 0.0,
}
UNKNOWN_WITH_MASKS = {"energy_inside_mask": 0.0, "pointing": 0.0}
MAX_NAMED = 8  # probes in a sentence


class Monitor:
    """Evaluates one probe set again and again and keeps baseline, history and the last evaluation.

    Args:
        probes: what to explain.
        rule: which probes are flagged and what is an alarm.
        baseline: ``"start"`` for the first evaluation, ``"previous"`` for the one before, or a snapshot, its file or
            the URL of its file.

    Attributes:
        run_id: of the run that the evaluations belong to; a resumed run keeps it.
        sinks: what writes each evaluation.
        last: the newest evaluation; ``None`` before the first.
        history: one entry per evaluation; of many the first and evenly spaced later ones.
        metrics: means of the last evaluation, all finite. A degenerate map counts as the worst value.

    Raises:
        SnapshotError: the baseline file cannot be read.
        IncomparableError: the baseline was made with other probes.
    """

    def __init__(
        self, probes: ProbeSet, *, rule: DriftRule | None = None, baseline: PathLike | Snapshot = "start"
    ) -> None:
        self._is_baseline_given = baseline not in ("start", "previous")
        self._is_baseline_rolling = baseline == "previous"
        self.baseline: Snapshot | None = None
        if self._is_baseline_given:
            self.baseline = load_baseline(baseline)
            _require_same_probes("the baseline", self.baseline, probes)
        self.probes = probes
        self.rule = rule or DriftRule()
        self.run_id = uuid4().hex  # of the system's random numbers, not of Python's or torch's
        self.sinks: list[Sink] = []
        self.last: Evaluation | None = None
        self.history: Sequence[HistoryEntry] = ()
        self.metrics = dict(UNKNOWN)
        if any(probe.mask is not None for probe in probes):
            self.metrics |= UNKNOWN_WITH_MASKS
        self._prepared: tuple[ClipModel, PreparedProbes] | None = None
        self._texts = KeptTexts()

    def __getstate__(self) -> dict[str, Any]:
        # A copy has no model, writes nowhere, and is another run: it must not write to the folder of this one.
        return {**vars(self), "sinks": [], "_prepared": None, "_texts": KeptTexts(), "run_id": uuid4().hex}

    def begin_fit(self, step: int) -> None:
        """Begin another run if the steps begin again, so that its files do not replace those of the run before.

        Args:
            step: optimizer steps taken when the fit begins.
        """
        if self.history and step < self.history[-1].step:
            self.run_id = uuid4().hex

    def evaluate(self, explainer: Explainer, *, step: int, epoch: int) -> Outcome:
        """Explain the probes, compare them with the baseline, and pass the evaluation to the sinks.

        Args:
            explainer: the model as it is now, with the settings of the maps.
            step: optimizer steps taken.
            epoch: counted from 0.

        Raises:
            IncomparableError: the baseline file was made with other settings.
            ProbeError, ConfigError, ModelError: the probes do not fit the model.
        """
        clip, prepared = explainer.clip, self.prepare(explainer.clip)
        texts = self._texts(clip, prepared)
        explanation = explainer(prepared.images, texts)
        snapshot = take_snapshot(explanation, self.probes, prepared, texts, clip, step=step, epoch=epoch)
        snapshot, baseline, report, notes = self._compare(explainer, prepared, texts, snapshot)
        notes = [*notes, *_find_standstill(self.last, snapshot), *_find_missing_baselines(report)]
        self.metrics |= mean_metrics(report, snapshot, prepared.has_mask)
        number = self.history[-1].number + 1 if self.history else 0
        self.history = thinned([*self.history, HistoryEntry.of(snapshot, report, number)])
        self.last = Evaluation(
            pixels=prepared.pixels,
            masks=[mask if has else None for mask, has in zip(prepared.masks, prepared.has_mask, strict=True)],
            snapshot=snapshot,
            baseline=baseline,
            report=report,
            history=tuple(self.history),
            digests=self.probes.digests,
            metrics=dict(self.metrics),
            visible=[_visible_share(probe, clip.preprocessing) for probe in self.probes],
        )
        problems = tuple(problem for sink in self.sinks for problem in _failures(sink, sink.write, self.last))
        return Outcome(dict(self.metrics), report, tuple(notes), problems)

    def prepare(self, clip: ClipModel) -> PreparedProbes:
        """Preprocess the probes for a model, once per model.

        Raises:
            ProbeError: a probe does not fit the model.
        """
        if self._prepared is None or self._prepared[0].module is not clip.module:
            self._prepared = clip, self.probes.prepare(clip)
        return self._prepared[1]

    def close(self) -> tuple[Notice, ...]:
        """Release the model and close the sinks.

        Returns:
            What could not be written.
        """
        sinks, self.sinks, self._prepared, self._texts = self.sinks, [], None, KeptTexts()
        return tuple(problem for sink in sinks for problem in _failures(sink, sink.close))

    def state(self) -> dict[str, Any]:
        """Return the run's id, baseline, history and metrics as tensors and primitives, for a checkpoint."""
        state: dict[str, Any] = {"version": VERSION, "run_id": self.run_id}
        if self.baseline is not None:
            tensors, metadata = self.baseline.to_tensors()
            state["baseline"] = {"tensors": tensors, "metadata": metadata}
        state["history"] = [entry.to_state() for entry in self.history]
        state["metrics"] = dict(self.metrics)
        return state

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state` returned; if that fails, nothing is changed.

        Args:
            state: of a monitor with the same probes.

        Raises:
            IncomparableError: the probes differ.
            SnapshotError: the state is of a later version, or damaged.
        """
        if state.get("version", VERSION) != VERSION:
            raise SnapshotError(
                f"the checkpoint has format version {state['version']}, this package reads {VERSION}; "
                "update clipcam-lightning."
            )
        baseline = None
        try:
            if "baseline" in state:
                baseline = Snapshot.from_tensors(state["baseline"]["tensors"], state["baseline"]["metadata"])
                _require_same_probes("the checkpoint", baseline, self.probes)
            run_id = str(state.get("run_id", self.run_id))
            history = [HistoryEntry.from_state(entry) for entry in state["history"]]
            means = {name: float(state["metrics"].get(name, value)) for name, value in self.metrics.items()}
            parts = (part for each in history for part in (each.maps, each.drift, each.flagged, each.states))
            if any(len(part) != len(self.probes) for part in parts):
                raise ValueError("an evaluation in the history has another number of maps than there are probes")
        except IncomparableError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise SnapshotError(f"the callback's state in the checkpoint is damaged: {error!r}.") from error
        self.baseline = self.baseline or baseline  # a baseline file takes precedence
        self.history, self.metrics, self.run_id = history, means, run_id

    def _compare(
        self, explainer: Explainer, prepared: PreparedProbes, texts: Float[Tensor, "n 1 d"], snapshot: Snapshot
    ) -> tuple[Snapshot, Snapshot, DriftReport, list[Notice]]:
        """Compare a snapshot with the baseline, or make it the baseline.

        Returns:
            The snapshot, its baseline, the comparison, and what to note.
        """
        baseline, notes = self.baseline, list[Notice]()
        if baseline is not None:
            try:
                check_comparable(baseline, snapshot)
            except IncomparableError as error:  # a resumed run may use another method, target or layer than before
                if self._is_baseline_given:
                    raise
                baseline = None
                notes.append(Notice("new baseline", f"{error} This evaluation is the new baseline."))
        if baseline is None:
            snapshot, problem = complete_baseline(explainer, prepared, texts, snapshot)
            if problem:
                notes.append(Notice("noise floor", problem))
            self.baseline = baseline = snapshot
            return snapshot, baseline, compare(baseline, snapshot, self.rule), notes
        snapshot = add_background(explainer, prepared, texts, snapshot, baseline.objects)
        report = compare(baseline, snapshot, self.rule)
        if report.suspicious:
            outstanding = [probe.name for probe in list_outstanding(report.probes)]
            snapshot = add_evidence(explainer, prepared, texts, snapshot, baseline, outstanding)
            report = compare(baseline, snapshot, self.rule)
        if self._is_baseline_rolling:
            self.baseline = replace(snapshot, **{name: getattr(baseline, name) for name in OF_BASELINES})
        return snapshot, baseline, report, notes


def load_baseline(baseline: PathLike | Snapshot) -> Snapshot:
    """Load a baseline that is given as a file.

    Args:
        baseline: a snapshot, its file or the URL of its file.

    Raises:
        SnapshotError: it is neither, or the file cannot be read; for a misspelt ``"start"`` or ``"previous"`` the
            message suggests it.
    """
    if isinstance(baseline, Snapshot):
        return baseline
    if not isinstance(baseline, str | os.PathLike | UPath):
        raise SnapshotError(
            f"baseline must be 'start', 'previous', a Snapshot or its file (got {type(baseline).__name__}); "
            "evaluate(...) and the callback return a Snapshot as .snapshot."
        )
    try:
        return Snapshot.load(baseline)
    except SnapshotError as error:
        raise SnapshotError(f"{error}{suggest(baseline, ('start', 'previous'))}") from error


def mean_metrics(report: DriftReport, snapshot: Snapshot, has_mask: Bool[Tensor, "n"]) -> dict[str, float]:
    """Average over the probes; where a map is degenerate, the worst value counts.

    Args:
        report: the comparison with the baseline.
        snapshot: of the evaluation.
        has_mask: which probes have a mask; energy and pointing are averaged over these.

    Returns:
        Finite means by name.
    """
    means = {
        "drift": report.drift,
        "drift_max": report.worst.drift,
        "flagged": float(len(report.flagged)),
        "alarm": float(report.alarm),
        "degenerate": float(sum(bool(probe.degenerate) for probe in report.probes)),
        "named_without_object": fmean(
            1.0 if math.isnan(probe.named_without_object) else probe.named_without_object for probe in report.probes
        ),
        "similarity": float(snapshot.similarity.nan_to_num(-1.0, -1.0, -1.0).mean()),
    }
    if has_mask.any():
        for name in UNKNOWN_WITH_MASKS:
            means[name] = float(getattr(snapshot, name)[has_mask].mean())
    return means


def _visible_share(probe: LoadedProbe, preprocessing: Preprocessing) -> float:
    """Return the share of a probe's image that the model sees; 1 if the image is preprocessed already."""
    return 1.0 if isinstance(probe.image, Tensor) else preprocessing.visible_share(*probe.image.shape[:2])


def _require_same_probes(what: str, snapshot: Snapshot, probes: ProbeSet) -> None:
    if snapshot.info.digest != probes.digest:
        raise IncomparableError(
            f"{what} was made with other probes (digest {snapshot.info.digest[:12]}, these have "
            f"{probes.digest[:12]}); use the same images, prompts and masks, or take a new baseline."
        )


def _failures(sink: Sink, action: Callable[..., None], *arguments: object) -> list[Notice]:
    """Call a sink, which must stop neither the others nor the training."""
    try:
        action(*arguments)
    except Exception as error:
        text = f"an evaluation could not be written to {sink} ({describe_error(error)})."
        return [Notice(f"sink {sink} {type(error).__name__}", text)]
    return []


def _find_standstill(last: Evaluation | None, snapshot: Snapshot) -> list[Notice]:
    """Note that nothing at all changed in a training."""
    if last is None or last.snapshot.info.step >= snapshot.info.step:
        return []
    before = last.snapshot
    if not (torch.equal(before.maps, snapshot.maps) and torch.equal(before.similarity, snapshot.similarity)):
        return []
    text = (
        f"nothing changed between steps {before.info.step} and {snapshot.info.step}: all maps and similarities are "
        "bit-identical. Either nothing was learned in between, as with a learning rate of 0, or the model that "
        "is monitored is not what is trained: then name it with clip='dotted.name', or say how it embeds with "
        "encode_image=... and encode_text=..."
    )
    return [Notice(UNTRAINED, text)]


def _find_missing_baselines(report: DriftReport) -> list[Notice]:
    without = [probe for probe in report.probes if not probe.has_valid_baseline]
    if not without:
        return []
    names = ", ".join(f"{probe.name} ({probe.baseline_state})" for probe in without[:MAX_NAMED])
    more = f" and {len(without) - MAX_NAMED} more" if len(without) > MAX_NAMED else ""
    text = (
        f"{len(without)} of {len(report.probes)} probes have no valid baseline, so that their drift is unknown and "
        f"counts as 1: {names}{more}. Replace them if you can."
    )
    return [Notice("no valid baseline", text)]
