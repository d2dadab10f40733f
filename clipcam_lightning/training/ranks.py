"""The processes of a distributed training: what rank 0 does alone, and what all do together."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, distributed, nn

from clipcam_lightning import errors

T = TypeVar("T")
SENT_AT_ONCE = 32  # images per broadcast


@dataclass(frozen=True)
class _Result(Generic[T]):
    """The value that an action on rank 0 returned, or the class and message of its error."""

    value: T | None = None
    error: str = ""
    message: str = ""

    def unwrap(self) -> T:
        if self.error:
            raise getattr(errors, self.error, errors.ClipCamError)(self.message)
        return self.value  # type: ignore[return-value]  # None may be the value


class Ranks:
    """The ranks of one training. In a single process every method acts at once.

    Attributes:
        size: world size of the Trainer; torch.distributed may hold the group of an earlier training.
    """

    def __init__(self) -> None:
        self.size = 1

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
            self.broadcast(_Result(error=type(error).__name__, message=str(error)))
            raise
        self.broadcast(_Result(value))
        return value

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's value on every rank."""
        box = [value]
        distributed.broadcast_object_list(box, 0)
        return box[0]

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
            distributed.all_gather_object(parts, part)
        failures = [f"rank {rank}: {each}" for rank, each in enumerate(parts) if isinstance(each, str) and each]
        if failures:
            raise errors.ClipCamError("; ".join(failures))
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
        """Give the other ranks rank 0's buffers: under DDP those of BatchNorm differ between ranks."""
        if self.size == 1:
            yield
            return
        own = [
            (part, name, buffer)
            for part in module.modules()
            for name, buffer in part.named_buffers(recurse=False, remove_duplicate=False)
        ]
        values = self.broadcast([buffer.detach().cpu() for _, _, buffer in own])
        try:
            if self.index > 0:
                for (part, name, buffer), value in zip(own, values, strict=True):
                    part._buffers[name] = value.to(buffer.device)
            yield
        finally:
            for part, name, buffer in own:
                part._buffers[name] = buffer
