"""Checks of arguments that several entrances share."""

from collections.abc import Sequence

import torch
from torch import Tensor

from clipcam_lightning.errors import ConfigError

LONGEST = 200  # characters that a message gives of a text of somebody else's


def require_positive(**values: int | None) -> None:
    """Refuse counts below 1; ``None`` means not given.

    Raises:
        ConfigError: with the argument's name and value.
    """
    for argument, value in values.items():
        if value is not None and value < 1:
            raise ConfigError(f"{argument} must be at least 1 (got {value}).")


def require_choice(argument: str, value: str, choices: Sequence[str]) -> None:
    """Refuse a value that is none of ``choices``.

    Raises:
        ConfigError: with the choices.
    """
    if value not in choices:
        raise ConfigError(f"{argument} must be one of {', '.join(choices)} (got {value!r}).")


def is_dense(tensor: Tensor) -> bool:
    """Whether a tensor has a value in each place: it is not sparse, nested, quantized or without data."""
    return tensor.layout == torch.strided and not (tensor.is_nested or tensor.is_quantized or tensor.is_meta)


def abridged(text: object) -> str:
    """A text for a message; of a long one both ends."""
    text = str(text)
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"
