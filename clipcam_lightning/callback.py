"""When looks happen in a Lightning training."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from typing_extensions import override

from clipcam_lightning.cam.arguments import require_choice, require_positive
from clipcam_lightning.cam.methods import Layers, MethodLike, check_method
from clipcam_lightning.cam.model import Tokenizer
from clipcam_lightning.cam.targets import Contrast, LogSoftmax, TargetLike, target_of
from clipcam_lightning.cam.towers.tower import Tower
from clipcam_lightning.drift.rule import DriftRule
from clipcam_lightning.errors import ClipCamError, ClipCamWarning, ConfigError, DriftAlarm
from clipcam_lightning.monitoring.monitor import UNKNOWN, Monitor
from clipcam_lightning.probes.probe import PathLike
from clipcam_lightning.probes.probe_set import ProbesLike
from clipcam_lightning.training.session import Session
from clipcam_lightning.training.support import builds_later, why_not


class ClipCamCallback(Callback):
    """Watch where a CLIP looks while it is fine-tuned, and say when that changes.

    A *look* explains every probe with one CAM, compares the maps with those of the baseline and writes both to
    TensorBoard and to ``dirpath``. Looks are taken before training and after each validation (each epoch, if there
    is no validation). The training is not changed by one bit.

    Figures are in ``trainer.callback_metrics`` for other callbacks to monitor: ``clipcam/drift``,
    ``clipcam/drift_max``, ``clipcam/similarity``, ``clipcam/alarms`` (probes), ``clipcam/alarmed`` (1 if the look as a
    whole is an alarm), ``clipcam/degenerate`` and, with masks, ``clipcam/energy_inside_mask`` and ``clipcam/pointing``.
    They are finite in every epoch: what could not be measured keeps its last value, and drift is 1 before anything was
    measured, since unknown is not unmoved.

    Args:
        probes: a :class:`ProbeSet`, a folder with a manifest, a file that ``ProbeSet.save`` wrote, or
            ``(image, prompt)`` pairs. By default the first batch that passes: of the sanity check, else of training.
        method: name of a CAM method or a function of your own.
        layers: names or indices of the layers to map; by default the tower's own choice.
        target: what is mapped: ``"similarity"``, or ``Contrast(negatives=...)``: own prompt minus these.
        every_n_epochs: epochs between looks, at least 1.
        every_n_train_steps: optimizer steps between looks; then looks no longer follow epochs.
        baseline: ``"start"`` (the look before training), ``"previous"`` look, or a snapshot file.
        max_drift: a probe that drifts further raises an alarm: 0 the same map, 1 an unrelated one, 2 inverted. By
            default :class:`DriftRule` decides, from where the maps gather, their own noise and what left the object.
        on_drift: on alarm, ``"log"`` only the figures, ``"warn"``, ``"stop"`` training, or ``"raise"`` DriftAlarm.
        num_probes: how many probes to take from a batch.
        num_pictures: how many probes TensorBoard shows a picture of at each look: of more, those that drifted furthest.
            Figures, snapshots and history are of all.
        clip: dotted name of the CLIP inside the module; needed only if there are several.
        tokenizer: strings to token ids; by default the module's or open_clip's own.
        towers: image towers of your own, tried before the package's.
        dirpath: for snapshots, history and the contact sheet; by default ``clipcam`` in the trainer's log directory.
        name: tells several of these callbacks in one trainer apart; part of every tag and of the default directory.
        batch_size: images per pass in a look; bounds memory.
        on_error: what a failed look does: ``"warn"`` once and let the training go on, or ``"raise"``.

    Raises:
        ConfigError: an argument cannot be used; the message lists what can.
    """

    def __init__(
        self,
        probes: ProbesLike | None = None,
        *,
        method: MethodLike = "auto",
        layers: Layers = None,
        target: TargetLike = "similarity",
        every_n_epochs: int = 1,
        every_n_train_steps: int | None = None,
        baseline: PathLike = "start",
        max_drift: float | None = None,
        on_drift: Literal["log", "warn", "stop", "raise"] = "warn",
        num_probes: int = 8,
        num_images: int = 32,
        clip: str | None = None,
        tokenizer: Tokenizer | None = None,
        towers: Sequence[type[Tower]] = (),
        dirpath: PathLike | None = None,
        name: str | None = None,
        batch_size: int | None = None,
        on_error: Literal["warn", "raise"] = "warn",
    ) -> None:
        require_positive(
            every_n_epochs=every_n_epochs,
            every_n_train_steps=every_n_train_steps,
            num_probes=num_probes,
            num_images=num_images,
            batch_size=batch_size,
        )
        require_choice("on_drift", on_drift, ("log", "warn", "stop", "raise"))
        require_choice("on_error", on_error, ("warn", "raise"))
        if name is not None and not re.fullmatch(r"[\w.-]+", name):
            raise ConfigError(f"name must be letters, digits, '.', '-' and '_' (got {name!r}).")
        check_method(method)
        aim = target_of(target)
        if isinstance(aim, Contrast | LogSoftmax) and not len(aim.negatives):
            kind = type(aim).__name__
            raise ConfigError(f"in a look each image has one prompt; give the others: {kind}(negatives=('...',)).")
        self.every_n_epochs = every_n_epochs
        self.every_n_train_steps = every_n_train_steps
        self.on_drift = on_drift
        self.on_error = on_error
        self.name = name
        self.dirpath = dirpath
        self._watch = Session(
            probes,
            num_probes=num_probes,
            num_images=num_images,
            baseline=baseline,
            rule=DriftRule(max_drift),
            settings={"method": method, "layers": layers, "target": aim, "batch_size": batch_size},
            clip=clip,
            tokenizer=tokenizer,
            towers=towers,
        )
        self._root = f"clipcam_{name}" if name else "clipcam"
        self._directory = Path()
        self._metrics: Mapping[str, float] = UNKNOWN
        self._resumed: dict[str, Any] | None = None
        self._evaluations = 0  # counted on every rank, so that all ranks agree on what comes next
        self._evaluated_at = self._logged_at = -1  # steps of the last look and of the last time figures were logged
        self._tried_a_batch = False
        self._problem = ""  # of this rank, not yet told to the others
        self._warned: set[str] = set()
        self._off = False  # no looks
        self._silent = False  # and no figures for others to monitor

    @property
    @override
    def state_key(self) -> str:
        return self._generate_state_key(name=self.name)

    @property
    def monitor(self) -> Monitor | None:
        """Probes, baseline and history; ``None`` until there are probes, and on other ranks than the first."""
        return self._watch.monitor

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._off = self._silent = stage != "fit" or bool(getattr(trainer, "fast_dev_run", False))
        if stage != "fit":
            return
        self._evaluated_at = self._logged_at = -1
        self._tried_a_batch = False
        if reason := why_not(trainer.strategy):
            self._off = True
            if self.on_error == "raise":
                raise ConfigError(reason)
            self._warn_once(reason, " The training goes on without looks.")
            return
        self._directory = Path(self.dirpath or Path(trainer.log_dir or trainer.default_root_dir) / self._root)
        self._watch.begin(trainer.world_size)
        if not builds_later(pl_module):
            self._watch.find(pl_module, trainer.strategy.model or pl_module)

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._resumed = None if self._off else state_dict or None

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._off:
            return
        self._watch.find(
            pl_module, trainer.strategy.model or pl_module
        )  # again: a module may be built, compiled, wrapped or sharded since setup
        self._resume()

    @override
    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._resume()  # a strategy that splits the model has its checkpoint read after on_fit_start

    @override
    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if trainer.sanity_checking and trainer.is_global_zero and not self._off:
            self._problem = self._watch.capture(batch)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._off:
            return
        self._resume()
        self._tell_problem()
        if self._evaluations:  # resumed
            self._evaluated_at = trainer.global_step
        elif self._watch.has_probes():
            self._evaluate(trainer)

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._off or self._evaluations or self._tried_a_batch:
            return
        self._tried_a_batch = True
        if trainer.is_global_zero:
            self._problem = self._watch.capture(batch)
        self._tell_problem()
        if self._watch.has_probes():
            self._evaluate(trainer)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        every = self.every_n_train_steps
        if (
            not self._off
            and every
            and self._evaluations
            and trainer.global_step // every != self._evaluated_at // every
        ):
            self._evaluate(trainer)

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._evaluate_and_log(trainer, pl_module)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._logged_at != trainer.global_step:  # no validation, or steps were taken since
            self._evaluate_and_log(trainer, pl_module)

    @override
    def state_dict(self) -> dict[str, Any]:
        return self._watch.state(self._evaluations)

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._resumed = None
        for problem in self._watch.release():
            self._warn_once(problem)  # and never raised: all else is done

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "fit")  # Lightning does not, and closes the loggers next

    def _evaluate_and_log(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look if one is due, and log the figures in any case: a monitor must find them in every epoch."""
        if self._silent:
            return
        due = (
            self._evaluations
            and not self.every_n_train_steps
            and (trainer.current_epoch + 1) % self.every_n_epochs == 0
        )
        if due and trainer.global_step != self._evaluated_at:
            self._evaluate(trainer)
        self._logged_at = trainer.global_step
        for metric, value in self._metrics.items():
            # Not to the logger: there the sink writes them, at the same step as the pictures.
            name = f"{self._root}/{metric}"
            pl_module.log(name, value, on_step=False, on_epoch=True, logger=False, sync_dist=True, batch_size=1)

    def _evaluate(self, trainer: Trainer) -> None:
        """Look on all ranks, and act on what came out together."""
        step, epoch = trainer.global_step, trainer.current_epoch
        outcome = self._watch.evaluate(trainer.loggers, self._directory, self._root, step=step, epoch=epoch)
        self._evaluations += 1
        self._evaluated_at = trainer.global_step
        self._metrics = outcome.metrics or self._metrics
        for problem in outcome.problems:
            self._failed(problem)
        if outcome.note:
            self._warn_once(outcome.note)
        if not outcome.alarm or self.on_drift == "log":
            return
        if self.on_drift == "raise":
            raise DriftAlarm(outcome.alarm)
        stops = self.on_drift == "stop"
        trainer.should_stop = trainer.should_stop or stops
        rank_zero_warn(outcome.alarm + (". Training stops." if stops else ""), category=ClipCamWarning)

    def _resume(self) -> None:
        """Go on where a checkpoint left off, once it has been read."""
        resumed, self._resumed = self._resumed, None
        if resumed is None or self._off:
            return
        self._evaluations, self._metrics, problem = self._watch.resume(resumed)
        if problem:
            self._failed(problem)

    def _tell_problem(self) -> None:
        """Let all ranks act on what went wrong on the first."""
        problem, self._problem = self._watch.ranks.on_rank_zero(lambda: self._problem), ""
        if problem:
            self._failed(problem)

    def _failed(self, problem: str) -> None:
        error, self._watch.error = self._watch.error, None  # kept longer, its traceback would keep the look's tensors
        if self.on_error == "raise":
            raise ClipCamError(problem) from error
        self._warn_once(problem, " The training goes on.")

    def _warn_once(self, text: str, consequence: str = "") -> None:
        kind, _, _ = text.partition(":")  # what follows may name a step or a temporary file, and differ each time
        if kind not in self._warned:
            self._warned.add(kind)
            rank_zero_warn(f"{type(self).__name__}: {text.rstrip('.')}.{consequence}", category=ClipCamWarning)
