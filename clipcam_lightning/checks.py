"""Checks of arguments that several entrances share."""

from collections.abc import Sequence

from clipcam_lightning.errors import ConfigError


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
