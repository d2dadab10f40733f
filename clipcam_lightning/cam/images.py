"""Check the images that ``explain`` is called with, group them by size, and scale them."""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from clipcam_lightning.cam.towers.tower import Tower
from clipcam_lightning.errors import ConfigError

Images: TypeAlias = Float[Tensor, "n 3 y x"] | Sequence[Float[Tensor, "3 _y _x"]] | Mapping[str, Tensor]
"""Preprocessed images of one size, a list of images of several sizes, or the output of the model's own processor."""


def group_by_size(tower: Tower, images: Images) -> list[tuple[list[int], Float[Tensor, "b 3 y x"]]]:
    """Stack the images of each size.

    Args:
        tower: the image tower.
        images: one tensor, tensors of several sizes, or the output of the model's image processor.

    Returns:
        For each size the indices of the images and the images themselves.

    Raises:
        ConfigError: the images do not fit the tower.
    """
    if isinstance(images, Mapping):
        images = tower.unpack(images)
    if isinstance(images, Tensor):
        _check(tower, images)
        return [(list(range(len(images))), images)]
    if not images or not all(isinstance(image, Tensor) for image in images):
        raise ConfigError(f"images must be a tensor, or a list of tensors [3, y, x] (got {type(images).__name__}).")
    indices_of: dict[tuple[int, ...], list[int]] = {}
    for i, image in enumerate(images):
        indices_of.setdefault(tuple(image.shape), []).append(i)
    groups = [(indices, torch.stack([images[i] for i in indices])) for indices in indices_of.values()]
    for _, stacked in groups:
        _check(tower, stacked)
    return groups


def compute_scaled_sizes(
    tower: Tower, images: Float[Tensor, "b 3 y x"], scales: Sequence[float]
) -> list[tuple[int, int]]:
    """Compute the image size at each of ``scales``, in whole cells of the tower's grid.

    Args:
        tower: the image tower.
        images: images of one size.
        scales: factors of that size.

    Returns:
        Height and width in pixels per scale.

    Raises:
        ConfigError: a scale is not a positive number, or the tower does not support it.
    """
    if not scales or not all(0 < scale < float("inf") for scale in scales):
        raise ConfigError(f"scales must be positive factors, at least one (got {tuple(scales)}).")
    size = (images.shape[-2], images.shape[-1])
    return [size if scale == 1 else tower.scaled_size(size, scale) for scale in scales]


def resize_images(images: Float[Tensor, "b 3 y x"], size: tuple[int, int]) -> Float[Tensor, "b 3 v u"]:
    """Resize images to ``size`` (height, width), bicubically and with antialiasing."""
    if images.shape[-2:] == size:
        return images
    return F.interpolate(images, size=size, mode="bicubic", antialias=True, align_corners=False)


def require_size(tower: Tower, size: tuple[int, int]) -> None:
    """Refuse images of a size that the tower does not take.

    A tower takes images of its own size, and most take every other size in whole cells of the grid, for which
    positions are interpolated. Cut or padded cells would shift the map against the image.

    Args:
        tower: the image tower.
        size: height and width in pixels.

    Raises:
        ConfigError: the message says which sizes the tower takes.
    """
    if size == tower.input_size:
        return
    whole = tower.scaled_size(size, 1.0)
    if size != whole:
        raise ConfigError(
            f"{type(tower).__name__} takes images in whole cells of its grid (got {size[0]}x{size[1]} pixels); "
            f"resize or pad them, for example to {whole[0]}x{whole[1]}."
        )


def takes_size(tower: Tower, size: tuple[int, int]) -> bool:
    """Check whether the tower takes images of ``size`` (height, width) in pixels."""
    try:
        require_size(tower, size)
    except ConfigError:
        return False
    return True


def _check(tower: Tower, images: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or not len(images) or not images.is_floating_point():
        raise ConfigError(
            "images must be preprocessed float pixels [n, 3, height, width], n at least 1 "
            f"(got {images.dtype} {tuple(images.shape)})."
        )
    require_size(tower, (images.shape[-2], images.shape[-1]))
    not_finite = [i for i, image in enumerate(images) if not image.isfinite().all()]
    if not_finite:
        raise ConfigError(
            f"images must be finite; {len(not_finite)} contain NaN or infinity, the first has index {not_finite[0]}."
        )
