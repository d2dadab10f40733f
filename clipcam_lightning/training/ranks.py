"""The processes of a distributed training: what rank 0 does alone, and what all do together."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, distributed, nn

from clipcam_lightning import errors
from clipcam_lightning.errors import ClipCamError, ModelError, describe_error

T = TypeVar("T")
SENT_AT_ONCE = 32  # images per broadcast


class OutOfStepError(RuntimeError):
    """A rank failed where others wait for it. They would take its next message for another one, so training ends."""


@dataclass(frozen=True)
class _Result(Generic[T]):
    """The value that an action on rank 0 returned, or the class and message of its error."""

    value: T | None = None
    error: str = ""
    message: str = ""

    def unwrap(self) -> T:
        if self.error:
            raise _error_of_the_package(self.error)(self.message)
        return self.value  # type: ignore[return-value]  # None may be the value


class Ranks:
    """The ranks of one training. In a single process every method acts at once.

    Attributes:
        size: world size of the Trainer; torch.distributed may hold the group of an earlier training.
    """

    def __init__(self) -> None:
        self.size = 1
        self._failure = ""  # by which this rank fell out of step

    @property
    def index(self) -> int:
        """Rank of this process."""
        return distributed.get_rank() if self.size > 1 else 0

    def on_rank_zero(self, action: Callable[[], T], assist: Callable[[Any], None] | None = None) -> T:
        """Run an action on rank 0 alone and return its result on every rank; to be called on every rank.

        Args:
            action: returns something picklable. Inside, rank 0 may :meth:`broadcast` requests.
            assist: what the other ranks do with each of these requests.

        Raises:
            Exception: what ``action`` raised, on every rank; on the others as an error of this package.
            OutOfStepError: the ranks lost each other.
        """
        if self.size == 1:
            return action()
        if self.index > 0:
            while not isinstance(received := self.broadcast(None), _Result):
                assert assist is not None  # only an action with assistance sends requests
                assist(received)
            result: _Result[T] = received
            return result.unwrap()
        try:
            value = action()
        except BaseException as error:
            if not self._failure:
                self.broadcast(_Result(error=type(error).__name__, message=str(error)))
            raise
        self.broadcast(_Result(value))
        return value

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's value on every rank."""
        box = [value]
        with self.in_step():
            distributed.broadcast_object_list(box, 0)
        return box[0]

    @contextmanager
    def in_step(self) -> Iterator[None]:
        """Do something in which ranks wait for each other, so that a failure of one must end the training.

        From then on nothing is sent, and every method that would do so raises the error again.

        Raises:
            OutOfStepError: this rank failed, now or before. In a single process the error is raised as it is.
        """
        if self._failure:
            raise OutOfStepError(self._failure)
        try:
            yield
        except BaseException as error:
            if self.size == 1:
                raise
            self._failure = (
                f"rank {self.index} failed in an exchange with other ranks, which ends the training "
                f"({describe_error(error)}). Start again from a checkpoint."
            )
            if not isinstance(error, Exception):
                raise
            raise OutOfStepError(self._failure) from error

    @contextmanager
    def failing_together(self) -> Iterator[None]:
        """Raise an error on every rank if one is raised inside on any; to be entered on every rank.

        Raises:
            Exception: the error, in a single process.
            ClipCamError: of the class of the first rank's that failed, on every rank; :class:`ModelError` stands for
                errors of other packages.
            OutOfStepError: the ranks lost each other.
        """
        failure: Exception | None = None
        try:
            yield
        except OutOfStepError:
            raise
        except Exception as error:
            if self.size == 1:
                raise
            failure = error
        if self.size == 1:
            return
        try:
            self._raise_together(failure)
        finally:
            del failure  # its traceback keeps tensors

    def _raise_together(self, failure: Exception | None) -> None:
        sent = None if failure is None else (type(failure).__name__, describe_error(failure))
        received: list[tuple[str, str] | None] = [None] * self.size
        with self.in_step():
            distributed.all_gather_object(received, sent)
        failures = {rank: each for rank, each in enumerate(received) if each is not None}
        if not failures:
            return
        kind, message = next(iter(failures.values()))
        if len(failures) < self.size or len(set(failures.values())) > 1:
            message = "; ".join(f"rank {rank}: {text}" for rank, (_, text) in failures.items())
        try:
            raise _error_of_the_package(kind, ModelError)(message) from failure
        finally:
            del failure

    def exchange(self, part: T | str) -> list[T]:
        """Collect one value per rank, in the order of the ranks; an empty string stands for no value.

        Args:
            part: this rank's value, or a message why it has none.

        Raises:
            ClipCamError: some rank sent a message.
        """
        if self.size == 1:
            parts: list[T | str] = [part]
        else:
            parts = [""] * self.size
            with self.in_step():
                distributed.all_gather_object(parts, part)
        failures = [f"rank {rank}: {each}" for rank, each in enumerate(parts) if isinstance(each, str) and each]
        if failures:
            raise ClipCamError("; ".join(failures))
        return [each for each in parts if not isinstance(each, str)]

    def shares(self, count: int) -> list[slice]:
        """Divide ``count`` images among the ranks, as equally as possible."""
        return [slice(*bounds) for bounds in pairwise(rank * count // self.size for rank in range(self.size + 1))]

    def scatter_images(
        self, device: torch.device, shape: tuple[int, ...], dtype: torch.dtype, images: Tensor | None = None
    ) -> Tensor:
        """Send images from rank 0, a few at a time; to be called on every rank.

        Args:
            device: of the model.
            shape: of all images together.
            dtype: of the images.
            images: all of them, on rank 0.

        Returns:
            This rank's share, in main memory.
        """
        device = device if "nccl" in distributed.get_backend() else torch.device("cpu")
        share = self.shares(shape[0])[self.index]
        kept = []
        with self.in_step():
            for start in range(0, shape[0], SENT_AT_ONCE):
                stop = min(start + SENT_AT_ONCE, shape[0])
                if images is None:
                    few = torch.empty((stop - start, *shape[1:]), dtype=dtype, device=device)
                else:
                    few = images[start:stop].to(device, copy=True)
                distributed.broadcast(few, 0)
                kept.append(few[max(0, share.start - start) : max(0, share.stop - start)].cpu())
            return torch.cat(kept)

    @contextmanager
    def lending_buffers(self, module: nn.Module) -> Iterator[None]:
        """Give the other ranks rank 0's buffers: under DDP those of BatchNorm differ between ranks.

        Raises:
            ClipCamError: some rank could not copy them; on every rank.
        """
        if self.size == 1:
            yield
            return
        own = [
            (part, name, buffer)
            for part in module.modules()
            for name, buffer in part.named_buffers(recurse=False, remove_duplicate=False)
        ]
        values = self.on_rank_zero(lambda: [buffer.detach().cpu() for _, _, buffer in own])
        try:
            with self.failing_together():  # there may be too little memory
                if self.index > 0:
                    for (part, name, buffer), value in zip(own, values, strict=True):
                        part._buffers[name] = value.to(buffer.device)
            yield
        finally:
            for part, name, buffer in own:
                part._buffers[name] = buffer


def _error_of_the_package(name: str, default: type[ClipCamError] = ClipCamError) -> type[Exception]:
    """Return the class of errors of this package with a name; ``default`` if there is none."""
    kind = getattr(errors, name, default)
    return kind if isinstance(kind, type) and issubclass(kind, ClipCamError) else default
