"""Where each CLIP family keeps its grid and its layers; one file per library."""

from torch import nn

from clipcam_lightning.cam.towers.open_clip import OpenClipResNet, OpenClipViT
from clipcam_lightning.cam.towers.tower import Tower
from clipcam_lightning.errors import TowerError

TOWERS: tuple[type[Tower], ...] = (OpenClipViT, OpenClipResNet)


def tower_of(clip: nn.Module) -> Tower:
    """The tower that fits ``clip``.

    Raises:
        TowerError: none does.
    """
    for tower in TOWERS:
        if tower.fits(clip):
            return tower(clip)
    visual = type(getattr(clip, "visual", None)).__name__
    raise TowerError(
        f"no tower fits {type(clip).__name__} with a {visual} as its `visual`; "
        f"known: {', '.join(tower.__name__ for tower in TOWERS)}."
    )
