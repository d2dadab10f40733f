"""Turn the options of a command into map settings."""

from typing import Any

from clipcam_lightning.cam.methods import METHODS, Method, MethodLike
from clipcam_lightning.cam.settings import MapSettings
from clipcam_lightning.cam.targets import Target
from clipcam_lightning.cli.objects import build_object, import_object
from clipcam_lightning.drift.snapshot import SnapshotInfo
from clipcam_lightning.errors import ConfigError

OPTIONS = ("method", "layers", "target", "score_scale", "scales", "flip", "shift", "fuse", "batch_size", "precision")


def read_map_settings(options: Any) -> MapSettings:
    """Read the map settings from the options of a command.

    Args:
        options: of the command; ``None`` for one that is not set.

    Returns:
        The settings, with the default of :class:`MapSettings` for each option that is not set.

    Raises:
        ConfigError: an option cannot be used.
    """
    return MapSettings(**_set_options(options))


def read_map_settings_like(options: Any, baseline: SnapshotInfo) -> MapSettings:
    """Read the map settings from the options of a command, and take those that are not set from a baseline.

    Args:
        options: of the command; ``None`` for one that is not set.
        baseline: how the maps of the baseline were made.

    Returns:
        The settings. Layers and score scale are the baseline's only together with its method.

    Raises:
        ConfigError: an option cannot be used, or a method or target must be repeated because a snapshot holds only its
            name.
    """
    chosen = _set_options(options)
    if "method" not in chosen and baseline.method not in METHODS:
        raise ConfigError(
            f"the baseline was made with the method {baseline.method!r}, which is not part of the package; repeat it "
            "with --method my_project.my_function, or write a new baseline with --update-baseline --method NAME."
        )
    if "target" not in chosen and baseline.target != "similarity":
        raise ConfigError(
            f"the baseline was made with the target {baseline.target!r}, of which it holds only the name; repeat it "
            "with --target, or write a new baseline with --update-baseline --target similarity."
        )
    settings = {
        "method": baseline.method,
        "scales": baseline.scales,
        "flip": baseline.flip,
        "shift": baseline.shift,
        "precision": baseline.precision,
        "fuse": baseline.fuse,
        **chosen,
    }
    if _name(settings["method"]) == baseline.method:
        settings = {"layers": baseline.layers, "score_scale": baseline.score_scale, **settings}
    return MapSettings(**settings)


def _set_options(options: Any) -> dict[str, Any]:
    """Collect the options that are set, with dotted names and YAML turned into objects."""
    chosen = {name: getattr(options, name) for name in OPTIONS if getattr(options, name) is not None}
    if "." in chosen.get("method", ""):
        chosen["method"] = _import_method(chosen["method"])
    target = chosen.get("target", "")
    if isinstance(target, dict) or "." in target:
        chosen["target"] = build_object(Target, target)
    return chosen


def _import_method(name: str) -> MethodLike:
    method: MethodLike = import_object(name)
    if not callable(method):
        raise ConfigError(f"--method {name} is not a function from a capture to maps (got {method!r}).")
    return method


def _name(method: MethodLike) -> str:
    """The name under which a snapshot stores the method."""
    if isinstance(method, str):
        return method
    return method.name if isinstance(method, Method) else Method(method).name
