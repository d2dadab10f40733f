"""How the ranks of a distributed training take part in a look."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, distributed, nn

from clipcam_lightning import errors
from clipcam_lightning.cam.explanation import Explanation, concatenate_parts
from clipcam_lightning.cam.model import ClipModel
from clipcam_lightning.monitoring.explainer import explain_in_memory
from clipcam_lightning.training.sharded import gathered_parameters

T = TypeVar("T")
SENT_AT_ONCE = 32  # images


@runtime_checkable
class Explainer(Protocol):
    """What explains the images of a look: this process alone, or all ranks together."""

    def __call__(self, clip: ClipModel, images: Float[Tensor, "n 3 y x"], prompts: Any, **settings: Any) -> Explanation:
        """As :func:`~clipcam_lightning.explain`, with prompts of each image."""
        ...


@dataclass(frozen=True)
class _Result(Generic[T]):
    """What rank 0 came to: a value, or the class and the words of an error."""

    value: T | None = None
    error: str = ""
    words: str = ""

    def on_this_rank(self) -> T:
        if self.error:
            raise getattr(errors, self.error, errors.ClipCamError)(self.words)
        return self.value  # type: ignore[return-value]  # None is one


@dataclass(frozen=True)
class _Job:
    """What all ranks explain next; without a shape, the images of the last job."""

    prompts: Any
    shape: tuple[int, ...] | None = None
    dtype: torch.dtype = torch.float32


class Ranks:
    """Looks that all ranks take part in.

    Rank 0 holds probes, baseline and sinks, and alone reads and writes files. It tells the others what to explain: each
    explains its share of the images, until rank 0 says what the look came to. Inside a model no rank waits for another,
    so an error of one becomes an error of the look, on all ranks.

    Maps are those of rank 0's model: where buffers differ between ranks, as those of BatchNorm do under DDP, the others
    borrow its own. In a single process a look is just taken.

    Attributes:
        size: how many there are; of the trainer, not of torch, which may keep the ranks of an earlier training.
    """

    def __init__(self) -> None:
        self.size = 1
        self._images: Tensor | None = None  # of the last job: all of them on rank 0, elsewhere the own share

    def on_rank_zero(self, action: Callable[[], T]) -> T:
        """Do something on rank 0 alone, and give every rank what it returns; to be called on every rank.

        Args:
            action: returns something picklable.

        Raises:
            Exception: what ``action`` raised, on every rank; elsewhere than on rank 0 as an error of this package.
        """
        if self.size == 1:
            return action()
        if distributed.get_rank() > 0:
            result: _Result[T] = _broadcast(None)
            return result.on_this_rank()
        try:
            value = action()
        except BaseException as error:
            _broadcast(_Result(error=type(error).__name__, words=str(error)))
            raise
        _broadcast(_Result(value))
        return value

    def evaluate(
        self, clip: ClipModel, root: nn.Module, settings: dict[str, Any], evaluation: Callable[[Explainer], T]
    ) -> T:
        """Take a look on rank 0, with the help of all; to be called on every rank.

        Args:
            clip: this rank's copy of the model.
            root: the module around it.
            settings: of ``explain``, the same on all ranks.
            look: what rank 0 does, with the function that explains for it.

        Returns:
            What ``look`` returned on rank 0; it must be picklable.

        Raises:
            ClipCamError: the model could not be made ready on some rank; on every rank.
            Exception: what ``look`` raised, on every rank.
        """
        with ExitStack() as stack:
            error: Exception | None = None
            try:
                stack.enter_context(gathered_parameters(clip.module, root))
                if self.size > 1:
                    stack.enter_context(_same_buffers(clip.module))
            except Exception as failure:  # of any kind, such as too little memory for the whole model
                error = failure
            if self.size == 1:
                if error is not None:
                    raise error
                return evaluation(explain_in_memory)
            self._exchanged("" if error is None else errors.in_words(error))
            if distributed.get_rank() > 0:
                result: _Result[T] = self._serve(clip, settings)
                return result.on_this_rank()
            return self.on_rank_zero(lambda: evaluation(self._explain))

    def forget(self) -> None:
        """Let go of the images of the last look."""
        self._images = None

    def _explain(self, clip: ClipModel, images: Float[Tensor, "n 3 y x"], prompts: Any, **settings: Any) -> Explanation:
        told = prompts.cpu() if isinstance(prompts, Tensor) else prompts
        is_known = images is self._images
        _broadcast(_Job(told) if is_known else _Job(told, tuple(images.shape), images.dtype))
        share = self._shares(len(images))[0]
        if not is_known:
            self._sent(clip, images.shape, images.dtype, images)
            self._images = images
        return self._explained_together(clip, images[share], prompts[share], settings)

    def _serve(self, clip: ClipModel, settings: dict[str, Any]) -> "_Result[Any]":
        """Explain shares until rank 0 is done; what it came to."""
        while isinstance(message := _broadcast(None), _Job):
            share = self._shares(len(message.prompts))[distributed.get_rank()]
            if message.shape is not None:
                self._images = self._sent(clip, message.shape, message.dtype)
            assert self._images is not None
            with suppress(Exception):  # rank 0 hears of it and decides
                self._explained_together(clip, self._images, message.prompts[share], settings)
        result: _Result[Any] = message
        return result

    def _sent(
        self, clip: ClipModel, shape: tuple[int, ...], dtype: torch.dtype, images: Tensor | None = None
    ) -> Tensor:
        """Send images from rank 0, few at a time; this rank's share of them, in main memory."""
        device = clip.device if "nccl" in distributed.get_backend() else torch.device("cpu")
        share = self._shares(shape[0])[distributed.get_rank()]
        kept = []
        for start in range(0, shape[0], SENT_AT_ONCE):
            rows = slice(start, min(start + SENT_AT_ONCE, shape[0]))
            if images is None:
                few = torch.empty((rows.stop - rows.start, *shape[1:]), dtype=dtype, device=device)
            else:
                few = images[rows].to(device, copy=True)
            distributed.broadcast(few, 0)
            kept.append(few[max(0, share.start - start) : max(0, share.stop - start)].cpu())
        return torch.cat(kept)

    def _explained_together(
        self, clip: ClipModel, images: Tensor, prompts: Any, settings: dict[str, Any]
    ) -> Explanation:
        """Explain this rank's share, exchange, and put the shares together.

        Raises:
            BaseException: of this rank.
            ClipCamError: what another rank failed with, in words.
        """
        error: BaseException | None = None
        part: Explanation | str = ""
        if len(images):
            try:
                part = explain_in_memory(clip, images, prompts, **settings)
                part = replace(part, maps=part.maps.cpu(), similarity=part.similarity.cpu())
            except BaseException as failure:  # of any kind: the others must hear of it, and not wait
                error, part = failure, errors.in_words(failure)
        try:
            explained = self._exchanged(part)
        except errors.ClipCamError:
            if error is not None:
                raise error from None
            raise
        bounds = pairwise(accumulate((len(part.maps) for part in explained), initial=0))
        rows = [
            (list(range(*bound)), part.maps, part.similarity) for bound, part in zip(bounds, explained, strict=True)
        ]
        maps, similarity, grids = concatenate_parts(rows)
        return replace(explained[0], maps=maps, similarity=similarity, grids=grids)

    def _exchanged(self, part: Explanation | str) -> list[Explanation]:
        """What every rank explained.

        Raises:
            ClipCamError: some rank gave words instead: why it could not.
        """
        parts: list[Explanation | str] = [""] * self.size
        distributed.all_gather_object(parts, part)
        failed = [f"rank {rank}: {said}" for rank, said in enumerate(parts) if isinstance(said, str) and said]
        if failed:
            raise errors.ClipCamError("; ".join(failed))
        return [part for part in parts if isinstance(part, Explanation)]

    def _shares(self, count: int) -> list[slice]:
        """Which of ``count`` images each rank explains: equally many, to one."""
        return [slice(*bound) for bound in pairwise(rank * count // self.size for rank in range(self.size + 1))]


@contextmanager
def _same_buffers(module: nn.Module) -> Iterator[None]:
    """Lend rank 0's buffers to the other ranks."""
    own = [
        (part, name, buffer)
        for part in module.modules()
        for name, buffer in part.named_buffers(recurse=False, remove_duplicate=False)
    ]
    values = _broadcast([buffer.detach().cpu() for _, _, buffer in own])
    try:
        if distributed.get_rank() > 0:
            for (part, name, buffer), value in zip(own, values, strict=True):
                part._buffers[name] = value.to(buffer.device)
        yield
    finally:
        for part, name, buffer in own:
            part._buffers[name] = buffer


def _broadcast(value: Any) -> Any:
    """What rank 0 gives, on every rank."""
    box = [value]
    distributed.broadcast_object_list(box, 0)
    return box[0]
