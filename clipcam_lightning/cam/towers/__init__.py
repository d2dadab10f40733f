"""Where each CLIP family keeps its grid and its layers; one file per library."""

from torch import nn

from clipcam_lightning.cam.towers.huggingface import HuggingFaceNaFlexViT, HuggingFaceViT
from clipcam_lightning.cam.towers.open_clip import OpenClipResNet, OpenClipViT
from clipcam_lightning.cam.towers.openai import OpenAiResNet, OpenAiViT
from clipcam_lightning.cam.towers.timm import TimmStages, TimmViT
from clipcam_lightning.cam.towers.tower import Tower
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


def tower_of(clip: nn.Module) -> Tower:
    """The tower that fits ``clip``.

    Raises:
        TowerError: none does; the message says how to add one.
    """
    for tower in TOWERS:
        if tower.fits(clip):
            return tower(clip)
    visual = getattr(clip, "visual", None)
    encoder = "" if visual is None else f" with a {type(visual).__name__} as its `visual`"
    raise TowerError(
        f"no tower fits {type(clip).__name__}{encoder}; known: {', '.join(tower.__name__ for tower in TOWERS)}. "
        "To add one, derive a class from clipcam_lightning.Tower with its layers, fits, input_size, to_grid, "
        "scaled_size, and explain ClipModel(model, YourTower(model), tokenizer, preprocessing) in place of the model, "
        "as examples/add_a_tower.py does."
    )
