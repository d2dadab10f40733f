"""Monitor a training that has no Lightning Trainer."""

import logging
import warnings
from collections.abc import Mapping, Sequence
from operator import is_not
from types import TracebackType
from typing import Any, Literal

from torch import nn

from clipcam_lightning.cam.arguments import require_choice, require_name, require_positive
from clipcam_lightning.cam.encoders import EncodeImage, EncodeText
from clipcam_lightning.cam.finding import ModelSpec
from clipcam_lightning.cam.fuse import Fusion
from clipcam_lightning.cam.methods import Layers, MethodLike
from clipcam_lightning.cam.model import ClipModel, Tokenizer
from clipcam_lightning.cam.model_state import restored_rng
from clipcam_lightning.cam.precision import Precision
from clipcam_lightning.cam.settings import MapSettings
from clipcam_lightning.cam.targets import TargetLike, require_negatives
from clipcam_lightning.cam.towers.tower import Tower
from clipcam_lightning.cam.urls import PathLike
from clipcam_lightning.drift.report import DriftReport
from clipcam_lightning.drift.rule import DEFAULT_RATE, DriftRule
from clipcam_lightning.drift.snapshot import Snapshot
from clipcam_lightning.errors import ClipCamError, ClipCamWarning, DriftAlarm, describe_error
from clipcam_lightning.monitoring.evaluation import Evaluation, Sink, require_sinks
from clipcam_lightning.monitoring.explainer import LocalExplainer
from clipcam_lightning.monitoring.history import HistoryEntry
from clipcam_lightning.monitoring.monitor import Monitor
from clipcam_lightning.monitoring.notices import Notice, Notices
from clipcam_lightning.probes.probe_set import ProbeSet, ProbesLike
from clipcam_lightning.sinks import LoggingSettings, describe_tab, make_sinks, require_loggers
from clipcam_lightning.storage.paths import as_path
from clipcam_lightning.storage.run_folder import REPORT, RunFolder
from clipcam_lightning.training.announcement import announce

logger = logging.getLogger(__name__)


