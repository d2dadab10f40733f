"""Passes: one forward over a batch of images (and what a method needs beyond it), from the model to raw maps."""

from collections.abc import Callable

from torch.nn import functional as F

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
from clipcam_lightning.cam.methods import Method
from clipcam_lightning.cam.methods.method import MAPS
from clipcam_lightning.cam.passes.attention import run_attention_pass
from clipcam_lightning.cam.passes.layers import (
    run_activation_pass,
    run_gradient_pass,
    run_path_pass,
    warn_of_unread_layers,
)
from clipcam_lightning.cam.passes.one_pass import Pass, Result, UnreadLayers
from clipcam_lightning.cam.passes.scores import run_score_pass
from clipcam_lightning.errors import ConfigError

__all__ = ["Pass", "Result", "UnreadLayers", "compute_maps", "warn_of_unread_layers"]

_PASSES: dict[type, Callable[[Method, Pass], Result]] = {
    LayerCapture: run_activation_pass,
    Capture: run_gradient_pass,
    CurvatureCapture: run_gradient_pass,
    AttentionCapture: run_attention_pass,
    ClassTokenCapture: run_attention_pass,
    WholeCapture: run_attention_pass,
    WeightCapture: run_attention_pass,
    HeadCapture: run_attention_pass,
    ScoreCapture: run_score_pass,
}


def compute_maps(method: Method, inputs: Pass) -> Result:
    """Run the pass that ``method`` reads.

    Args:
        method: the CAM method.
        inputs: the batch and its settings.

    Returns:
        Raw maps of the mapped prompts, float32, and unit embeddings of the images.

    Raises:
        ConfigError: the method does not return maps, or the texts do not fit the images.
    """
    run = run_path_pass if method.steps else _PASSES[method.reads]
    maps, features = run(method, inputs)
    inputs.require_fitting(features)
    if maps.shape[0] != len(inputs.images) or maps.shape[1] not in (1, inputs.prompts):
        raise ConfigError(
            f"{MAPS}; {method.name} returned {tuple(maps.shape)} for {len(inputs.images)} images and {inputs.prompts} "
            "prompts."
        )
    return maps.detach().float().expand(-1, inputs.prompts, -1, -1), F.normalize(features.detach(), dim=-1)
