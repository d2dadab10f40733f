"""What happens at one look: explain the probes, snapshot, compare, hand to the sinks."""

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import torch
from PIL import Image

from clipcam_lightning.cam.methods import Layers, MethodLike
from clipcam_lightning.cam.model import ClipModel
from clipcam_lightning.cam.model_state import evaluation_mode
from clipcam_lightning.cam.targets import TargetLike
from clipcam_lightning.drift.compare import DriftReport, compare
from clipcam_lightning.drift.rule import DriftRule
from clipcam_lightning.drift.snapshot import Snapshot, mean_of_known, take_snapshot
from clipcam_lightning.errors import IncomparableError, SnapshotError, in_words
from clipcam_lightning.monitoring.evaluation import Evaluation, Outcome, Sink
from clipcam_lightning.monitoring.explainer import explain_in_memory
from clipcam_lightning.monitoring.history import HistoryEntry, relative_saliency, thinned
from clipcam_lightning.monitoring.noise_floor import noise_floor
from clipcam_lightning.probes.probe import PathLike
from clipcam_lightning.probes.probe_set import PreparedProbes, ProbeSet
from clipcam_lightning.storage.jpeg import as_jpeg
from clipcam_lightning.storage.tensorfile import VERSION
from clipcam_lightning.training.ranks import Explainer

UNKNOWN = {"drift": 1.0, "drift_max": 1.0, "similarity": 0.0, "flagged": 0.0, "alarm": 0.0, "degenerate": 0.0}
PICTURE_QUALITY = 90  # of the JPEGs in a baseline
UNKNOWN_WITH_MASKS = {"energy_inside_mask": 0.0, "pointing": 0.0}


