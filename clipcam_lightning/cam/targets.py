"""Targets: the score per image and prompt that methods differentiate, made of cosine similarities."""

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any, ClassVar, Literal, TypeAlias

from jaxtyping import Float
from torch import Tensor

from clipcam_lightning.cam.arguments import require_prompts, suggest
from clipcam_lightning.cam.representation import short_repr
from clipcam_lightning.errors import ConfigError

Negatives: TypeAlias = Sequence[str] | Float[Tensor, "k d"]
"""Prompts, or their embeddings."""


class Target(ABC):
    """A score per image and prompt.

    Attributes:
        name: label of the target in snapshots and images.
        negatives: prompts, or their embeddings, that the score needs in addition to the mapped prompts.
        compares_prompts: whether the score of a prompt depends on the other mapped prompts of its image, so that these
            change its map. True unless a target says otherwise.
        has_temperature: whether the target scales the cosines itself, so that the scale of a method is left out.

    Example:
        >>> import torch
        >>> class Squared(Target):
        ...     name = "squared"
        ...
        ...     def __call__(self, similarity, prompts):
        ...         return similarity[:, :prompts] ** 2
        >>> Squared()(torch.tensor([[0.5, 0.1]]), prompts=1)
        tensor([[0.2500]])
    """

    has_temperature: ClassVar[bool] = False

    @property
    @abstractmethod
    def name(self) -> str: ...  # noqa: D102

    @property
    def negatives(self) -> Negatives:  # noqa: D102
        return ()

    @property
    def compares_prompts(self) -> bool:  # noqa: D102
        return True

    @abstractmethod
    def __call__(self, similarity: Float[Tensor, "n q"], prompts: int) -> Float[Tensor, "n p"]:
        """Compute the scores of the mapped prompts, each row by itself: there may be several rows per image.

        Args:
            similarity: cosines of each image with the mapped prompts, then with the negatives, times the setting
                ``score_scale``.
            prompts: number of mapped prompts, ``p``.

        Returns:
            One score per image and mapped prompt.
        """


@dataclass(frozen=True, eq=False, repr=False)
class _TargetWithNegatives(Target):
    """A target that is comparable and hashable by value, whether its negatives are prompts or embeddings."""

    negatives: Negatives = ()

    __repr__ = short_repr

    def __post_init__(self) -> None:
        if isinstance(self.negatives, Tensor):
            if self.negatives.ndim != 2 or not self.negatives.is_floating_point():
                raise ConfigError(
                    f"negatives must be prompts, or float embeddings [k, d] "
                    f"(got {self.negatives.dtype} {tuple(self.negatives.shape)})."
                )
            return
        prompts = require_prompts("negatives", self.negatives, least=0)
        object.__setattr__(self, "negatives", prompts)  # hashable, also if made from a YAML list

    def __eq__(self, other: object) -> bool:
        return self._key == other._key if isinstance(other, type(self)) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key)

    @property
    def _key(self) -> tuple[Any, ...]:
        """The type and the field values, embeddings by shape and digest."""
        values = (getattr(self, field.name) for field in fields(self))
        return type(self), *((*each.shape, _digest(each)) if isinstance(each, Tensor) else each for each in values)

    def _label(self, name: str) -> str:
        """Append the negatives to a name: other negatives make other maps."""
        if isinstance(self.negatives, Tensor):
            return f"{name}({len(self.negatives)} embeddings {_digest(self.negatives)[:8]})"
        return f"{name}({', '.join(self.negatives)})" if self.negatives else name


@dataclass(frozen=True, eq=False, repr=False)
class Similarity(_TargetWithNegatives):
    """The cosine similarity, without the model's ``logit_scale``: a trained temperature cannot look like drift.

    Attributes:
        negatives: embedded with the prompts, but not part of the score.

    Example:
        >>> import torch
        >>> Similarity()(torch.tensor([[0.3, 0.1]]), prompts=2)
        tensor([[0.3000, 0.1000]])
    """

    @property
    def name(self) -> str:
        """``similarity``."""
        return "similarity"

    @property
    def compares_prompts(self) -> bool:
        """``False``: each prompt has its own cosine."""
        return False

    def __call__(self, similarity: Float[Tensor, "n q"], prompts: int) -> Float[Tensor, "n p"]:
        """Return the cosines with the mapped prompts."""
        return similarity[:, :prompts]


