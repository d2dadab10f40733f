"""Turn the options of a command into map settings."""

from argparse import ArgumentError
from typing import Any

from jsonargparse import ArgumentParser

from clipcam_lightning.cam.methods import METHODS, MethodLike, check_method
from clipcam_lightning.cam.settings import MapSettings
from clipcam_lightning.cam.targets import TargetLike
from clipcam_lightning.drift.snapshot import SnapshotInfo
from clipcam_lightning.errors import ConfigError


def map_settings(options: Any) -> MapSettings:
    """Read how maps are made from the options of a command; what is not given has its default.

    Raises:
        ConfigError: an option cannot be used.
    """
    return MapSettings(**_given(options))


def map_settings_like(options: Any, baseline: SnapshotInfo) -> MapSettings:
    """Read how maps are made from the options of a command; what is not given is as in the baseline.

    Args:
        options: of the command.
        baseline: how the maps of the baseline were made.

    Raises:
        ConfigError: an option cannot be used, or the baseline's method or target can only be given in Python.
    """
    given = _given(options)
    if "method" not in given and baseline.method not in METHODS:
        raise ConfigError(
            f"the baseline was made with the method {baseline.method!r}, which is not in the package; give it with "
            "--method my_project.my_function, or take a new baseline with --update-baseline --method NAME."
        )
    if "target" not in given and baseline.target != "similarity" and not options.update_baseline:
        raise ConfigError(
            f"the baseline maps the target {baseline.target!r}; give the same one with --target, or take a new "
            "baseline with --update-baseline --target similarity."
        )
    like = {
        "method": baseline.method,
        "scales": baseline.scales,
        "flip": baseline.flip,
        "fuse": baseline.fuse,
    }
    if given.get("method", baseline.method) == baseline.method:
        like["layers"] = baseline.layers
    return MapSettings(**{**like, **given})


def _given(options: Any) -> dict[str, Any]:
    """The options that were given, with dotted names and YAML turned into objects."""
    given = {
        name: getattr(options, name)
        for name in ("method", "layers", "target", "scales", "flip", "fuse", "batch_size")
        if getattr(options, name) is not None
    }
    if "." in given.get("method", ""):
        given["method"] = _instantiate(MethodLike, given["method"], "--method")
    elif "method" in given:
        check_method(given["method"])
    if isinstance(given.get("target"), dict) or "." in given.get("target", ""):
        given["target"] = _instantiate(TargetLike, given["target"], "--target")
    return given


def _instantiate(annotation: Any, value: Any, option: str) -> Any:
    """Make an object from YAML (``class_path``, ``init_args``) or a dotted name, as LightningCLI does.

    Raises:
        ConfigError: there is no such class or function, or its arguments do not fit.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=annotation)
    try:
        return parser.instantiate(parser.parse_object({"value": value})).value
    except ArgumentError as error:
        reason = " ".join(str(error).split()).removeprefix('Parser key "value": ')
        raise ConfigError(f"{option} {value!r} cannot be used: {reason}") from error
