"""Functions that towers of several libraries share."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from clipcam_lightning.cam.towers.tower import AttentionTower
from clipcam_lightning.errors import ConfigError, TowerError


def find_in_visual(clip: nn.Module, is_wanted: Callable[[Any], bool]) -> tuple[str, Any]:
    """Find a module at or below ``clip.visual``, which may be compiled or wrapped by PEFT.

    Args:
        clip: the model.
        is_wanted: predicate of the module.

    Returns:
        Dotted name below ``clip`` and the module; ``""`` and ``None`` if there is none.
    """
    visual = getattr(clip, "visual", None)
    parts = visual.named_modules(prefix="visual") if isinstance(visual, nn.Module) else ()
    return next((named for named in parts if is_wanted(named[1])), ("", None))


def tokens_to_grid(
    tower: AttentionTower, features: Float[Tensor, "..."], image_size: tuple[int, int]
) -> Float[Tensor, "b c h w"]:
    """Lay out the patch tokens, which follow the prefix if there is one, row by row on their grid.

    Args:
        tower: the tower.
        features: output of a layer: tokens in the tower's own order, or a patch embedding without prefix, batch first,
            as a grid with channels first or last or as tokens.
        image_size: height and width of the images in pixels.

    Returns:
        The grid.

    Raises:
        TowerError: the number of tokens does not match the grid.
    """
    height, width = tower.grid(image_size)
    if features.shape[2:] == (height, width):  # a patch embedding that is a grid still
        return features
    if features.shape[1:3] == (height, width):
        return features.movedim(-1, 1)
    tokens = tower.to_tokens(features) if features.ndim == 3 else features
    if tokens.ndim == 3 and tokens.shape[1] == tower.prefix + height * width:
        patches = tokens[:, tower.prefix :]
    elif features.ndim == 3 and features.shape[1] == height * width:  # a patch embedding: batch first, no prefix
        patches = features
    else:
        raise TowerError(
            f"expected [batch, {tower.prefix} + {height}x{width} tokens, channels] from the layer, got "
            f"{tuple(features.shape)}; choose one of {', '.join(tower.layers)}, or, if the tower has further tokens "
            "such as learned prompts, a method that reads attention, such as rollout."
        )
    grid: Tensor = patches.transpose(1, 2).unflatten(2, (height, width))
    return grid


def as_pair(size: int | Sequence[int]) -> tuple[int, int]:
    """Convert a size that may be a single number to height and width."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def round_to_cells(size: tuple[int, int], scale: float, cell: tuple[int, int]) -> tuple[int, int]:
    """Scale an image size and round it to whole cells.

    Args:
        size: height and width in pixels.
        scale: factor of both.
        cell: height and width of a cell in pixels.

    Returns:
        Height and width in pixels.

    Raises:
        ConfigError: the result is smaller than one cell.
    """
    height, width = (round(side * scale / step) * step for side, step in zip(size, cell, strict=True))
    if min(height, width) < 1:
        raise ConfigError(f"at scale {scale} an image of {size[0]}x{size[1]} is smaller than one cell of the grid.")
    return height, width


def resize_positions(
    positions: Float[Tensor, "t d"], old: tuple[int, int], new: tuple[int, int]
) -> Float[Tensor, "u d"]:
    """Interpolate the learned positions of a grid bicubically to another grid.

    Args:
        positions: one row per cell.
        old: height and width in cells.
        new: height and width in cells.

    Returns:
        One row per cell of the new grid.
    """
    grid = positions.T.float().unflatten(1, old)[None]
    resized = F.interpolate(grid, size=new, mode="bicubic", antialias=True, align_corners=False)
    return resized[0].flatten(1).T.to(positions.dtype)


def encode_with(
    clip: nn.Module, parameters: dict[str, Tensor], images: Float[Tensor, "b 3 y x"]
) -> Float[Tensor, "b e"]:
    """Call ``encode_image`` with some parameters replaced for this one call.

    Args:
        clip: the model.
        parameters: new values by dotted name below ``clip``.
        images: model input.

    Returns:
        Image embeddings of any length.
    """
    named = {f"clip.{name}": value for name, value in parameters.items()}
    # A part of an EncoderPair has two names, and would be replaced twice if weights were tied.
    features: Tensor = torch.func.functional_call(_ImageEncoder(clip), named, (images,), tie_weights=False)
    return features


class _ImageEncoder(nn.Module):
    """``encode_image`` as a module, which ``functional_call`` requires."""

    def __init__(self, clip: nn.Module) -> None:
        super().__init__()
        self.clip = clip

    def forward(self, images: Float[Tensor, "b 3 y x"]) -> Float[Tensor, "b e"]:
        features: Tensor = self.clip.encode_image(images)  # type: ignore[operator]
        return features
