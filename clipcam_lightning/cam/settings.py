"""How maps are made: the settings that every entry point takes."""

import math
import reprlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any

from clipcam_lightning.cam.arguments import require_choice, require_positive
from clipcam_lightning.cam.fuse import FUSIONS, Fusion
from clipcam_lightning.cam.methods import (
    Layers,
    Method,
    MethodLike,
    check_method,
    recipe_of,
    resolve_layers,
    resolve_method,
)
from clipcam_lightning.cam.precision import PRECISIONS, Precision
from clipcam_lightning.cam.targets import TargetLike, target_of
from clipcam_lightning.cam.towers.tower import Tower
from clipcam_lightning.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class MapSettings:
    """How maps are made.

    Attributes:
        method: a name in ``METHODS``, a function from :class:`Capture` to maps, or ``"auto"``: one of low cost
            that points well on that kind of tower, and Grad-CAM or HiResCAM on a kind that was not measured.
        layers: names or indices of one or several layers; ``None`` for the method's own choice. A method that reads
            attention reads that of these blocks.
        target: what is mapped: ``"similarity"``, ``"contrast"``, ``"logsoftmax"``, or one of them with arguments.
        score_scale: factor on the cosine before the target; ``None`` for the method's own (:attr:`Method.score_scale`),
            and 1 for a target that has a temperature. Methods that are not linear in the score depend on it
            (``scorecam``, ``finercam``, ``gradcam_pp``, ``clip_surgery``, and ``gae`` of several blocks or of an
            attention pool); to others it is a factor of the map. 100 stands for the logits of most published CLIPs.
        scales: enlargements of the image whose maps are averaged; positions are interpolated for the pass.
        flip: average with the map of the mirrored image, mirrored back; doubles the cost.
        shift: average with the map of the image shifted by half a cell of the grid down and to the right, put back on
            the grid; doubles the cost. On small trained CLIPs the hottest cell was on the object a little more often,
            and a little more of the map's mass beside it, since half of each cell's value comes from four shifted
            cells.
        fuse: how the maps of several layers are combined: ``"mean"``, ``"max"``, or ``"product"`` of the positive
            parts; ``None`` for the mean, or with ``"auto"`` and its own layers for what was measured best. A method
            that reads attention combines its blocks by itself.
        batch_size: images per pass, by default 32; bounds memory and changes no map.
        precision: ``"float32"``, or ``"bfloat16"`` to run the image tower under autocast, which is faster on GPUs with
            units for it. Cosines, targets and what methods compute of a pass stay in float32. On small trained
            CLIPs on a CPU, a map correlates with that in float32 by at least 0.99 in the median of each method, but
            for ``xgradcam`` on ViTs (0.96), and a cosine differs by at most 0.004.

    Raises:
        ConfigError: a value cannot be used; the message lists what can.

    Example:
        >>> MapSettings(method="hirescam", layers=[-2, -1]).layers
        (-2, -1)
    """

    method: MethodLike = "auto"
    layers: Layers = None
    target: TargetLike = "similarity"
    score_scale: float | None = None
    scales: Sequence[float] = (1.0,)
    flip: bool = False
    shift: bool = False
    fuse: Fusion | None = None
    batch_size: int | None = None
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        check_method(self.method)
        if self.fuse is not None:
            require_choice("fuse", self.fuse, tuple(FUSIONS))
        require_choice("precision", self.precision, PRECISIONS)
        require_positive(batch_size=self.batch_size)
        if self.score_scale is not None and not (
            isinstance(self.score_scale, Real) and 0 < self.score_scale < math.inf
        ):
            raise ConfigError(f"score_scale must be a positive number, or None (got {self.score_scale!r}).")
        for name in ("flip", "shift"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} must be True or False (got {getattr(self, name)!r}).")
        object.__setattr__(self, "scales", _check_scales(self.scales))
        object.__setattr__(self, "layers", _check_layers(self.layers))
        object.__setattr__(self, "target", target_of(self.target))

    @classmethod
    def of(cls, holder: Any) -> "MapSettings":
        """Collect the settings from the attributes of an object that has all of them, such as the callback."""
        return cls(**{field.name: getattr(holder, field.name) for field in fields(cls)})

    def resolve(self, tower: Tower) -> tuple[Method, tuple[str, ...], Fusion]:
        """The method on a tower, the dotted names of its layers, and how their maps are combined.

        Raises:
            ConfigError: the method does not fit the tower, or it has no such layer.
        """
        method = resolve_method(self.method, tower)
        follows_recipe = self.method == "auto" and self.layers is None
        layers = resolve_layers(method, tower, recipe_of(tower).layers_of(tower) if follows_recipe else self.layers)
        return method, layers, self.fuse or (recipe_of(tower).fuse if follows_recipe else "mean")

    def resolve_score_scale(self, method: Method) -> float:
        """The factor on the cosine before the target of a method of :meth:`resolve`."""
        if self.score_scale is not None:
            return float(self.score_scale)
        target = method.target or target_of(self.target)
        return 1.0 if target.has_temperature else method.score_scale

    def compares_prompts(self, tower: Tower) -> bool:
        """Whether the prompts of an image change each other's maps on a tower."""
        method, _, _ = self.resolve(tower)
        return method.compares_prompts or (method.target or target_of(self.target)).compares_prompts


def _check_scales(scales: Any) -> tuple[float, ...]:
    listed = tuple(scales) if isinstance(scales, Iterable) and not isinstance(scales, str) else (scales,)
    if not listed or not all(isinstance(scale, Real) and 0 < float(scale) < math.inf for scale in listed):
        raise ConfigError(f"scales must be positive factors, at least one (got {scales!r}); for example (1.0, 1.5).")
    return listed


def _check_layers(layers: Any) -> Layers:
    listed = tuple(layers) if isinstance(layers, list | tuple) else (layers,)
    if layers is not None and not all(isinstance(layer, int | str) for layer in listed):
        raise ConfigError(
            "layers must be an index such as -1, a dotted name such as 'visual.layer4', or a list of these "
            f"(got {reprlib.repr(layers)})."
        )
    return listed if isinstance(layers, list) else layers
