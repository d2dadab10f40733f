"""How the ranks of a distributed training take part in a look."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, distributed, nn

from clipcam_lightning import errors
from clipcam_lightning.cam.explanation import Explanation, gathered
from clipcam_lightning.cam.model import ClipModel
from clipcam_lightning.cam.sharded import put_together
from clipcam_lightning.memory import explain_in_memory

T = TypeVar("T")


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


def on_rank_zero(action: Callable[[], T]) -> T:
    """Do something on rank 0 alone, and give every rank what it returns; to be called on every rank.

    Args:
        action: returns something picklable.

    Raises:
        Exception: what ``action`` raised, on every rank; elsewhere than on rank 0 as an error of this package.
    """
    if _world() == 1:
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


class Ranks:
    """Looks that all ranks take part in.

    Rank 0 holds probes, baseline and sinks, and alone reads and writes files. It tells the others what to explain: each
    explains its share of the images, until rank 0 says what the look came to. Inside a model no rank waits for another,
    so an error of one becomes an error of the look, on all ranks.

    Maps are those of rank 0's model: where buffers differ between ranks, as those of BatchNorm do under DDP, the others
    borrow its own. In a single process a look is just taken.
    """

    def __init__(self) -> None:
        self._images: Tensor | None = None  # of the last job: all of them on rank 0, elsewhere the own share

    def look(self, clip: ClipModel, settings: dict[str, Any], look: Callable[[Explainer], T]) -> T:
        """Take a look on rank 0, with the help of all; to be called on every rank.

        Args:
            clip: this rank's copy of the model.
            settings: of ``explain``, the same on all ranks.
            look: what rank 0 does, with the function that explains for it.

        Returns:
            What ``look`` returned on rank 0; it must be picklable.

        Raises:
            Exception: what ``look`` raised, on every rank.
        """
        if _world() == 1:
            return look(explain_in_memory)
        with put_together(clip.module), _same_buffers(clip.module):
            if distributed.get_rank() > 0:
                result: _Result[T] = self._serve(clip, settings)
                return result.on_this_rank()
            return on_rank_zero(lambda: look(self._explain))

    def forget(self) -> None:
        """Let go of the images of the last look."""
        self._images = None

    def _explain(self, clip: ClipModel, images: Float[Tensor, "n 3 y x"], prompts: Any, **settings: Any) -> Explanation:
        if images is self._images:
            _broadcast(_Job(prompts))
        else:
            _broadcast(_Job(prompts, tuple(images.shape), images.dtype))
            distributed.broadcast(images.to(clip.device, copy=True), 0)
            self._images = images
        share = _shares(len(images))[0]
        return _explained_together(clip, images[share], prompts[share], settings)

    def _serve(self, clip: ClipModel, settings: dict[str, Any]) -> "_Result[Any]":
        """Explain shares until rank 0 is done; what it came to."""
        while isinstance(message := _broadcast(None), _Job):
            share = _shares(len(message.prompts))[distributed.get_rank()]
            if message.shape is not None:
                images = torch.empty(message.shape, dtype=message.dtype, device=clip.device)
                distributed.broadcast(images, 0)
                self._images = images[share].clone()
                del images
            assert self._images is not None
            with suppress(Exception):  # rank 0 hears of it and decides
                _explained_together(clip, self._images, message.prompts[share], settings)
        result: _Result[Any] = message
        return result


def _explained_together(clip: ClipModel, images: Tensor, prompts: Any, settings: dict[str, Any]) -> Explanation:
    """Explain this rank's share, exchange, and put the shares together.

    Raises:
        Exception: of this rank.
        ClipCamError: what another rank failed with, in words.
    """
    error: Exception | None = None
    part: Explanation | str = ""
    if len(images):
        try:
            part = explain_in_memory(clip, images, prompts, **settings)
            part = replace(part, maps=part.maps.cpu(), similarity=part.similarity.cpu())
        except Exception as failure:  # of any kind: the others must hear of it, and not wait
            error, part = failure, errors.in_words(failure)
    parts: list[Explanation | str] = [""] * _world()
    distributed.all_gather_object(parts, part)
    if error is not None:
        raise error
    failed = [f"rank {rank}: {said}" for rank, said in enumerate(parts) if isinstance(said, str) and said]
    if failed:
        raise errors.ClipCamError("; ".join(failed))
    explained = [part for part in parts if isinstance(part, Explanation)]
    bounds = pairwise(accumulate((len(part.maps) for part in explained), initial=0))
    rows = [(list(range(*bound)), part.maps, part.similarity) for bound, part in zip(bounds, explained, strict=True)]
    maps, similarity, grids = gathered(rows)
    return replace(explained[0], maps=maps, similarity=similarity, grids=grids)


def _shares(count: int) -> list[slice]:
    """Which of ``count`` images each rank explains: equally many, to one."""
    world = _world()
    return [slice(*bound) for bound in pairwise(rank * count // world for rank in range(world + 1))]


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


def _world() -> int:
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def _broadcast(value: Any) -> Any:
    """What rank 0 gives, on every rank."""
    box = [value]
    distributed.broadcast_object_list(box, 0)
    return box[0]
