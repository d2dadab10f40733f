"""CAM methods, one paper per file: each is one function from what a pass recorded to raw maps."""

from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias, get_args

from jaxtyping import Float
from torch import Tensor

from clipcam_lightning.cam.arguments import suggest
from clipcam_lightning.cam.capture import (
    AttentionCapture,
    Capture,
    ClassTokenCapture,
    CurvatureCapture,
    HeadCapture,
    LayerCapture,
    ScoreCapture,
    WeightCapture,
    WholeCapture,
)
from clipcam_lightning.cam.methods.ablationcam import ablationcam
from clipcam_lightning.cam.methods.attnlrp import attnlrp
from clipcam_lightning.cam.methods.cci import CLUSTERS as CCI_CLUSTERS, cci
from clipcam_lightning.cam.methods.clip_surgery import clip_surgery
from clipcam_lightning.cam.methods.decomposition import decomposition
from clipcam_lightning.cam.methods.eigencam import eigencam
from clipcam_lightning.cam.methods.eigengradcam import eigengradcam
from clipcam_lightning.cam.methods.elementwise import elementwise
from clipcam_lightning.cam.methods.fem import fem
from clipcam_lightning.cam.methods.finercam import FinerTarget, finercam
from clipcam_lightning.cam.methods.gae import gae
from clipcam_lightning.cam.methods.gem import gem
from clipcam_lightning.cam.methods.grad_eclip import grad_eclip
from clipcam_lightning.cam.methods.gradcam import gradcam
from clipcam_lightning.cam.methods.gradcam_pp import gradcam_pp
from clipcam_lightning.cam.methods.hirescam import hirescam
from clipcam_lightning.cam.methods.input_x_gradient import input_x_gradient
from clipcam_lightning.cam.methods.integrated_gradients import STEPS, integrated_gradients
from clipcam_lightning.cam.methods.layercam import layercam
from clipcam_lightning.cam.methods.legrad import legrad
from clipcam_lightning.cam.methods.maskclip import maskclip
from clipcam_lightning.cam.methods.method import Method, Variants
from clipcam_lightning.cam.methods.occlusion import CLUSTERS, cluster_occlusion, count_squares, occlusion
from clipcam_lightning.cam.methods.rollout import rollout
from clipcam_lightning.cam.methods.scorecam import SCORE_SCALE, scorecam
from clipcam_lightning.cam.methods.shapleycam import shapleycam
from clipcam_lightning.cam.methods.xgradcam import xgradcam
from clipcam_lightning.cam.rules import AttnLrpRules, ConstantNormalizers
from clipcam_lightning.cam.towers.tower import (
    ATTENTION,
    BLOCKS,
    CLASS_TOKEN_RECIPE,
    HEAD,
    ONE_QUERY,
    RESIDUAL,
    AttentionTower,
    Recipe,
    Tower,
)
from clipcam_lightning.errors import ConfigError

__all__ = [
    "METHODS",
    "Layers",
    "Method",
    "MethodLike",
    "MethodName",
    "check_method",
    "recipe_of",
    "resolve_layers",
    "resolve_method",
]

MethodName: TypeAlias = Literal[
    "auto",
    "gradcam",
    "gradcam_pp",
    "xgradcam",
    "hirescam",
    "elementwise",
    "layercam",
    "finercam",
    "shapleycam",
    "input_x_gradient",
    "attnlrp",
    "integrated_gradients",
    "eigencam",
    "eigengradcam",
    "fem",
    "scorecam",
    "ablationcam",
    "occlusion",
    "cluster_occlusion",
    "cci",
    "gae",
    "rollout",
    "legrad",
    "grad_eclip",
    "decomposition",
    "maskclip",
    "clip_surgery",
    "gem",
]

MethodLike: TypeAlias = MethodName | Method | Callable[[Capture], Float[Tensor, "b p h w"]]

Layers: TypeAlias = int | str | Sequence[int | str] | None

