"""Import and build the objects that options name, of the package and of the user's project."""

import sys
from argparse import ArgumentError
from collections.abc import Mapping
from pathlib import Path
from pkgutil import resolve_name
from traceback import extract_tb
from typing import Any

from jsonargparse import ArgumentParser

from clipcam_lightning.errors import ClipCamError, ConfigError, describe_error


def import_object(name: str) -> Any:
    """Import an object by its dotted name, such as ``my_project.my_function``.

    Raises:
        ConfigError: there is no such object, or its module cannot be imported.
    """
    _make_working_directory_importable()
    try:
        return resolve_name(name)
    except Exception as error:  # a module of the user's project can raise anything
        raise ConfigError(f"{name} cannot be imported: {describe_error(error)}.") from error


def build_object(base: type, value: str | Mapping[str, Any]) -> Any:
    """Build an object from the name of its class and its arguments, as LightningCLI does.

    Args:
        base: what the class must be derived from.
        value: name of the class, or a mapping of ``class_path`` and ``init_args``.

    Returns:
        An instance of the class.

    Raises:
        ConfigError: there is no such class, its arguments do not fit, or its own code fails.
    """
    class_path = value.get("class_path") if isinstance(value, Mapping) else value
    if not isinstance(class_path, str):
        raise ConfigError(f"expected {{class_path: my_project.MyClass, init_args: {{...}}}} (got {value!r}).")
    _make_working_directory_importable()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--object", type=base, required=True)
    try:
        return parser.instantiate(parser.parse_object({"object": value})).object
    except ArgumentError as error:
        reason = " ".join(str(error).split()).removeprefix('Parser key "object": ')
        reason = reason.removeprefix(f"Problem with given class_path {class_path!r}: ")
        raise ConfigError(f"{class_path} cannot be built: {reason}.") from error
    except ClipCamError:
        raise
    except Exception as error:  # a class of the user's project can raise anything
        raise ConfigError(f"{class_path} cannot be built: {describe_failure(error)}.") from error


def describe_failure(error: Exception) -> str:
    """Describe an error of the user's code with the place that raised it."""
    place = extract_tb(error.__traceback__)[-1]
    return f"{describe_error(error)} ({Path(place.filename).name}, line {place.lineno})"


def _make_working_directory_importable() -> None:
    """Do what ``python -m`` does: the modules of a project are usually not installed."""
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
