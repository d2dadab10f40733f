"""One pass over a batch of images, of the kind that a method reads: model in, maps out."""

from collections.abc import Callable

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
from clipcam_lightning.cam.passes.attention import with_attention
from clipcam_lightning.cam.passes.layers import activations_only, with_gradients
from clipcam_lightning.cam.passes.one_pass import Pass, Result
from clipcam_lightning.cam.passes.scores import with_scores
from clipcam_lightning.errors import ConfigError

__all__ = ["Pass", "maps_of"]

_PASSES: dict[type, Callable[[Method, Pass], Result]] = {
    LayerCapture: activations_only,
    Capture: with_gradients,
    CurvatureCapture: with_gradients,
    AttentionCapture: with_attention,
    ClassTokenCapture: with_attention,
    WholeCapture: with_attention,
    WeightCapture: with_attention,
    HeadCapture: with_attention,
    ScoreCapture: with_scores,
}


def maps_of(method: Method, one: Pass) -> Result:
    """Raw maps of the prompts, and their similarities.

    Raises:
        ConfigError: the method gives something else than maps.
    """
    maps, similarity = _PASSES[method.reads](method, one)
    if maps.ndim != 4 or maps.shape[0] != len(one.images) or maps.shape[1] not in (1, one.prompts):
        raise ConfigError(
            f"a method must give maps [b, p, h, w] of b images and p prompts (or 1, if it asks for none); "
            f"{method.name} gave {tuple(maps.shape)} for {len(one.images)} images and {one.prompts} prompts."
        )
    return maps.detach().float().expand(-1, one.prompts, -1, -1), similarity[:, : one.prompts].detach()
