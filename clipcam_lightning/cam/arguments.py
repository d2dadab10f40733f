"""Checks of arguments that several entry points share."""

import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence, Set
from difflib import get_close_matches
from numbers import Integral
from typing import Any

from clipcam_lightning.errors import ConfigError


def require_positive(**values: int | None) -> None:
    """Refuse counts below 1.

    Args:
        **values: counts by the name of their argument; ``None`` means that the argument was left out.

    Raises:
        ConfigError: a count is below 1, or no whole number; the message names the argument and its value.
    """
    for argument, value in values.items():
        if value is None:
            continue
        if not isinstance(value, Integral):
            raise ConfigError(f"{argument} must be a whole number, at least 1 (got {value!r}).")
        if value < 1:
            raise ConfigError(f"{argument} must be at least 1 (got {value}).")


def require_choice(argument: str, value: str, choices: Sequence[str]) -> None:
    """Refuse a value that is none of ``choices``.

    Args:
        argument: name of the argument, for the message.
        value: value of the argument.
        choices: what it may be.

    Raises:
        ConfigError: the value is no choice; the message lists the choices.
    """
    if value not in choices:
        raise ConfigError(f"{argument} must be one of {', '.join(choices)} (got {value!r}).{suggest(value, choices)}")


def require_name(name: object) -> None:
    """Refuse a name that cannot be a part of tags and of folders.

    Raises:
        ConfigError: it is empty, or has other characters than letters, digits, ``.``, ``-`` and ``_``.
    """
    if not (isinstance(name, str) and re.fullmatch(r"[\w.-]+", name)):
        raise ConfigError(f"name must be letters, digits, '.', '-' and '_' (got {name!r}).")


def require_prompts(argument: str, prompts: object, *, least: int = 1) -> tuple[str, ...]:
    """Refuse anything but a list of prompts; a single string is none, although it can be iterated.

    Args:
        argument: name of the argument, for the message.
        prompts: any collection of strings, in an order.
        least: how many there must be.

    Returns:
        The prompts.

    Raises:
        ConfigError: it is something else, or a prompt is blank.

    Example:
        >>> require_prompts("candidates", ["a fox", "an owl"])
        ('a fox', 'an owl')
    """
    listed: tuple[Any, ...] = (None,)
    if isinstance(prompts, Iterable) and not isinstance(prompts, str | Mapping | Set):
        listed = tuple(prompts)
    if len(listed) < least or not all(isinstance(prompt, str) and prompt.strip() for prompt in listed):
        raise ConfigError(
            f"{argument} must be a list of prompts, such as ['a fox', 'an owl'] (got {reprlib.repr(prompts)})."
        )
    return listed


def suggest(value: object, choices: Iterable[str]) -> str:
    """Suggest the choice that a wrong name was probably meant to be.

    Args:
        value: the wrong name; anything but a string gets no suggestion.
        choices: what it may be. Capitals do not count.

    Returns:
        A sentence to append to a message, with a space before it; ``""`` if no choice is close.

    Example:
        >>> suggest("Grad-CAM", ["gradcam", "layercam"])
        " Did you mean 'gradcam'?"
    """
    names = {choice.lower(): choice for choice in choices}
    close = get_close_matches(value.lower(), names, n=1) if isinstance(value, str) else []
    return f" Did you mean {names[close[0]]!r}?" if close else ""
