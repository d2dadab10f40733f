"""Checks of arguments that several entry points share."""

from collections.abc import Sequence

from clipcam_lightning.errors import ConfigError


def require_positive(**values: int | None) -> None:
    """Refuse counts below 1.

    Args:
        **values: counts by the name of their argument; ``None`` means that the argument was left out.

    Raises:
        ConfigError: a count is below 1; the message names the argument and its value.
    """
    for argument, value in values.items():
        if value is not None and value < 1:
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
        raise ConfigError(f"{argument} must be one of {', '.join(choices)} (got {value!r}).")
