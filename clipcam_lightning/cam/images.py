"""Check the images that ``explain`` is called with, group them by size, and scale them."""

import math
import warnings
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from clipcam_lightning.cam.compact_images import CompactImages
from clipcam_lightning.cam.decoding import Images, list_images
from clipcam_lightning.cam.model import ClipModel
from clipcam_lightning.cam.towers.tower import Tower
from clipcam_lightning.errors import ClipCamWarning, ConfigError

MAX_NORMALISED = 20  # no model in use normalises with a standard deviation below 0.05


def group_by_size(
    clip: ClipModel, images: Images | CompactImages
) -> list[tuple[list[int], Float[Tensor, "b 3 y x"] | CompactImages]]:
    """Convert images to model input and stack those of each size.

    Args:
        clip: the model.
        images: one image, several of any size, a batch, or the output of the model's image processor.

    Returns:
        For each size the indices of the images and the images themselves.

    Raises:
        ConfigError: the images cannot be read, or do not fit the tower.

    Warns:
        ClipCamWarning: they are float pixels that were not normalised.
    """
    if isinstance(images, CompactImages):
        require_size(clip.tower, (images.shape[-2], images.shape[-1]))
        if images.normalisation is None:
            _check_values(images.values)
        return [(list(range(len(images))), images)]
    if isinstance(images, Mapping):
        images = clip.tower.unpack(images)
    if isinstance(images, Tensor) and images.ndim == 4:
        groups = [(list(range(len(images))), images)]
    else:
        converted = [clip.preprocessing.image(image) for image in list_images(images)]
        indices_of: dict[tuple[int, ...], list[int]] = {}
        for i, image in enumerate(converted):
            indices_of.setdefault(tuple(image.shape), []).append(i)
        groups = [(indices, torch.stack([converted[i] for i in indices])) for indices in indices_of.values()]
    for _, stacked in groups:
        _check(clip, stacked)
    return [*groups]


def compute_scaled_sizes(
    tower: Tower, images: Float[Tensor, "b 3 y x"] | CompactImages, scales: Sequence[float]
) -> list[tuple[int, int]]:
    """Compute the image size at each of ``scales``, in whole cells of the tower's grid.

    Args:
        tower: the image tower.
        images: images of one size.
        scales: factors of that size.

    Returns:
        Height and width in pixels per scale.

    Raises:
        ConfigError: the tower does not support a scale.
    """
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


def _check(clip: ClipModel, images: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or not len(images) or not images.is_floating_point():
        raise ConfigError(
            "images must be preprocessed float pixels [n, 3, height, width], n at least 1 "
            f"(got {images.dtype} {tuple(images.shape)}); give raw pixels as files, PIL images or uint8 arrays "
            "[height, width, 3]."
        )
    require_size(clip.tower, (images.shape[-2], images.shape[-1]))
    _check_values(images)


def _check_values(images: Float[Tensor, "n 3 y x"]) -> None:
    low, high = torch.stack(images.detach().aminmax()).tolist()  # NaN if any value is
    if not (math.isfinite(low) and math.isfinite(high)):
        not_finite = [i for i, image in enumerate(images) if not image.isfinite().all()]
        raise ConfigError(
            f"images must be finite; {len(not_finite)} contain NaN or infinity, the first has index {not_finite[0]}."
        )
    if max(-low, high) > MAX_NORMALISED:
        warnings.warn(
            f"a float tensor of images reaches {max(-low, high):.0f}, so it was not normalised as the model "
            "expects; give files, PIL images or uint8 arrays, which go through the model's own preprocessing.",
            ClipCamWarning,
            stacklevel=3,
        )