class ClipCamMonitor:
    """Monitor where a CLIP looks in any training loop, as :class:`ClipCamCallback` does under a Lightning Trainer.

    The first call of :meth:`evaluate` makes the baseline; each later one compares with it. Snapshots, history, contact
    sheet and report are written to ``dirpath``, metrics and images to ``loggers``. The model comes back as it was, to
    the bit. On several ranks call it on one of them, with a model that is whole there. What is monitored is logged at
    level INFO.

    Args:
        probes: a :class:`ProbeSet`, a folder with a manifest, a file that ``ProbeSet.save`` wrote, or
            ``(image, prompt)`` pairs.
        method, layers, target, score_scale, scales, flip, shift, fuse, batch_size, precision: how maps are made, as in
            :class:`MapSettings`.
        baseline: ``"start"`` (the first evaluation), ``"previous"`` (the last one), or a snapshot file.
        max_drift, false_alarm_rate: what is an alarm, as in :class:`DriftRule`.
        on_drift: on alarm ``"warn"``, ``"raise"`` DriftAlarm, or only ``"log"`` it.
        num_images: how many probes loggers show images of per evaluation, flagged ones first.
        probe_metrics: whether loggers get the metrics of each probe besides the means; by default TensorBoard and W&B.
        clip, tokenizer, towers, encode_image, encode_text: where the CLIP is and how it is read, as in
            :class:`ModelSpec`.
        dirpath: folder or fsspec URL for all files. Where it holds the files of another run, those of this run go to a
            numbered folder in it.
        loggers: loggers of Lightning or Fabric, or TensorBoard's ``SummaryWriter``. A run of W&B is one with
            ``WandbLogger(experiment=run)``.
        sinks: what else to write evaluations with.
        name: first word of every name in loggers.
        on_error: what a failed evaluation does: ``"warn"`` once and let the training go on, or ``"raise"``.

    Raises:
        ConfigError, ProbeError, SnapshotError: an argument cannot be used; the message lists what can.

    Example:
        >>> import tempfile
        >>> from clipcam_lightning import ClipCamMonitor
        >>> from clipcam_lightning.shapes_world import WordTokenizer, draw_scenes, trained_clip
        >>> scenes, model = draw_scenes(2), trained_clip("vit")
        >>> probes = list(zip(scenes.images, scenes.captions))
        >>> with ClipCamMonitor(probes, tokenizer=WordTokenizer(), dirpath=tempfile.mkdtemp()) as monitor:
        ...     report = monitor.evaluate(model, step=0)  # the baseline; call it again after each epoch
        >>> report.alarm, report.drift
        (False, 0.0)
    """

    def __init__(
        self,
        probes: ProbesLike,
        *,
        method: MethodLike = "auto",
        layers: Layers = None,
        target: TargetLike = "similarity",
        score_scale: float | None = None,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        shift: bool = False,
        fuse: Fusion | None = None,
        batch_size: int | None = None,
        precision: Precision = "float32",
        baseline: PathLike = "start",
        max_drift: float | None = None,
        false_alarm_rate: float = DEFAULT_RATE,
        on_drift: Literal["log", "warn", "raise"] = "warn",
        num_images: int = 32,
        probe_metrics: bool | None = None,
        clip: str | None = None,
        tokenizer: Tokenizer | None = None,
        towers: Sequence[type[Tower]] = (),
        encode_image: EncodeImage | None = None,
        encode_text: EncodeText | None = None,
        dirpath: PathLike = "clipcam",
        loggers: Sequence[object] = (),
        sinks: Sequence[Sink] = (),
        name: str = "clipcam",
        on_error: Literal["warn", "raise"] = "warn",
    ) -> None:
        require_positive(num_images=num_images)
        require_choice("on_drift", on_drift, ("log", "warn", "raise"))
        require_choice("on_error", on_error, ("warn", "raise"))
        require_negatives(target)
        require_loggers(loggers)
        require_sinks(sinks)
        require_name(name)
        self.on_drift = on_drift
        self.on_error = on_error
        self._is_baseline_given = baseline not in ("start", "previous")
        self._base = as_path(dirpath)
        self._folder: RunFolder | None = None
        self._spec = ModelSpec(
            clip=clip, tokenizer=tokenizer, towers=towers, encode_image=encode_image, encode_text=encode_text
        )
        self._settings = MapSettings(
            method=method,
            layers=layers,
            target=target,
            score_scale=score_scale,
            scales=scales,
            flip=flip,
            shift=shift,
            fuse=fuse,
            batch_size=batch_size,
            precision=precision,
        )
        self._monitor = Monitor(ProbeSet(probes), rule=DriftRule(max_drift, false_alarm_rate), baseline=baseline)
        self._loggers = loggers
        self._logging_settings = LoggingSettings(name, num_images, probe_metrics)
        self._extra_sinks = sinks
        self._found: ClipModel | None = None
        self._parts: list[nn.Module] = []  # of the model in which it was found
        self._notices = Notices(type(self).__name__, _warn)

    @property
    def directory(self) -> str | None:
        """Folder or URL of the run's files; ``None`` before the first evaluation is written."""
        return self._folder.claimed if self._folder else None

    @property
    def report(self) -> DriftReport | None:
        """The comparison of the last evaluation with the baseline; ``None`` before the first."""
        return self._last.report if self._last else None

    @property
    def snapshot(self) -> Snapshot | None:
        """Maps and metrics of the last evaluation; ``None`` before the first."""
        return self._last.snapshot if self._last else None

    @property
    def metrics(self) -> Mapping[str, float]:
        """Means of the last evaluation by name, all finite, for any logger; before the first the worst values."""
        return dict(self._monitor.metrics)

    @property
    def history(self) -> Sequence[HistoryEntry]:
        """The evaluations so far; of many the first and evenly spaced later ones."""
        return self._monitor.history

    @property
    def _last(self) -> Evaluation | None:
        return self._monitor.last

    def evaluate(self, model: nn.Module, step: int, epoch: int = 0) -> DriftReport | None:
        """Explain the probes with the model as it is now, compare the maps with the baseline, and write both.

        Args:
            model: any module that holds the CLIP, in any mode.
            step: optimizer steps taken.
            epoch: counted from 0.

        Returns:
            The comparison; ``None`` if the evaluation failed, which is a warning.

        Raises:
            DriftAlarm: with ``on_drift="raise"``, on an alarm.
            Exception: with ``on_error="raise"``, what the evaluation raised.
        """
        opens = not self._monitor.sinks
        try:
            with restored_rng():  # a sink of the user may draw random numbers
                if opens:
                    self._open_run(step)
                explainer = LocalExplainer(self._find(model), self._settings)
                outcome = self._monitor.evaluate(explainer, step=step, epoch=epoch)
        except Exception as error:  # of any kind: an evaluation must not stop a training
            if self.on_error == "raise":
                raise
            self._notices.show(
                Notice(f"failed {type(error).__name__}", f"an evaluation failed: {describe_error(error)}")
            )
            return None
        if self._folder is not None and self._folder.note:
            self._notices.show(Notice(self._folder.note, self._folder.note))
        if opens:
            self._announce(explainer.clip)
        for problem in outcome.problems:
            if self.on_error == "raise":
                raise ClipCamError(problem.text)
            self._notices.show(problem)
        for note in outcome.notes:
            self._notices.show(note)
        assert outcome.report is not None  # the evaluation did not fail
        self._act_on_alarm(outcome.report)
        return outcome.report

    def state_dict(self) -> dict[str, Any]:
        """Return the run's id, baseline, history and metrics as tensors and primitives, for a checkpoint."""
        return self._monitor.state()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken; if that fails, nothing is changed.

        Raises:
            IncomparableError: the probes differ.
            SnapshotError: the state is of a later version, or damaged.
        """
        self._monitor.restore(state)
        if self._monitor.sinks:  # they write to the folder of the run before
            self.close()

    def close(self) -> None:
        """Wait until everything is written, and release the model. The monitor can be used again."""
        self._found, self._parts = None, []
        for problem in self._monitor.close():
            self._notices.show(problem)

    def __enter__(self) -> "ClipCamMonitor":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _open_run(self, step: int) -> None:
        """Make what writes the evaluations of a run, in a new folder if the steps begin again."""
        self._monitor.begin_fit(step)
        self._folder = RunFolder(self._base, self._monitor.run_id)
        sinks = make_sinks(self._loggers, self._folder, self._logging_settings)
        self._monitor.sinks = [*sinks, *self._extra_sinks]

    def _find(self, model: nn.Module) -> ClipModel:
        """Find the CLIP, once as long as the model is made of the same modules: the search may embed images."""
        parts = [model, *model.modules()]
        if self._found is None or len(parts) != len(self._parts) or any(map(is_not, parts, self._parts)):
            self._found, self._parts = self._spec.find(model), parts
        return self._found

    def _announce(self, clip: ClipModel) -> None:
        assert self._last is not None
        lines = announce(
            self._last,
            clip,
            self._monitor.sinks,
            directory=self.directory,
            are_probes_given=True,
            is_baseline_given=self._is_baseline_given,
        )
        for line in lines:
            logger.info(line)

    def _act_on_alarm(self, report: DriftReport) -> None:
        is_news = self._notices.is_news(report)
        if not report.alarm or self.on_drift == "log":
            return
        if self.on_drift == "raise":
            raise DriftAlarm(str(report), report)
        if is_news:
            place = self.directory or self._base
            tab = describe_tab(self._monitor.sinks, report)
            _warn(f"{report}. Report: {place}/{REPORT}.{tab}")


def _warn(text: str) -> None:
    """Warn at the line of the user, who called a method of the monitor that called what warns."""
    warnings.warn(text, ClipCamWarning, stacklevel=4)
