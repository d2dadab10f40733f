"""What towers of several libraries share."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from clipcam_lightning.cam.towers.tower import AttentionTower
from clipcam_lightning.errors import ConfigError, TowerError


def inside_visual(clip: nn.Module, wanted: Callable[[Any], bool]) -> tuple[str, Any]:
    """Path and module of the tower below ``clip.visual``, which may be compiled or wrapped by PEFT; else ``None``."""
    found = ((name, part) for name, part in clip.named_modules() if f"{name}.".startswith("visual."))
    return next((pair for pair in found if wanted(pair[1])), ("", None))


def tokens_to_grid(
    tower: AttentionTower, features: Float[Tensor, "..."], image_size: tuple[int, int]
) -> Float[Tensor, "b c h w"]:
    """Patch tokens, which come after the prefix, row by row on their grid.

    Raises:
        TowerError: there are more or fewer tokens.
    """
    height, width = tower.grid(image_size)
    tokens = tower.to_tokens(features) if features.ndim == 3 else features
    if tokens.ndim != 3 or tokens.shape[1] != tower.prefix + height * width:
        raise TowerError(
            f"expected [batch, {tower.prefix} + {height}x{width} tokens, channels] from the layer, got "
            f"{tuple(features.shape)}; choose one of {', '.join(tower.layers)}."
        )
    grid: Tensor = tokens[:, tower.prefix :].transpose(1, 2).unflatten(2, (height, width))
    return grid


def pair(size: int | Sequence[int]) -> tuple[int, int]:
    """Height and width of something that a library may give as one number."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def whole_cells(size: tuple[int, int], scale: float, cell: tuple[int, int]) -> tuple[int, int]:
    """The size ``scale`` times as large, rounded to whole cells.

    Raises:
        ConfigError: that is less than one.
    """
    height, width = (round(side * scale / step) * step for side, step in zip(size, cell, strict=True))
    if min(height, width) < 1:
        raise ConfigError(f"at scale {scale} an image of {size[0]}x{size[1]} is smaller than one cell of the grid.")
    return height, width


def resize_positions(
    positions: Float[Tensor, "t d"], old: tuple[int, int], new: tuple[int, int]
) -> Float[Tensor, "u d"]:
    """Learned positions of a grid, bicubically interpolated to another one."""
    grid = positions.T.float().unflatten(1, old)[None]
    resized = F.interpolate(grid, size=new, mode="bicubic", antialias=True, align_corners=False)
    return resized[0].flatten(1).T.to(positions.dtype)


def encode_with(
    clip: nn.Module, parameters: dict[str, Tensor], images: Float[Tensor, "b 3 y x"]
) -> Float[Tensor, "b e"]:
    """``encode_image`` with some parameters replaced for this one call, by their dotted names below ``clip``."""
    named = {f"clip.{name}": value for name, value in parameters.items()}
    features: Tensor = torch.func.functional_call(_ImageEncoder(clip), named, (images,))
    return features


class _ImageEncoder(nn.Module):
    """``encode_image`` as a module, which is what ``functional_call`` takes."""

    def __init__(self, clip: nn.Module) -> None:
        super().__init__()
        self.clip = clip

    def forward(self, images: Float[Tensor, "b 3 y x"]) -> Float[Tensor, "b e"]:
        features: Tensor = self.clip.encode_image(images)  # type: ignore[operator]
        return features
