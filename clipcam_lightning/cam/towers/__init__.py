"""Towers: where the image encoder of each CLIP family keeps its grid and its layers; one file per library."""

from collections.abc import Sequence

import torch
from torch import nn

from clipcam_lightning.cam.encoders import name_of
from clipcam_lightning.cam.towers.huggingface import HuggingFaceNaFlexViT, HuggingFaceViT
from clipcam_lightning.cam.towers.open_clip import OpenClipResNet, OpenClipViT
from clipcam_lightning.cam.towers.openai import OpenAiResNet, OpenAiViT
from clipcam_lightning.cam.towers.timm import TimmStages, TimmViT
from clipcam_lightning.cam.towers.tower import Tower
from clipcam_lightning.cam.towers.traced import TracedTower
from clipcam_lightning.errors import TowerError

TOWERS: tuple[type[Tower], ...] = (
    OpenClipViT,
    OpenClipResNet,
    OpenAiViT,
    OpenAiResNet,
    HuggingFaceViT,
    HuggingFaceNaFlexViT,
    TimmViT,
    TimmStages,
)


def find_tower(clip: nn.Module, towers: Sequence[type[Tower]] = ()) -> Tower:
    """Find the tower that fits ``clip``; of an unknown kind of image encoder, by tracing one pass.

    Args:
        clip: the CLIP itself, without wrappers.
        towers: tried before the package's own.

    Returns:
        The tower.

    Raises:
        TowerError: the image encoder is a TorchScript program, or takes images of another number of channels than
            three, or no tower fits and it cannot be traced; the message describes how to add a tower.
    """
    visual = getattr(clip, "visual", None)
    if isinstance(clip, torch.jit.ScriptModule) or isinstance(visual, torch.jit.ScriptModule):
        raise TowerError(
            f"{name_of(clip)} is a TorchScript program, whose layers no method can read; "
            "build the model without it (jit=False) and load its weights with load_state_dict."
        )
    for tower in (*towers, *TOWERS):
        if tower.fits(clip):
            return _require_rgb(tower(clip))
    try:
        return TracedTower(clip)
    except TowerError as error:
        encoder = "" if visual is None else f" with a {type(visual).__name__} as its `visual`"
        raise TowerError(
            f"no tower fits {name_of(clip)}{encoder}, and its layers could not be found by tracing it: {error} "
            f"Supported: {', '.join(tower.__name__ for tower in TOWERS)}. "
            "To add one, derive a class from clipcam_lightning.Tower with its layers, fits, input_size, to_grid, "
            "scaled_size, and pass towers=[YourTower] to find_clip or ClipCamCallback, as examples/add_a_tower.py does."
        ) from error


def _require_rgb(tower: Tower) -> Tower:
    if tower.input_channels != 3:
        raise TowerError(
            f"{type(tower.clip).__name__} takes images of {tower.input_channels} channels (expected 3, RGB). Build its "
            "image encoder for 3 channels; or if encode_image converts RGB images itself, pass towers=[YourTower], "
            f"derived from {type(tower).__name__} with input_channels = 3."
        )
    return tower