_PER_CHANNEL = Variants("channel", lambda channels, _height, _width: channels)

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(gradcam, Capture),
        Method(gradcam_pp, Capture),
        Method(xgradcam, Capture),
        Method(hirescam, Capture),
        Method(elementwise, Capture),
        Method(layercam, Capture),
        Method(finercam, Capture, target=FinerTarget()),
        Method(shapleycam, CurvatureCapture),
        Method(input_x_gradient, Capture, rules=ConstantNormalizers, block_inputs=True),
        Method(attnlrp, Capture, needs=(BLOCKS,), rules=AttnLrpRules, block_inputs=True),
        Method(integrated_gradients, Capture, block_inputs=True, steps=STEPS),
        Method(eigencam, LayerCapture),
        Method(eigengradcam, Capture),
        Method(fem, LayerCapture),
        Method(scorecam, ScoreCapture, variants=_PER_CHANNEL, score_scale=SCORE_SCALE),
        Method(ablationcam, ScoreCapture, variants=_PER_CHANNEL),
        Method(occlusion, ScoreCapture, variants=Variants("cell", count_squares)),
        Method(cluster_occlusion, ScoreCapture, variants=Variants("cluster", lambda *_layer: CLUSTERS)),
        Method(
            cci,
            ScoreCapture,
            needs=(BLOCKS, ONE_QUERY),
            variants=Variants("cluster", lambda *_layer: CCI_CLUSTERS),
        ),
        Method(gae, WeightCapture, needs=(ATTENTION,), blocks=1),
        Method(rollout, AttentionCapture, needs=(ATTENTION,)),
        Method(legrad, AttentionCapture, needs=(BLOCKS, HEAD), blocks=2),
        Method(grad_eclip, HeadCapture, needs=(ONE_QUERY,), blocks=1, one_block=True),
        Method(decomposition, ClassTokenCapture, needs=(RESIDUAL,)),
        Method(maskclip, AttentionCapture, needs=(ATTENTION, HEAD), blocks=1, one_block=True),
        Method(clip_surgery, WholeCapture, needs=(BLOCKS, HEAD), blocks=6, compares_prompts=True),
        Method(gem, WholeCapture, needs=(BLOCKS, HEAD), blocks=6),
    )
}
"""The methods of the package by name; :class:`MapSettings` takes the names, and ``"auto"``."""


def check_method(method: MethodLike) -> None:
    """Refuse a name that no method has, and what is neither name nor function, before the tower is known.

    Raises:
        ConfigError: the message lists the names.
    """
    if method not in get_args(MethodName) if isinstance(method, str) else not callable(method):
        raise ConfigError(
            f"method must be 'auto', one of {', '.join(METHODS)}, or a function (got {method!r})."
            f"{suggest(method, get_args(MethodName))}"
        )


def resolve_method(method: MethodLike, tower: Tower) -> Method:
    """Turn what a user may give for a method into a :class:`Method` that fits the tower.

    Args:
        method: a name, where ``"auto"`` stands for the tower's recommendation; a method; or a function, which is taken
            to read a :class:`Capture`.
        tower: what the method must fit.

    Raises:
        ConfigError: no method has that name, or it does not fit the tower; the message lists those that do.
    """
    check_method(method)
    if isinstance(method, str):
        method = METHODS[recipe_of(tower).method if method == "auto" else method]
    elif not isinstance(method, Method):
        method = Method(method)
    missing = method.missing(tower)
    if missing:
        fitting = ", ".join(name for name, each in METHODS.items() if not each.missing(tower))
        raise ConfigError(
            f"{method.name} does not fit {type(tower).__name__}: it needs {' and '.join(missing)}. Fitting: {fitting}."
        )
    return method


def recipe_of(tower: Tower) -> Recipe:
    """What ``"auto"`` stands for on a tower: its own recipe, or one that fits whatever follows the tower."""
    fits = not METHODS[tower.recipe.method].missing(tower)
    return tower.recipe if fits else CLASS_TOKEN_RECIPE


def resolve_layers(method: Method, tower: Tower, layers: Layers) -> tuple[str, ...]:
    """Find the dotted names of the layers that ``method`` maps.

    Args:
        method: one that fits the tower.
        tower: where the layers are.
        layers: names or indices; ``None`` for the method's choice.

    Raises:
        ConfigError: the tower has no such layer; the message lists those it has.
    """
    blocks = tower.layers
    if issubclass(method.reads, AttentionCapture):
        assert isinstance(tower, AttentionTower)  # the method fits
        blocks = tower.layers[: len(tower.attentions)]  # a norm after the last block has no attention
        if layers is None:
            return tuple(blocks[-method.blocks :] if method.blocks else blocks)
    if method.block_inputs and isinstance(tower, AttentionTower) and tower.block_inputs:
        blocks = tower.block_inputs
        layers = 0 if layers is None else layers
    if layers is not None:
        chosen = [layers] if isinstance(layers, int | str) else layers
        if not chosen:
            raise ConfigError("layers must name at least one layer, or be None for the method's choice.")
        if method.one_block and len(chosen) > 1:
            raise ConfigError(f"{method.name} reads one block (got layers {tuple(chosen)}).")
        return tuple(dict.fromkeys(tower.resolve(layer, blocks) for layer in chosen))
    return (tower.default_layer,)
