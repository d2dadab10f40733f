"""What a training is watched with: the CLIP on every rank, probes and baseline on the first."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from torch import nn

from clipcam_lightning.cam.methods import layers_of, method_of
from clipcam_lightning.cam.model import ClipModel, Tokenizer, find_clip
from clipcam_lightning.cam.towers.tower import Tower
from clipcam_lightning.drift.rule import DriftRule
from clipcam_lightning.drift.snapshot import Snapshot
from clipcam_lightning.errors import ClipCamError, in_words
from clipcam_lightning.monitoring.evaluation import Outcome
from clipcam_lightning.monitoring.monitor import UNKNOWN, Monitor
from clipcam_lightning.probes.probe import PathLike
from clipcam_lightning.probes.probe_set import ProbeLike, ProbeSet
from clipcam_lightning.sinks import make_sinks
from clipcam_lightning.training.ranks import Explainer, Ranks
from clipcam_lightning.training.sharded import unwrapped

ProbesLike: TypeAlias = ProbeSet | PathLike | Sequence[ProbeLike]


class Session:
    """One rank's part in the looks of a training.

    All but :meth:`capture`, :meth:`state` and :meth:`release` are to be called on every rank: what is done on rank 0
    alone, such as reading a file, ends on every rank in the same way.

    Args:
        probes: as the callback takes them; ``None``: from a batch.
        num_probes: how many to take from a batch.
        num_pictures: how many probes TensorBoard shows a picture of.
        baseline, rule: as of a :class:`Monitor`.
        settings: of ``explain``.
        clip, tokenizer, towers: as ``find_clip`` takes them.

    Attributes:
        monitor: ``None`` until there are probes, and on other ranks than the first.
        clip: ``None`` where it has not been looked for.
        error: what the last problem came from.
        ranks: that look together.
    """

    def __init__(
        self,
        probes: ProbesLike | None,
        *,
        num_probes: int,
        num_images: int,
        baseline: PathLike,
        rule: DriftRule,
        settings: dict[str, Any],
        clip: str | None,
        tokenizer: Tokenizer | None,
        towers: Sequence[type[Tower]],
    ) -> None:
        self.monitor: Monitor | None = None
        self.clip: ClipModel | None = None
        self.error: Exception | None = None
        self.ranks = Ranks()
        self._root: nn.Module | None = None
        self._probes = probes
        self._num_probes = num_probes
        self._num_pictures = num_images
        self._baseline: PathLike | Snapshot = baseline
        self._rule = rule
        self._settings = settings
        self._where = clip, tokenizer, towers

    def begin(self, world_size: int) -> None:
        """Read what there is to read: a wrong file is found before training, and one deleted later is not missed."""
        self.ranks.size = world_size
        self.ranks.on_rank_zero(self._begin)

    def find(self, module: nn.Module, root: nn.Module) -> None:
        """Find the CLIP in a module, and refuse a method, layers or probes that do not fit it.

        Args:
            module: of the user.
            root: what the strategy has wrapped around it, or the module itself.
        """
        self._root = root
        with unwrapped(root):
            self.clip = clip = find_clip(module, *self._where)
        layers_of(method_of(self._settings["method"], clip.tower), clip.tower, self._settings["layers"])
        self.ranks.on_rank_zero(partial(self._prepare, clip))

    def capture(self, batch: Any) -> str:
        """Take the probes from a batch if there are none yet; why that cannot be done, or nothing."""
        assert self.clip is not None
        if self.monitor is not None:
            return ""
        try:
            size, tokenizer = self.clip.preprocessing.size, self.clip.tokenizer
            probes = ProbeSet.from_batch(batch, size=size, count=self._num_probes, tokenizer=tokenizer)
            self._monitor_of(probes)
        except Exception as error:
            self.error = error
            return f"no probes could be taken from a batch: {in_words(error)}"
        return ""

    def has_probes(self) -> bool:
        """Whether a look can be taken."""
        return self.ranks.on_rank_zero(lambda: self.monitor is not None)

    def evaluate(self, loggers: Iterable[object], folder: Path, root: str, *, step: int, epoch: int) -> Outcome:
        """Look with the help of all ranks; whatever goes wrong is a problem in the outcome, not an exception.

        Args:
            loggers: of the trainer.
            folder: for files.
            root: first word of every tag.
            step, epoch: of the training.
        """
        assert self.clip is not None
        assert self._root is not None
        take = partial(self._evaluate, self.clip, loggers, folder, root, step, epoch)
        try:
            return self.ranks.evaluate(self.clip, self._root, self._settings, take)
        except ClipCamError as error:  # the same on all ranks; any other means that they no longer hear each other
            self.error = error
            return Outcome(problems=(f"a look failed: {in_words(error)}",))

    def resume(self, state: dict[str, Any]) -> tuple[int, Mapping[str, float], str]:
        """Go on where a checkpoint left off: how many looks there were, their last figures, and what went wrong."""
        return self.ranks.on_rank_zero(partial(self._resume, state))

    def state(self, evaluations: int) -> dict[str, Any]:
        """Probes, baseline and history for a checkpoint; empty where there are none."""
        if self.monitor is None:
            return {}
        state = {"monitor": self.monitor.state(), "evaluations": evaluations}
        if self._probes is None:  # those that were given are given again; a batch is gone
            tensors, rows = self.monitor.probes.tensors()
            state["probes"] = {"tensors": tensors, "rows": rows}
        return state

    def release(self) -> tuple[str, ...]:
        """Let go of the model, and of loggers and files once all is written; what could not be, in words."""
        self.clip = self._root = None
        self.ranks.forget()
        return self.monitor.release() if self.monitor is not None else ()

    def _begin(self) -> None:
        if not isinstance(self._baseline, Snapshot) and self._baseline not in ("start", "previous"):
            self._baseline = Snapshot.load(self._baseline)
        if self.monitor is not None:
            self.monitor.release()  # a fit that was ended from outside leaves its sinks behind
        elif self._probes is not None:
            self._monitor_of(ProbeSet.of(self._probes))

    def _prepare(self, clip: ClipModel) -> None:
        if self.monitor is not None:
            self.monitor.prepare(clip)

    def _monitor_of(self, probes: ProbeSet) -> None:
        self.monitor = Monitor(probes, rule=self._rule, baseline=self._baseline, **self._settings)

    def _evaluate(
        self,
        clip: ClipModel,
        loggers: Iterable[object],
        folder: Path,
        root: str,
        step: int,
        epoch: int,
        explainer: Explainer,
    ) -> Outcome:
        assert self.monitor is not None
        if not self.monitor.sinks:
            self.monitor.sinks = make_sinks(loggers, folder, root, self._num_pictures)
        try:
            return self.monitor.evaluate(clip, step=step, epoch=epoch, explainer=explainer)
        except Exception as error:  # of any kind: a look must not take a training down
            self.error = error
            return Outcome(dict(self.monitor.metrics), problems=(f"a look failed: {in_words(error)}",))

    def _resume(self, state: dict[str, Any]) -> tuple[int, Mapping[str, float], str]:
        try:
            if self.monitor is None:
                saved = state["probes"]
                self._monitor_of(ProbeSet.from_tensors(saved["tensors"], saved["rows"]))
            assert self.monitor is not None
            evaluations = int(state["evaluations"])
            self.monitor.restore(state["monitor"])
        except Exception as error:
            self.error = error
            return 0, UNKNOWN, f"the checkpoint's baseline and history are not used: {in_words(error)}"
        return evaluations, dict(self.monitor.metrics), ""
