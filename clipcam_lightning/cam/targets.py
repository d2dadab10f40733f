"""What is differentiated: a score per image and prompt, made of cosine similarities."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from clipcam_lightning.errors import ConfigError

Negatives: TypeAlias = tuple[str, ...] | Float[Tensor, "k d"]
"""Prompts, or their embeddings."""


@runtime_checkable
class Target(Protocol):
    """A score per image and prompt.

    Attributes:
        name: how snapshots and pictures call it.
        negatives: prompts it needs beside the ones that are mapped.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def negatives(self) -> Sequence[str] | Tensor: ...  # noqa: D102

    def __call__(self, similarity: Float[Tensor, "n q"], prompts: int) -> Float[Tensor, "n p"]:
        """Scores of the first ``prompts`` columns; the columns after them are the negatives."""
        ...


@dataclass(frozen=True)
class Similarity:
    """The cosine similarity itself, without ``logit_scale``: a trained temperature is no attention."""

    name: str = "similarity"
    negatives: tuple[str, ...] = ()

    def __call__(self, similarity: Float[Tensor, "n q"], prompts: int) -> Float[Tensor, "n p"]:
        """The similarities as they are."""
        return similarity[:, :prompts]


@dataclass(frozen=True)
class Contrast:
    """Own prompt minus the mean of the negatives, subtracted before the map's rectifier.

    What speaks for the prompt and against it alike drops out: with ``negatives`` naming the other things in a
    picture, the map shows what tells them apart.

    Attributes:
        negatives: prompts to subtract. Without any, each image's other prompts are its negatives.
    """

    negatives: Negatives = ()

    def __post_init__(self) -> None:
        _check_negatives(self.negatives)

    @property
    def name(self) -> str:
        """``contrast``, with its negatives where it was given some."""
        return _named("contrast", self.negatives)

    def __call__(self, similarity: Float[Tensor, "n q"], prompts: int) -> Float[Tensor, "n p"]:
        """Own similarity minus the mean of the negatives'.

        Raises:
            ConfigError: there is nothing to contrast with.
        """
        own = similarity[:, :prompts]
        if len(self.negatives):
            return own - similarity[:, prompts:].mean(dim=1, keepdim=True)
        if prompts < 2:
            raise ConfigError(_ALONE.format("contrast", "Contrast"))
        return own - (own.sum(dim=1, keepdim=True) - own) / (prompts - 1)


@dataclass(frozen=True)
class LogSoftmax:
    """How surely the prompt is picked among all: the log-softmax over the prompts and the negatives.

    Its gradient is ``temperature * (grad s_p - sum_q pi_q grad s_q)``: a contrast that weighs the others by how much
    the model confuses them with the prompt. The softmax itself is no target: its gradient vanishes where the
    model is sure.

    Attributes:
        negatives: prompts to compare with beside each image's other prompts.
        temperature: factor of the cosines; CLIP is trained towards 100. A constant, so that drift is no drift of it.
    """

    negatives: Negatives = ()
    temperature: float = 100.0

    def __post_init__(self) -> None:
        _check_negatives(self.negatives)
        if not self.temperature > 0:
            raise ConfigError(f"temperature must be positive (got {self.temperature!r}).")

    @property
    def name(self) -> str:
        """``logsoftmax``, with its negatives and its temperature where they were given."""
        own = "logsoftmax" if self.temperature == 100 else f"logsoftmax at {self.temperature:g}"
        return _named(own, self.negatives)

    def __call__(self, similarity: Float[Tensor, "n q"], prompts: int) -> Float[Tensor, "n p"]:
        """Log-probabilities of the prompts.

        Raises:
            ConfigError: there is nothing to compare with.
        """
        if similarity.shape[1] < 2:
            raise ConfigError(_ALONE.format("logsoftmax", "LogSoftmax"))
        return (self.temperature * similarity).log_softmax(dim=1)[:, :prompts]


_ALONE = (
    "the target '{}' needs something to compare with: give at least two prompts an image, or {}(negatives=('...',))."
)


def _check_negatives(negatives: Negatives) -> None:
    if isinstance(negatives, Tensor):
        if negatives.ndim != 2 or not negatives.is_floating_point():
            raise ConfigError(
                f"negatives must be embeddings [k, d] (got {negatives.dtype} {tuple(negatives.shape)}), or prompts."
            )
    elif isinstance(negatives, str) or not all(isinstance(text, str) and text.strip() for text in negatives):
        raise ConfigError(f"negatives must be a tuple of prompts, such as ('a cat',) (got {negatives!r}).")


def _named(name: str, negatives: Negatives) -> str:
    if isinstance(negatives, Tensor):
        digest = hashlib.sha256(negatives.detach().float().cpu().numpy().tobytes()).hexdigest()
        return f"{name}({len(negatives)} embeddings {digest[:8]})"  # other embeddings, other maps
    return f"{name}({', '.join(negatives)})" if negatives else name


TargetLike: TypeAlias = Literal["similarity", "contrast", "logsoftmax"] | Target
_TARGETS: dict[str, Callable[[], Target]] = {"similarity": Similarity, "contrast": Contrast, "logsoftmax": LogSoftmax}


def target_of(target: TargetLike) -> Target:
    """The target of that name; one that is no name is used as it is.

    Raises:
        ConfigError: no target has that name.
    """
    if not isinstance(target, str):
        return target
    if target not in _TARGETS:
        raise ConfigError(
            f"target must be 'similarity', 'contrast', 'logsoftmax', Contrast(negatives=...) or "
            f"LogSoftmax(negatives=...) (got {target!r})."
        )
    return _TARGETS[target]()
