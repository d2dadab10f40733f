"""Images as the core is given them, checked, and grouped by size where a tower takes several."""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from clipcam_lightning.cam.towers.tower import Tower
from clipcam_lightning.errors import ConfigError

Images: TypeAlias = Float[Tensor, "n 3 y x"] | Sequence[Float[Tensor, "3 _y _x"]] | Mapping[str, Tensor]
"""Preprocessed images of one size; of a tower that takes any size also a list of them, or its processor's output."""


def by_size(tower: Tower, images: Images) -> list[tuple[list[int], Float[Tensor, "b 3 y x"]]]:
    """The images of each size together, with their indices.

    Raises:
        ConfigError: they are not what the tower takes; the message says what was expected and what came.
    """
    if isinstance(images, Mapping):
        images = tower.unpacked(images)
    if isinstance(images, Tensor):
        _check(tower, images)
        return [(list(range(len(images))), images)]
    if not images or not all(isinstance(image, Tensor) for image in images):
        raise ConfigError(f"images must be a tensor, or a list of tensors [3, y, x] (got {type(images).__name__}).")
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, image in enumerate(images):
        groups.setdefault(tuple(image.shape), []).append(i)
    grouped = [(indices, torch.stack([images[i] for i in indices])) for indices in groups.values()]
    for _, same in grouped:
        _check(tower, same)
    return grouped


def sizes_of(tower: Tower, images: Float[Tensor, "b 3 y x"], scales: Sequence[float]) -> list[tuple[int, int]]:
    """Sizes of the images at the scales.

    Raises:
        ConfigError: a scale is no positive number, or the tower cannot take it.
    """
    if not scales or not all(0 < scale < float("inf") for scale in scales):
        raise ConfigError(f"scales must be positive factors, at least one (got {tuple(scales)}).")
    size = (images.shape[-2], images.shape[-1])
    return [size if scale == 1 else tower.scaled_size(size, scale) for scale in scales]


def enlarged(images: Float[Tensor, "b 3 y x"], size: tuple[int, int]) -> Float[Tensor, "b 3 v u"]:
    """Bicubic, antialiased."""
    if images.shape[-2:] == size:
        return images
    return F.interpolate(images, size=size, mode="bicubic", antialias=True, align_corners=False)


def _check(tower: Tower, images: Tensor) -> None:
    height, width = tower.input_size
    wanted = "height, width" if tower.any_size else f"{height}, {width}"
    fits = images.ndim == 4 and images.shape[1] == 3 and (tower.any_size or images.shape[2:] == (height, width))
    if not fits or not len(images) or not images.is_floating_point():
        raise ConfigError(
            f"images must be preprocessed float pixels [n, 3, {wanted}], n at least 1 "
            f"(got {images.dtype} {tuple(images.shape)})."
        )
    broken = [i for i, image in enumerate(images) if not image.isfinite().all()]
    if broken:
        raise ConfigError(f"images must be finite; NaN or infinity is in {len(broken)} of them, first in {broken[0]}.")