@dataclass(frozen=True, eq=False, repr=False)
class Contrast(_TargetWithNegatives):
    """Cosine with the prompt minus the mean cosine with the negatives.

    Evidence that the prompt shares with the negatives cancels before the map is rectified. With negatives that name the
    other objects in an image, the map shows what distinguishes the prompt from them.

    Args:
        negatives: prompts to subtract, or their embeddings ``[k, d]``. By default the other prompts of each image.

    Raises:
        ConfigError: ``negatives`` is a single string, contains an empty one, or is not a float matrix.

    Example:
        >>> import torch
        >>> from clipcam_lightning import Contrast
        >>> target = Contrast(negatives=["a dog"])
        >>> target(torch.tensor([[0.25, 0.125]]), prompts=1)  # cosines with the prompt and with "a dog"
        tensor([[0.1250]])
        >>> target.name
        'contrast(a dog)'
    """

    @property
    def name(self) -> str:
        """``contrast``, followed by the negatives, if any."""
        return self._label("contrast")

    @property
    def compares_prompts(self) -> bool:
        """Whether there are no negatives."""
        return not len(self.negatives)

    def __call__(self, similarity: Float[Tensor, "n q"], prompts: int) -> Float[Tensor, "n p"]:
        """Subtract the mean cosine with the negatives.

        Args:
            similarity: cosines of each image with the mapped prompts, then with the negatives.
            prompts: number of mapped prompts, ``p``.

        Returns:
            Differences of cosines, from -2 to 2.

        Raises:
            ConfigError: there are neither negatives nor other prompts.
        """
        own = similarity[:, :prompts]
        if len(self.negatives):
            return own - similarity[:, prompts:].mean(dim=1, keepdim=True)
        if prompts < 2:
            raise ConfigError(_NOTHING_TO_COMPARE.format("contrast", "Contrast"))
        return own - (own.sum(dim=1, keepdim=True) - own) / (prompts - 1)


@dataclass(frozen=True, eq=False, repr=False)
class LogSoftmax(_TargetWithNegatives):
    r"""Log-probability of the prompt among all prompts and negatives.

    .. math:: y_p = \log \mathrm{softmax}_p(\tau s), \quad
        \nabla y_p = \tau \left(\nabla s_p - \sum_q \pi_q \nabla s_q\right)

    with :math:`\pi` the softmax: a contrast in which each other prompt weighs as much as the model confuses it with the
    mapped one. The softmax itself would not do, since its gradient vanishes where the model is certain.

    Args:
        negatives: prompts to compare with in addition to each image's other prompts, or their embeddings ``[k, d]``.
        temperature: factor :math:`\tau` of the cosines; CLIP is trained towards 100. It is fixed, so that a trained
            temperature cannot look like drift. The setting ``score_scale`` is another factor, by default 1.

    Raises:
        ConfigError: ``negatives`` is a single string, contains an empty one, or is not a float matrix; or
            ``temperature`` is not positive and finite.

    Example:
        >>> import torch
        >>> from clipcam_lightning import LogSoftmax
        >>> target = LogSoftmax(negatives=["a dog"], temperature=8.0)
        >>> target(torch.tensor([[0.25, 0.125]]), prompts=1)  # log(e^2 / (e^2 + e^1))
        tensor([[-0.3133]])
    """

    has_temperature: ClassVar[bool] = True
    temperature: float = 100.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.temperature, Real) or not 0 < self.temperature < math.inf:
            raise ConfigError(f"temperature must be positive and finite (got {self.temperature!r}).")

    @property
    def name(self) -> str:
        """``logsoftmax``, followed by the temperature if it is not 100, and by the negatives, if any."""
        return self._label("logsoftmax" if self.temperature == 100 else f"logsoftmax at {self.temperature:g}")

    def __call__(self, similarity: Float[Tensor, "n q"], prompts: int) -> Float[Tensor, "n p"]:
        """Compute the log-softmax over all prompts and negatives.

        Args:
            similarity: cosines of each image with the mapped prompts, then with the negatives.
            prompts: number of mapped prompts, ``p``.

        Returns:
            Natural logarithms of the mapped prompts' probabilities.

        Raises:
            ConfigError: there are neither negatives nor other prompts.
        """
        if similarity.shape[1] < 2:
            raise ConfigError(_NOTHING_TO_COMPARE.format("logsoftmax", "LogSoftmax"))
        return (self.temperature * similarity).log_softmax(dim=1)[:, :prompts]


_NOTHING_TO_COMPARE = "target '{}' needs at least two prompts per image, or {}(negatives=['...'])."


def _digest(embeddings: Tensor) -> str:
    return hashlib.sha256(embeddings.detach().float().cpu().numpy().tobytes()).hexdigest()


TargetLike: TypeAlias = Literal["similarity", "contrast", "logsoftmax"] | Target
_TARGETS: dict[str, Callable[[], Target]] = {"similarity": Similarity, "contrast": Contrast, "logsoftmax": LogSoftmax}


def target_of(target: TargetLike) -> Target:
    """Return the target of that name, or ``target`` itself if it is not a name.

    Raises:
        ConfigError: no target has that name, or it is no target.
    """
    if isinstance(target, Target):
        return target
    if not isinstance(target, str) or target not in _TARGETS:
        raise ConfigError(
            f"target must be 'similarity', 'contrast', 'logsoftmax', Contrast(negatives=...), "
            f"LogSoftmax(negatives=...) or a Target of your own (got {target!r}).{suggest(target, _TARGETS)}"
        )
    return _TARGETS[target]()


def require_negatives(target: TargetLike) -> None:
    """Refuse a contrastive target without negatives, for probes, which have one prompt each.

    Raises:
        ConfigError: with what to write.
    """
    resolved = target_of(target)
    if isinstance(resolved, Contrast | LogSoftmax) and not len(resolved.negatives):
        kind = type(resolved).__name__
        raise ConfigError(
            f"target {resolved.name!r} needs explicit negatives, because each probe has one prompt: "
            f"{kind}(negatives=('...',))."
        )
