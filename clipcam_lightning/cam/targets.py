"""What is differentiated: a score per image and prompt, made of cosine similarities."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from clipcam_lightning.errors import ConfigError


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
    def negatives(self) -> Sequence[str]: ...  # noqa: D102

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

    negatives: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.negatives, str) or not all(
            isinstance(text, str) and text.strip() for text in self.negatives
        ):
            raise ConfigError(f"negatives must be a tuple of prompts, such as ('a cat',) (got {self.negatives!r}).")

    @property
    def name(self) -> str:
        """``contrast``, with its negatives where it was given some."""
        return f"contrast({', '.join(self.negatives)})" if self.negatives else "contrast"

    def __call__(self, similarity: Float[Tensor, "n q"], prompts: int) -> Float[Tensor, "n p"]:
        """Own similarity minus the mean of the negatives'.

        Raises:
            ConfigError: there is nothing to contrast with.
        """
        own = similarity[:, :prompts]
        if self.negatives:
            return own - similarity[:, prompts:].mean(dim=1, keepdim=True)
        if prompts < 2:
            raise ConfigError(
                "the target 'contrast' needs something to contrast with: give at least two prompts an image, "
                "or Contrast(negatives=('...',))."
            )
        return own - (own.sum(dim=1, keepdim=True) - own) / (prompts - 1)


TargetLike: TypeAlias = Literal["similarity", "contrast"] | Target


def target_of(target: TargetLike) -> Target:
    """The target of that name; one that is no name is used as it is.

    Raises:
        ConfigError: no target has that name.
    """
    if not isinstance(target, str):
        return target
    if target == "similarity":
        return Similarity()
    if target == "contrast":
        return Contrast()
    raise ConfigError(f"target must be 'similarity', 'contrast' or Contrast(negatives=...) (got {target!r}).")
