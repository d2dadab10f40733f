"""The Lightning callback: when the probes are evaluated, and what follows from the result."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal
from weakref import ref

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from typing_extensions import override
from upath import UPath

from clipcam_lightning.cam.arguments import require_choice, require_name, require_positive
from clipcam_lightning.cam.encoders import EncodeImage, EncodeText
from clipcam_lightning.cam.finding import ModelSpec
from clipcam_lightning.cam.fuse import Fusion
from clipcam_lightning.cam.methods import Layers, MethodLike
from clipcam_lightning.cam.model import Tokenizer
from clipcam_lightning.cam.model_state import restored_rng
from clipcam_lightning.cam.precision import Precision
from clipcam_lightning.cam.settings import MapSettings
from clipcam_lightning.cam.targets import TargetLike, require_negatives
from clipcam_lightning.cam.towers.tower import Tower
from clipcam_lightning.cam.urls import PathLike
from clipcam_lightning.drift.report import DriftReport
from clipcam_lightning.drift.rule import DEFAULT_RATE, DriftRule
from clipcam_lightning.drift.snapshot import Snapshot
from clipcam_lightning.errors import (
    ClipCamError,
    ClipCamWarning,
    ConfigError,
    DriftAlarm,
    ModelError,
    describe_error,
)
from clipcam_lightning.monitoring.evaluation import Outcome, Sink, require_sinks
from clipcam_lightning.monitoring.history import HistoryEntry
from clipcam_lightning.monitoring.monitor import UNKNOWN, UNKNOWN_WITH_MASKS, Monitor
from clipcam_lightning.monitoring.notices import Notice, Notices
from clipcam_lightning.probes.class_names import ClassNames
from clipcam_lightning.probes.probe_set import ProbesLike
from clipcam_lightning.sinks import LoggingSettings, describe_tab, make_sinks
from clipcam_lightning.storage.run_folder import REPORT, RunFolder
from clipcam_lightning.training.announcement import announce
from clipcam_lightning.training.folder import resolve_folder
from clipcam_lightning.training.ranks import OutOfStepError
from clipcam_lightning.training.session import NO_PROBES, Session
from clipcam_lightning.training.steps import StepCounter
from clipcam_lightning.training.support import list_owners, may_build_layers_later, unsupported_reason

WITHOUT_EVALUATIONS = "The training goes on without evaluations."


@dataclass
class _FitState:
    """Where a fit stands, the same on every rank, so that all ranks agree on what comes next.

    Attributes:
        evaluates: whether probes are evaluated in this fit.
        logs: whether metrics are logged for other callbacks to monitor.
        evaluations: how many took place, those before a resume included.
        evaluated_at: step of the last evaluation.
        logged_at: step at which metrics were last logged.
        tried_batch: whether a training batch was tried for probes.
        has_failed: whether an evaluation failed.
        steps: counts the optimizer steps.
        checkpoint: state of the callback in a checkpoint that is not yet restored.
        is_announced: whether the user was told what is monitored.
        metrics: of the last evaluation.
    """

    evaluates: bool = False
    logs: bool = False
    evaluations: int = 0
    evaluated_at: int = -1
    logged_at: int = -1
    tried_batch: bool = False
    has_failed: bool = False
    steps: StepCounter = field(default_factory=StepCounter)
    checkpoint: dict[str, Any] | None = None
    is_announced: bool = False
    metrics: Mapping[str, float] = field(default_factory=lambda: UNKNOWN)


class ClipCamCallback(Callback):
    """Monitor where a CLIP looks while it is fine-tuned, and raise an alarm when the background predicts the prompt.

    An *evaluation* explains every probe with one CAM method, compares the maps with those of the baseline and writes
    both to the loggers of the trainer and to a folder of the run. Evaluations take place before training and after each
    validation (after each epoch, if there is no validation). The training is not changed by one bit.

    Metrics are in ``trainer.callback_metrics`` for other callbacks to monitor: ``clipcam/drift``,
    ``clipcam/drift_max``, ``clipcam/similarity``, ``clipcam/flagged`` (count of flagged probes), ``clipcam/alarm``
    (1 if the evaluation is an alarm, else 0), ``clipcam/degenerate``, ``clipcam/named_without_object`` (share of images
    that are closest to their own prompt even without their object) and, with masks, ``clipcam/energy_inside_mask`` and
    ``clipcam/pointing``. They are finite in every epoch: after an evaluation that failed the last values stay, and
    before the first evaluation drift is 1, because unknown is not unmoved.

    Every argument can be read as an attribute of the same name; for other arguments make another callback.

    Args:
        probes: a :class:`ProbeSet`, a folder with a manifest, a file that ``ProbeSet.save`` wrote, or
            ``(image, prompt)`` pairs. By default the first batch of the sanity check, else of training.
        method, layers, target, score_scale, scales, flip, shift, fuse, batch_size, precision: how maps are made, as in
            :class:`MapSettings`. The targets ``Contrast`` and ``LogSoftmax`` need explicit negatives, because each
            probe has one prompt.
        every_n_epochs: epochs between evaluations, at least 1.
        every_n_train_steps: optimizer steps between evaluations; then they no longer follow epochs.
        baseline: ``"start"`` (the first one, before training), ``"previous"`` (the last), or a snapshot file.
        max_drift: a probe that drifts further is flagged and one flagged probe is an alarm: 0 for the same map, 1 for
            an unrelated one, 2 for an inverted one. By default the conditions of :class:`DriftRule` decide.
        false_alarm_rate: share of the evaluations of a harmless training, above 0 and at most 0.2, in which the
            condition on the background is meant to raise a false alarm.
        on_drift: on alarm, ``"log"`` only the metrics, ``"warn"``, ``"stop"`` training, or ``"raise"`` DriftAlarm.
        num_probes: how many probes to take from a batch.
        num_images: how many probes loggers show images of per evaluation, flagged ones first. Metrics, snapshots and
            history cover all probes.
        probe_metrics: whether loggers get the metrics of each probe besides the means; by default TensorBoard and W&B.
        sinks: what else to write evaluations with, such as :class:`Sink` objects of your own.
        prompts: what integer labels of a batch stand for: names of the classes, or prompts such as "a photo of a fox".
            By default an attribute of the module, the datamodule or the training dataset, such as ``prompts``,
            ``class_names``, ``classes``, ``id2label`` or ``class_to_idx``, or the features of a Hugging Face dataset.
        clip, tokenizer, towers, encode_image, encode_text: where the CLIP is and how it is read, as in
            :class:`ModelSpec`.
        dirpath: folder or fsspec URL for snapshots, history, contact sheet and report; by default
            ``<save_dir>/<name>/<version>/clipcam`` of the first logger, beside Lightning's ``checkpoints``. Where it
            holds the files of another run, those of this run go to a numbered folder in it.
        name: distinguishes several of these callbacks in one trainer; part of every tag and of the default directory.
        on_error: what a failed evaluation does: ``"warn"`` once and let the training go on, or ``"raise"``.

    Raises:
        ConfigError: an argument cannot be used; the message lists what can.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[ClipCamCallback(every_n_epochs=2, on_drift="stop")], logger=False)
    """

    def __init__(
        self,
        probes: ProbesLike | None = None,
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
        every_n_epochs: int = 1,
        every_n_train_steps: int | None = None,
        baseline: PathLike = "start",
        max_drift: float | None = None,
        false_alarm_rate: float = DEFAULT_RATE,
        on_drift: Literal["log", "warn", "stop", "raise"] = "warn",
        num_probes: int = 8,
        num_images: int = 32,
        probe_metrics: bool | None = None,
        sinks: Sequence[Sink] = (),
        prompts: ClassNames | None = None,
        clip: str | None = None,
        tokenizer: Tokenizer | None = None,
        towers: Sequence[type[Tower]] = (),
        encode_image: EncodeImage | None = None,
        encode_text: EncodeText | None = None,
        dirpath: PathLike | None = None,
        name: str | None = None,
        on_error: Literal["warn", "raise"] = "warn",
    ) -> None:
        require_positive(
            every_n_epochs=every_n_epochs,
            every_n_train_steps=every_n_train_steps,
            num_probes=num_probes,
            num_images=num_images,
        )
        require_choice("on_drift", on_drift, ("log", "warn", "stop", "raise"))
        require_choice("on_error", on_error, ("warn", "raise"))
        require_sinks(sinks)
        if name is not None:
            require_name(name)
        require_negatives(target)
        self.probes = probes
        self.method = method
        self.layers = layers
        self.target = target
        self.score_scale = score_scale
        self.scales = scales
        self.flip = flip
        self.shift = shift
        self.fuse = fuse
        self.batch_size = batch_size
        self.precision = precision
        self.every_n_epochs = every_n_epochs
        self.every_n_train_steps = every_n_train_steps
        self.baseline = baseline
        self.max_drift = max_drift
        self.false_alarm_rate = false_alarm_rate
        self.on_drift = on_drift
        self.num_probes = num_probes
        self.num_images = num_images
        self.probe_metrics = probe_metrics
        self.sinks = sinks
        self.prompts = prompts
        self.clip = clip
        self.tokenizer = tokenizer
        self.towers = towers
        self.encode_image = encode_image
        self.encode_text = encode_text
        self.dirpath = dirpath
        self.name = name
        self.on_error = on_error
        self._session = Session(
            probes,
            spec=ModelSpec(
                clip=clip, tokenizer=tokenizer, towers=towers, encode_image=encode_image, encode_text=encode_text
            ),
            settings=MapSettings.of(self),
            num_probes=num_probes,
            prompts=prompts,
            baseline=baseline,
            rule=DriftRule(max_drift, false_alarm_rate),
        )
        self._root = f"clipcam_{name}" if name else "clipcam"
        self._base = UPath()
        self._folder: RunFolder | None = None
        self._directory: str | None = None
        self._fit = _FitState()
        self._report: DriftReport | None = None
        self._notices = Notices(type(self).__name__, _warn)
        self._module: ref[LightningModule] | None = None  # of the last fit

    def __getstate__(self) -> dict[str, Any]:
        # Lightning sets `log` and `log_dict` to methods of the module, and a weak reference cannot be pickled.
        state = {name: value for name, value in vars(self).items() if name not in ("log", "log_dict")}
        return {**state, "_module": None, "_folder": None, "_directory": None}

    @property
    @override
    def state_key(self) -> str:
        return self._generate_state_key(name=self.name)

    @property
    def monitor(self) -> Monitor | None:
        """Probes, baseline and sinks; ``None`` before there are probes, and on other ranks than the first."""
        return self._session.monitor

    @property
    def report(self) -> DriftReport | None:
        """The comparison of the last evaluation with the baseline, on every rank; ``None`` before the first."""
        return self._report

    @property
    def snapshot(self) -> Snapshot | None:
        """Maps and metrics of the last evaluation; ``None`` before the first, and on other ranks than the first."""
        return self.monitor.last.snapshot if self.monitor and self.monitor.last else None

    @property
    def history(self) -> Sequence[HistoryEntry]:
        """The evaluations so far; empty before the first, and on other ranks than the first."""
        return self.monitor.history if self.monitor else ()

    @property
    def directory(self) -> str | None:
        """Folder or URL of the run's files, on every rank; ``None`` before the first evaluation is written."""
        return self._folder.claimed if self._folder else self._directory

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        logs = stage == "fit" and not trainer.barebones
        before = self._fit
        evaluates = logs and not getattr(trainer, "fast_dev_run", False)
        self._fit = _FitState(evaluates, logs, before.evaluations, metrics=before.metrics)
        if stage != "fit":
            return
        self._notices.forget()
        self._require_distinct_names(trainer)
        if trainer.barebones:
            rank_zero_info(f"{type(self).__name__}: no evaluations, because barebones=True measures the bare training.")
            return
        if reason := unsupported_reason(trainer.strategy):
            if self.on_error == "raise":
                raise ConfigError(reason)
            self._fit.evaluates = False
            # The probes are not read, and may have masks.
            self._fit.metrics = {**UNKNOWN_WITH_MASKS, **self._fit.metrics}
            self._notices.show(Notice("strategy", reason), WITHOUT_EVALUATIONS)
            return
        if self._module is not None and self._module() is not pl_module:
            self._forget()
        self._module = ref(pl_module)
        self._session.begin(trainer.world_size)
        if not self._fit.evaluations:
            self._fit.metrics = self._session.read_metrics()
        self._folder = self._directory = None
        self._base = self._session.ranks.on_rank_zero(partial(resolve_folder, trainer, self.dirpath, self._root))
        if not may_build_layers_later(pl_module):
            self._find_clip(trainer, pl_module)

    # Not load_state_dict and state_dict: with these, Lightning refuses two callbacks without names before setup can say
    # what to do.
    @override
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._fit.evaluates:
            self._fit.checkpoint = deepcopy(checkpoint.get(self._root))  # the tensors may be a mapped file

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if state := self._session.state(self._fit.evaluations):
            checkpoint[self._root] = state

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._fit.evaluates:
            return
        # Again: a module may have been built, compiled, wrapped or sharded since setup.
        self._find_clip(trainer, pl_module)
        self._resume()

    @override
    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._resume()  # sharded strategies load the checkpoint after on_fit_start

    @override
    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if trainer.sanity_checking and trainer.is_global_zero and self._fit.evaluates:
            self._session.take_probes(batch, list_owners(trainer))
            self._session.error = None  # training's first batch is tried next: only that may hold text

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._fit.steps.begin(trainer)
        if not self._fit.evaluates:
            return
        self._resume()
        for doubt in self._session.find_doubts(pl_module, trainer.optimizers):
            self._notices.show(doubt)
        if self._fit.evaluations:  # resumed, or a second fit
            self._fit.evaluated_at = self._count_steps(trainer)
            self._session.begin_fit(self._fit.evaluated_at)
        elif self._session.has_probes():
            self._evaluate(trainer)

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if not self._fit.evaluates or self._fit.evaluations or self._fit.tried_batch:
            return
        self._fit.tried_batch = True
        take = partial(self._session.take_probes, batch, list_owners(trainer))
        if problem := self._session.ranks.on_rank_zero(take):
            self._fail(problem)
        if self._session.has_probes():
            self._evaluate(trainer)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        every = self.every_n_train_steps
        if not every or not self._fit.evaluates or not self._fit.evaluations:
            return
        if self._count_steps(trainer) // every != self._fit.evaluated_at // every:
            self._evaluate(trainer)

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._end_epoch(trainer, pl_module)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._fit.steps.end_epoch()
        # No validation, or steps were taken since.
        if self._fit.logs and self._fit.logged_at != self._count_steps(trainer):
            self._end_epoch(trainer, pl_module)

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._fit.checkpoint = None
        self._fit.steps.end()
        for problem in self._session.close():
            self._notices.show(problem)  # never raised: the training is over

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "fit")  # Lightning calls no teardown then, and closes the loggers next

    def _require_distinct_names(self, trainer: Trainer) -> None:
        """Refuse another callback of this name, which would write to the same tags, files and checkpoint.

        Raises:
            ConfigError: with what to do.
        """
        callbacks: list[Callback] = getattr(trainer, "callbacks", [])
        same = [each for each in callbacks if isinstance(each, ClipCamCallback) and each._root == self._root]
        if len(same) < 2:
            return
        kind = type(self).__name__
        if any(each is not self for each in same):
            raise ConfigError(
                f"{len(same)} callbacks of the Trainer are a {kind} with name={self.name!r}; give each a name of its "
                f"own, as in {kind}(name='animals')."
            )
        raise ConfigError(f"the same {kind} is {len(same)} times among the callbacks of the Trainer; list it once.")

    def _end_epoch(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate if an evaluation is due, and log the metrics in any case: monitors need them in every epoch."""
        if not self._fit.logs:
            return
        due = not self.every_n_train_steps and (trainer.current_epoch + 1) % self.every_n_epochs == 0
        if (
            due
            and self._fit.evaluates
            and self._fit.evaluations
            and self._count_steps(trainer) != self._fit.evaluated_at
        ):
            self._evaluate(trainer)
        self._fit.logged_at = self._count_steps(trainer)
        for metric, value in self._fit.metrics.items():
            # Not to the logger: a sink writes them there, at the same step as the images.
            name = f"{self._root}/{metric}"
            pl_module.log(name, value, on_step=False, on_epoch=True, logger=False, sync_dist=True, batch_size=1)

    def _count_steps(self, trainer: Trainer) -> int:
        return self._fit.steps.count(trainer)

    def _evaluate(self, trainer: Trainer) -> None:
        """Evaluate with all ranks, and act on the outcome on each of them."""
        sinks = partial(self._make_sinks, trainer)
        with restored_rng():  # a sink of the user may draw random numbers
            outcome = self._session.evaluate(sinks, step=self._count_steps(trainer), epoch=trainer.current_epoch)
        self._share_directory()
        if not self._fit.is_announced and outcome.report is not None:
            self._announce()
        self._fit.evaluations += 1
        self._fit.evaluated_at = self._count_steps(trainer)
        self._fit.metrics = outcome.metrics or self._fit.metrics
        self._report = outcome.report or self._report
        for problem in outcome.problems:
            self._fail(problem)
        for note in (*outcome.notes, *self._find_late_baseline(outcome.report)):
            self._notices.show(note)
        self._act_on_alarm(trainer, outcome)

    def _find_late_baseline(self, report: DriftReport | None) -> list[Notice]:
        """Note that the baseline is not the model before training, because evaluations before it failed."""
        if report is None:
            self._fit.has_failed = True
            return []
        if not self._fit.has_failed or report.step != report.baseline_step or self.baseline != "start":
            return []
        text = (
            f"the baseline is the model at step {report.step}, because the evaluations before failed: what was learned "
            "until then is not compared."
        )
        return [Notice("late baseline", text)]

    def _make_sinks(self, trainer: Trainer, run_id: str) -> list[Sink]:
        self._folder = RunFolder(self._base, run_id)
        settings = LoggingSettings(self._root, self.num_images, self.probe_metrics)
        return [*make_sinks(trainer.loggers, self._folder, settings), *self.sinks]

    def _share_directory(self) -> None:
        """Let all ranks know the folder of the run, which rank 0 chooses when it first writes to it."""
        if self._directory is not None:
            return
        self._directory = self._session.ranks.on_rank_zero(lambda: self.directory)
        if self._folder is not None and self._folder.note:  # on rank 0 alone
            rank_zero_info(f"{type(self).__name__}: {self._folder.note}")

    def _find_clip(self, trainer: Trainer, module: LightningModule) -> None:
        """Find the CLIP; if there is none and the user did not say where it is, go on without evaluations."""
        try:
            self._session.find_clip(module, trainer.strategy.model or module)
        except Exception as error:  # of any kind: the module of a user may raise anything
            is_of_the_model = isinstance(error, ModelError) or not isinstance(error, ClipCamError | OutOfStepError)
            if not is_of_the_model or self.on_error == "raise" or self.clip or self.encode_image or self.encode_text:
                raise
            self._fit.evaluates = False
            self._notices.show(Notice("no CLIP", describe_error(error)), WITHOUT_EVALUATIONS)

    def _forget(self) -> None:
        """Start anew with another module: its maps have nothing to do with the baseline of the one before."""
        self._session.forget()
        self._fit.evaluations, self._fit.metrics = 0, UNKNOWN
        self._report = None

    def _announce(self) -> None:
        """Say what is monitored, after the first evaluation of a fit."""
        self._fit.is_announced = True
        if self.monitor is None or self.monitor.last is None or self._session.clip is None:
            return
        lines = announce(
            self.monitor.last,
            self._session.clip,
            self.monitor.sinks,
            directory=self.directory,
            are_probes_given=self.probes is not None,
            is_baseline_given=self.baseline not in ("start", "previous"),
        )
        for line in lines:
            rank_zero_info(f"{type(self).__name__}: {line}")

    def _act_on_alarm(self, trainer: Trainer, outcome: Outcome) -> None:
        report = outcome.report
        if report is None or self.on_drift == "log":
            return
        is_news = self._notices.is_news(report)
        if not report.alarm:
            return
        if self.on_drift == "raise":
            raise DriftAlarm(str(report), report)
        stops = self.on_drift == "stop"
        trainer.should_stop = trainer.should_stop or stops
        if stops or is_news:
            consequence = " Training stops." if stops else ""
            tab = describe_tab(self.monitor.sinks if self.monitor else [], report)
            _warn(f"{report}. Report: {self.directory or self._base}/{REPORT}.{consequence}{tab}")

    def _resume(self) -> None:
        """Go on where a checkpoint left off, once Lightning has loaded it."""
        checkpoint, self._fit.checkpoint = self._fit.checkpoint, None
        if checkpoint is None or not self._fit.evaluates:
            return
        self._fit.evaluations, self._fit.metrics, problem = self._session.resume(checkpoint)
        if problem:
            self._fail(problem)

    def _fail(self, problem: Notice) -> None:
        # Not kept longer: the traceback of the error keeps the tensors of the evaluation.
        error, self._session.error = self._session.error, None
        if self.on_error == "raise":
            raise ClipCamError(problem.text) from error
        goes_on = self._fit.evaluations > 0 or problem.kind != NO_PROBES
        self._notices.show(problem, "The training goes on." if goes_on else WITHOUT_EVALUATIONS)


def _warn(text: str) -> None:
    rank_zero_warn(text, category=ClipCamWarning)