class Monitor:
    """Looks at one probe set again and again, and remembers.

    Args:
        probes: what to explain.
        method, layers, target: as in :func:`explain`.
        rule: what counts as an alarm.
        baseline: ``"start"`` for the first look, ``"previous"`` for the one before, or a snapshot or its file.
        batch_size: images per pass.

    Attributes:
        sinks: where looks go.
        last: the newest look; ``None`` before the first.
        metrics: the figures of the last look. What could not be measured then keeps its last value, so that whoever
            monitors a figure always finds a finite one. Before anything was measured drift is 1: unknown is not
            unmoved.

    Raises:
        SnapshotError: the baseline file cannot be read.
        IncomparableError: it is of other probes.
    """

    def __init__(
        self,
        probes: ProbeSet,
        *,
        method: MethodLike,
        layers: Layers,
        target: TargetLike,
        rule: DriftRule,
        baseline: PathLike | Snapshot = "start",
        batch_size: int | None = None,
    ) -> None:
        self._from_file = baseline not in ("start", "previous")
        self.baseline: Snapshot | None = None
        if self._from_file:
            self.baseline = baseline if isinstance(baseline, Snapshot) else Snapshot.load(baseline)
            _require_same_probes("the baseline", self.baseline, probes)
        self.probes = probes
        self.rule = rule
        self.sinks: list[Sink] = []
        self.last: Evaluation | None = None
        self.history: list[HistoryEntry] = []
        self.metrics = dict(UNKNOWN)
        if any(probe.mask is not None for probe in probes):
            self.metrics |= UNKNOWN_WITH_MASKS
        self._rolling = baseline == "previous"
        self._settings: dict[str, Any] = {
            "method": method,
            "layers": layers,
            "target": target,
            "batch_size": batch_size,
        }
        self._prepared: tuple[ClipModel, PreparedProbes] | None = None

    def evaluate(self, clip: ClipModel, *, step: int, epoch: int, explainer: Explainer = explain_in_memory) -> Outcome:
        """Explain the probes as ``clip`` sees them now, compare with the baseline, hand both to the sinks.

        Args:
            clip: the model now.
            step, epoch: of the training.
            explainer: what explains; the maps are the same whatever it is.

        Raises:
            IncomparableError: the baseline was made with other settings.
            ProbeError, ConfigError, ModelError: the probes do not fit the model.
        """
        prepared = self.prepare(clip)
        with torch.no_grad(), evaluation_mode(clip.module):
            texts = prepared.embedded(clip)
        explanation = explainer(clip, prepared.images, texts, **self._settings)
        snapshot = take_snapshot(explanation, self.probes, prepared, clip, step=step, epoch=epoch)
        note = ""
        if self.baseline is None:
            snapshot, note = self._as_baseline(snapshot, clip, explainer)
        baseline = self.baseline or snapshot
        try:
            report = compare(baseline, snapshot, self.rule)
        except IncomparableError as error:  # a resumed run may use another method, target or layer than before
            if self._from_file:
                raise
            snapshot, note = self._as_baseline(snapshot, clip, explainer)
            note = f"{error} This look is the new baseline. {note}"
            baseline = self.baseline = snapshot
            report = compare(snapshot, snapshot, self.rule)
        if self.baseline is None:
            self.baseline = snapshot
        elif self._rolling:
            self.baseline = replace(snapshot, noise=self.baseline.noise, pictures=self.baseline.pictures)
        self.metrics |= _figures(report, snapshot)
        column = HistoryEntry(
            step=step,
            maps=relative_saliency(snapshot.maps).half(),
            drift=tuple(probe.drift for probe in report.probes),
            flagged=tuple(probe.flagged for probe in report.probes),
            number=self.history[-1].number + 1 if self.history else 0,
        )
        self.history = thinned([*self.history, column])
        self.last = evaluation = Evaluation(
            pixels=clip.preprocessing.pixels(prepared.images),
            masks=[mask if has else None for mask, has in zip(prepared.masks, prepared.has_mask, strict=True)],
            snapshot=snapshot,
            baseline=baseline,
            report=report,
            history=tuple(self.history),
            digests=self.probes.digests,
            metrics=dict(self.metrics),
        )
        problems = self._hand_on(evaluation)
        return Outcome(
            evaluation.metrics, str(report) if report.alarm else "", (note + _unmeasured(report)).strip(), problems
        )

    def _as_baseline(self, snapshot: Snapshot, clip: ClipModel, explainer: Explainer) -> tuple[Snapshot, str]:
        """With what later looks and reports need of a baseline, the noise floor and the pictures; and what to note."""
        prepared, note = self.prepare(clip), ""
        pixels = clip.preprocessing.pixels(prepared.images).permute(0, 2, 3, 1).numpy()
        snapshot = replace(snapshot, pictures=tuple(as_jpeg(Image.fromarray(each), PICTURE_QUALITY) for each in pixels))
        try:
            snapshot = replace(snapshot, noise=noise_floor(clip, prepared, snapshot.maps, explainer, **self._settings))
        except Exception as error:  # another wording may be too long for a tokenizer; drift is known all the same
            note = f"the noise of the probes could not be measured and is taken for none: {in_words(error)} "
        return snapshot, note

    def release(self) -> tuple[str, ...]:
        """Let go of the model, and of the sinks once all is written; what could not be written, in words."""
        sinks, self.sinks, self._prepared = self.sinks, [], None
        return tuple(problem for sink in sinks for problem in _problems(sink.close))

    def _hand_on(self, evaluation: Evaluation) -> tuple[str, ...]:
        return tuple(problem for sink in self.sinks for problem in _problems(sink.write, evaluation))

    def prepare(self, clip: ClipModel) -> PreparedProbes:
        """The probes as ``clip`` is fed with them, made once a model.

        Raises:
            ProbeError: a probe does not fit the model.
        """
        if self._prepared is None or self._prepared[0].module is not clip.module:
            self._prepared = clip, self.probes.prepared(clip)
        return self._prepared[1]

    def state(self) -> dict[str, Any]:
        """Baseline and history as tensors and primitives, for a checkpoint; the probes are kept elsewhere."""
        state: dict[str, Any] = {"version": VERSION}
        if self.baseline is not None:
            tensors, metadata = self.baseline.tensors()
            state["baseline"] = {"tensors": tensors, "metadata": metadata}
        state["history"] = [asdict(column) for column in self.history]
        state["metrics"] = dict(self.metrics)
        return state

    def restore(self, state: dict[str, Any]) -> None:
        """Take over baseline and history of :meth:`state`, or nothing of it; the probes must be the same.

        Raises:
            IncomparableError: they are not.
            SnapshotError: the state is of a later version, or damaged.
        """
        if state.get("version", VERSION) != VERSION:
            raise SnapshotError(
                f"the checkpoint has format version {state['version']}, this package reads {VERSION}; "
                "update clipcam-lightning."
            )
        saved = None
        try:
            if "baseline" in state:
                saved = Snapshot.from_tensors(state["baseline"]["tensors"], state["baseline"]["metadata"])
            history = [HistoryEntry(**column) for column in state["history"]]
            metrics = {name: float(state["metrics"].get(name, value)) for name, value in self.metrics.items()}
            if any(
                {len(column.maps), len(column.drift), len(column.flagged)} != {len(self.probes)} for column in history
            ):
                raise ValueError("a look in the history has not as many maps as there are probes")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise SnapshotError(f"the checkpoint holds no whole history of looks: {error!r}.") from error
        if saved is not None:
            _require_same_probes("the checkpoint", saved, self.probes)
        self.baseline = self.baseline or saved  # a file that was asked for now takes precedence
        self.history, self.metrics = history, metrics


def _require_same_probes(what: str, snapshot: Snapshot, probes: ProbeSet) -> None:
    if snapshot.info.digest != probes.digest:
        raise IncomparableError(
            f"{what} was made with other probes (digest {snapshot.info.digest[:12]}, these have "
            f"{probes.digest[:12]}); use the same images, prompts and masks, or take a new baseline."
        )


def _problems(act: Callable[..., None], *arguments: object) -> list[str]:
    try:
        act(*arguments)
    except Exception as error:  # the disk may be full; the figures are known all the same
        return [f"a look could not be written ({in_words(error)})."]
    return []


def _figures(report: DriftReport, snapshot: Snapshot) -> dict[str, float]:
    """Means over the probes; one that nothing is known of is left out."""
    known = {
        "drift": report.drift,
        "drift_max": report.worst.drift,
        "flagged": float(len(report.flagged)),
        "alarm": float(report.alarm),
        "degenerate": float(sum(bool(probe.degenerate) for probe in report.probes)),
        "similarity": mean_of_known(snapshot.similarity),
        "energy_inside_mask": mean_of_known(snapshot.energy_inside_mask),
        "pointing": mean_of_known(snapshot.pointing),
    }
    return {name: value for name, value in known.items() if value is not None}


def _unmeasured(report: DriftReport) -> str:
    blind = [probe for probe in report.probes if not probe.has_valid_baseline]
    if not blind:
        return ""
    named = ", ".join(f"{probe.name} ({probe.degenerate})" for probe in blind)
    return f"{len(blind)} of {len(report.probes)} probes have no usable baseline, their drift is unknown: {named}."
