"""Per-rank state of a monitored run: the CLIP on every rank, probes and baseline on the first."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from clipcam_lightning.cam.encoders import EncoderPair
from clipcam_lightning.cam.finding import ModelSpec
from clipcam_lightning.cam.images import takes_size
from clipcam_lightning.cam.model import ClipModel
from clipcam_lightning.cam.settings import MapSettings
from clipcam_lightning.cam.towers.traced import TracedTower
from clipcam_lightning.cam.urls import PathLike
from clipcam_lightning.drift.rule import DriftRule
from clipcam_lightning.drift.snapshot import Snapshot
from clipcam_lightning.errors import ClipCamError, describe_error
from clipcam_lightning.monitoring.evaluation import Outcome, Sink
from clipcam_lightning.monitoring.explainer import Explainer, LocalExplainer
from clipcam_lightning.monitoring.monitor import UNKNOWN, Monitor, load_baseline
from clipcam_lightning.monitoring.notices import Notice, end_sentence
from clipcam_lightning.probes.batch import BatchProbes, find_images_and_prompts
from clipcam_lightning.probes.batch_texts import TextInput
from clipcam_lightning.probes.class_names import ClassNames, find_class_names
from clipcam_lightning.probes.probe_set import ProbeSet, ProbesLike
from clipcam_lightning.training.distributed_explainer import DistributedExplainer
from clipcam_lightning.training.doubts import find_doubts
from clipcam_lightning.training.ranks import OutOfStepError, Ranks
from clipcam_lightning.training.sharded import gathered_parameters, is_sharded, reserve_memory

NO_PROBES = "no probes"  # kind of a notice


class Session:
    """Evaluates the probes during a training, with the help of all ranks.

    Every method but :meth:`take_probes`, :meth:`state` and :meth:`close` is to be called on every rank: what happens
    on rank 0 alone, such as reading a file, ends on every rank in the same way.

    Args:
        probes: as the callback takes them; ``None`` to take them from a batch.
        spec: where the CLIP is in the module.
        settings: how maps are made.
        num_probes: how many probes to take from a batch.
        prompts: what integer labels of a batch stand for.
        baseline, rule: as in :class:`Monitor`.

    Attributes:
        monitor: ``None`` until there are probes, and on other ranks than the first.
        clip: ``None`` before :meth:`find_clip`.
        error: the exception behind the last problem.
        ranks: the ranks of the training.
    """

    def __init__(
        self,
        probes: ProbesLike | None,
        *,
        spec: ModelSpec,
        settings: MapSettings,
        num_probes: int,
        prompts: ClassNames | None,
        baseline: PathLike,
        rule: DriftRule,
    ) -> None:
        self.monitor: Monitor | None = None
        self.clip: ClipModel | None = None
        self.error: Exception | None = None
        self.ranks = Ranks()
        self._root: nn.Module | None = None
        self._notes: tuple[Notice, ...] = ()  # of the probes, for the first evaluation
        self._explainer: DistributedExplainer | None = None
        self._probes = probes
        self._spec = spec
        self._settings = settings
        self._num_probes = num_probes
        self._prompts = prompts
        self._baseline: PathLike | Snapshot = baseline
        self._rule = rule

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "clip": None, "error": None, "_root": None, "_explainer": None}  # a copy has no model

    def begin(self, world_size: int) -> None:
        """Load probes and baseline up front, so that bad files fail before training."""
        self.ranks = Ranks()
        self.ranks.size = world_size
        self.ranks.on_rank_zero(self._load)

    def find_clip(self, module: nn.Module, root: nn.Module) -> None:
        """Find the CLIP in a module, and refuse a method, layers or probes that do not fit it.

        Args:
            module: the user's LightningModule.
            root: the strategy's wrapper around it, or the module itself.

        Raises:
            Exception: what is wrong, on every rank; of several ranks as an error of this package.
            OutOfStepError: one rank failed while parameters were gathered.
        """
        self._root = root
        self._explainer = None
        with self.ranks.failing_together():
            with self._gathered_parameters(module):  # both may embed images
                self.clip = clip = self._spec.find(module)
                self._settings.resolve(clip.tower)
            if self.monitor is not None:
                self.monitor.prepare(clip)

    def find_doubts(self, module: nn.Module, optimizers: Sequence[Optimizer]) -> list[Notice]:
        """Note reasons to doubt the evaluations, as :func:`~clipcam_lightning.training.doubts.find_doubts` does."""
        assert self.clip is not None
        return find_doubts(self.clip, module, optimizers, is_named=self._spec.clip is not None)

    def forget(self) -> None:
        """Forget the baseline and history of another module, and probes that were taken from its batches."""
        self.monitor = self.clip = self._root = self._explainer = None

    def take_probes(self, batch: Any, owners: Sequence[Any] = ()) -> Notice | None:
        """Build the probe set from a batch if there is none yet.

        Args:
            batch: of any form.
            owners: what may know the names of the classes, if the batch holds labels.

        Returns:
            What went wrong; ``None`` if there are probes.
        """
        assert self.clip is not None
        if self.monitor is not None:
            return None
        try:
            clip, size = self.clip, self.clip.preprocessing.size
            names = self._prompts or find_class_names(owners)
            found = find_images_and_prompts(
                batch,
                size,
                partial(takes_size, clip.tower),
                names,
                are_names_given=self._prompts is not None,
                text_input=TextInput(clip.vocabulary_size, clip.tokenizer is not None),
            )
            texts = (_describe_size(found, clip), _describe_values(found, clip))
            self._notes = tuple(Notice(text, text) for text in texts if text)
            self._make_monitor(ProbeSet(found.list_probes(self._num_probes, clip.tokenizer)))
        except Exception as error:
            self.error = error
            return Notice(NO_PROBES, f"no probes could be taken from a batch: {describe_error(error)}")
        return None

    def read_metrics(self) -> Mapping[str, float]:
        """Read the metrics of the last evaluation; before the first the worst values."""
        return self.ranks.on_rank_zero(lambda: dict(self.monitor.metrics) if self.monitor else UNKNOWN)

    def begin_fit(self, step: int) -> None:
        """Begin a fit, at ``step``, that goes on with the baseline of an earlier one."""
        if self.monitor is not None:
            self.monitor.begin_fit(step)

    def has_probes(self) -> bool:
        """Whether there are probes to evaluate."""
        return self.ranks.on_rank_zero(lambda: self.monitor is not None)

    def evaluate(self, make_sinks: Callable[[str], list[Sink]], *, step: int, epoch: int) -> Outcome:
        """Evaluate the probes with the help of all ranks.

        Args:
            make_sinks: makes what writes the evaluations of the run with this id; called once per fit, on rank 0.
            step: optimizer steps taken.
            epoch: counted from 0.

        Returns:
            The outcome, on every rank; whatever goes wrong is one of its problems, not an exception.

        Raises:
            OutOfStepError: the ranks lost each other.
        """
        try:
            with self._ready_model() as explainer:
                assist = explainer.assist if isinstance(explainer, DistributedExplainer) else None
                return self.ranks.on_rank_zero(partial(self._evaluate, explainer, make_sinks, step, epoch), assist)
        except ClipCamError as error:  # the same on all ranks
            self.error = error
            return Outcome(problems=(self._describe_failure(error),))

    def resume(self, state: dict[str, Any]) -> tuple[int, Mapping[str, float], Notice | None]:
        """Go on where a checkpoint left off.

        Returns:
            The number of evaluations before, their last metrics, and what went wrong.
        """
        return self.ranks.on_rank_zero(partial(self._restore, state))

    def state(self, evaluations: int) -> dict[str, Any]:
        """Return probes, baseline and history for a checkpoint; empty where there are none."""
        if self.monitor is None:
            return {}
        state = {"monitor": self.monitor.state(), "evaluations": evaluations}
        if self._probes is None:  # the user gives the same probes again; a batch is gone
            tensors, rows = self.monitor.probes.to_tensors()
            state["probes"] = {"tensors": tensors, "rows": rows}
        return state

    def close(self) -> tuple[Notice, ...]:
        """Release the model and close the sinks.

        Returns:
            What could not be written.
        """
        self.clip = self._root = self._explainer = None
        return self.monitor.close() if self.monitor is not None else ()

    def _load(self) -> None:
        if self._baseline not in ("start", "previous"):
            self._baseline = load_baseline(self._baseline)
        if self.monitor is not None:
            self.monitor.close()  # a fit that was killed leaves its sinks open
        elif self._probes is not None:
            self._make_monitor(ProbeSet(self._probes))

    def _make_monitor(self, probes: ProbeSet) -> None:
        self.monitor = Monitor(probes, rule=self._rule, baseline=self._baseline)

    @contextmanager
    def _ready_model(self) -> Iterator[Explainer]:
        """Gather sharded parameters and lend buffers, so that every rank can call the model by itself.

        Raises:
            ClipCamError: the model could not be made ready on some rank; on every rank.
        """
        assert self.clip is not None
        with ExitStack() as stack:
            try:
                stack.enter_context(self._gathered_parameters(self.clip.module))
                stack.enter_context(self.ranks.lending_buffers(self.clip.module))
            except (ClipCamError, OutOfStepError):
                raise
            except Exception as error:  # of a single process, and of any kind, such as too little memory
                raise ClipCamError(describe_error(error)) from error
            if self.ranks.size == 1:
                yield LocalExplainer(self.clip, self._settings)
                return
            if self._explainer is None:
                self._explainer = DistributedExplainer(self.clip, self._settings, self.ranks)
            yield self._explainer

    @contextmanager
    def _gathered_parameters(self, module: nn.Module) -> Iterator[None]:
        """Gather the parameters of a module if they are sharded.

        Raises:
            ClipCamError: some rank has too little memory for them; on every rank.
            OutOfStepError: this rank failed while they were gathered, when the others already wait for it.
        """
        assert self._root is not None
        if not is_sharded(self._root):
            yield
            return
        with self.ranks.failing_together():
            reserve_memory(module, self._root)
        with ExitStack() as stack:
            with self.ranks.in_step():
                stack.enter_context(gathered_parameters(module, self._root))
            yield

    def _evaluate(
        self, explainer: Explainer, make_sinks: Callable[[str], list[Sink]], step: int, epoch: int
    ) -> Outcome:
        assert self.monitor is not None
        try:
            if not self.monitor.sinks:
                self.monitor.sinks = make_sinks(self.monitor.run_id)
            outcome = self.monitor.evaluate(explainer, step=step, epoch=epoch)
            notes, self._notes = self._notes, ()
            return replace(outcome, notes=(*notes, *outcome.notes))
        except Exception as error:  # of any kind: an evaluation must not stop a training
            self.error = error
            return Outcome(dict(self.monitor.metrics), problems=(self._describe_failure(error),))

    def _describe_failure(self, error: Exception) -> Notice:
        text = f"an evaluation failed: {describe_error(error)}"
        has_worked = self.monitor is not None and self.monitor.last is not None
        if not has_worked and not isinstance(error, ClipCamError):  # the model may take other arguments
            text = (
                f"{end_sentence(text)} If the model embeds images or texts in a way of its own, say how, with "
                "encode_image=lambda module, images: ... and encode_text=lambda module, texts: ..., each of which "
                "returns [n, d]."
            )
        return Notice(f"failed {type(error).__name__}", text)

    def _restore(self, state: dict[str, Any]) -> tuple[int, Mapping[str, float], Notice | None]:
        try:
            if self.monitor is None:
                saved = state["probes"]
                self._make_monitor(ProbeSet.from_tensors(saved["tensors"], saved["rows"]))
            assert self.monitor is not None
            evaluations = int(state["evaluations"])
            self.monitor.restore(state["monitor"])
        except Exception as error:
            self.error = error
            text = f"the checkpoint's baseline and history are not used: {describe_error(error)}"
            return 0, UNKNOWN, Notice("checkpoint", text)
        return evaluations, dict(self.monitor.metrics), None


def _describe_size(found: BatchProbes, clip: ClipModel) -> str:
    """Say that the images of a batch are not input of the model's own ``size``; ``""`` if they are."""
    image, preprocessing = found.images[0], clip.preprocessing
    size = preprocessing.size
    if found.is_resized:
        return (
            f"the images of the batch have another size than the model takes; they are resized to {size[0]}x{size[1]} "
            "pixels and cropped; if training resizes them otherwise, give probes=... instead."
        )
    if not isinstance(image, Tensor):
        return (
            "the images of the batch are not preprocessed; they go through the transform of the model, or one like it, "
            f"with mean {_round(preprocessing.config.mean)} and standard deviation "
            f"{_round(preprocessing.config.std)}; if training treats them otherwise, give probes=... as the model's "
            "input."
        )
    height, width = image.shape[-2:]
    if (height, width) == size or isinstance(clip.tower, TracedTower):  # which takes them as they are
        return ""
    return (
        f"the probes from the batch are images of {height}x{width} pixels, for which the positions of the model, built "
        f"for {size[0]}x{size[1]}, are interpolated; if training resizes them first, give probes=... instead."
    )


def _describe_values(found: BatchProbes, clip: ClipModel) -> str:
    """Say that the images of a batch do not look normalized, as the model expects them; ``""`` if they do."""
    tensors, config = [image for image in found.images if isinstance(image, Tensor)], clip.preprocessing.config
    if not tensors or not any(config.mean) or isinstance(clip.module, EncoderPair):  # which may normalize them
        return ""
    low, high = min(float(each.min()) for each in tensors), max(float(each.max()) for each in tensors)
    brightest = max((1 - mean) / std for mean, std in zip(config.mean, config.std, strict=True))
    if low < 0 and high <= brightest + 1:
        return ""
    return (
        f"the images of the batch have values from {low:.2f} to {high:.2f}, but the model expects images that are "
        f"normalized with mean {_round(config.mean)} and standard deviation {_round(config.std)}. If training "
        "normalizes them after the dataloader, the probes lack that: give probes=... as the model's input, or "
        "encode_image=lambda module, images: ..., which normalizes."
    )


def _round(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(round(value, 2) for value in values)
