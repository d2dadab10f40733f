"""The images in a batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from clipcam_lightning.cam.decoding import ImageLike
from clipcam_lightning.errors import ProbeError
from clipcam_lightning.probes.leaves import Leaf, describe_leaves, is_images
from clipcam_lightning.probes.load import is_dense

SizeFilter: TypeAlias = Callable[[tuple[int, int]], bool]
NON_IMAGE_WORDS = {  # a key with one of these words holds something about the images
    "canny",
    "conditioning",
    "depth",
    "edge",
    "edges",
    "flow",
    "heatmap",
    "mask",
    "masks",
    "normals",
    "saliency",
    "seg",
    "segmentation",
}


@dataclass(frozen=True, eq=False)
class BatchImages:
    """Images of a batch, with ``None`` for samples without one, and the leaf that holds them."""

    leaf: Leaf
    values: list[Any]


def list_images(
    leaves: Sequence[Leaf], size: tuple[int, int], other_sizes: SizeFilter | None
) -> tuple[list[BatchImages], bool]:
    """List the images that may be taken, the best first, and whether they were resized."""
    fit = [leaf for leaf in leaves if not leaf.is_negative and leaf.words.isdisjoint(NON_IMAGE_WORDS)]
    tensors = [(leaf, images) for leaf in fit if (images := _select_images(leaf)) is not None]
    fitting = [(leaf, images) for leaf, images in tensors if tuple(images.shape[-2:]) == size]
    if not fitting and other_sizes is not None:
        fitting = [(leaf, images) for leaf, images in tensors if other_sizes((images.shape[-2], images.shape[-1]))]
    if fitting:
        return [BatchImages(leaf, list(images)) for leaf, images in fitting], False
    raw = [BatchImages(leaf, listed) for leaf in fit if (listed := _list_raw_images(leaf.value))]
    if raw:
        return raw, False
    if tensors:
        return [BatchImages(leaf, list(_resize(images, size))) for leaf, images in tensors], True
    doubt = " A tensor [n, 3, 3, y, x] may hold 3 images or 3 frames per sample." if any(map(_is_unclear, fit)) else ""
    raise ProbeError(
        f"the batch holds no images [n, 3, y, x]; it has {describe_leaves(leaves)}. Keys such as 'depth' or 'negative' "
        f"do not count.{doubt} Give probes=... instead."
    )


def _resize(images: Float[Tensor, "n 3 y x"], size: tuple[int, int]) -> Float[Tensor, "n 3 v u"]:
    """Resize the shorter side and crop the centre, as most models' own transforms do."""
    height, width = images.shape[-2:]
    scale = max(size[0] / height, size[1] / width)
    whole = [max(round(side * scale), wanted) for side, wanted in zip((height, width), size, strict=True)]
    resized = F.interpolate(images.detach().float(), size=whole, mode="bicubic", antialias=True)
    top, left = (whole[0] - size[0]) // 2, (whole[1] - size[1]) // 2
    return resized[..., top : top + size[0], left : left + size[1]]


def copy_image(image: Any) -> ImageLike:
    """Copy an image; a tensor as float32 to the CPU."""
    if not isinstance(image, Tensor):
        copied: ImageLike = image.copy()
        return copied
    with torch.inference_mode(False):
        return image.detach().float().cpu().clone()


def _is_unclear(leaf: Leaf) -> bool:
    """Whether the channels of several images or of a video may be in either of two dimensions."""
    value = leaf.value
    return isinstance(value, Tensor) and is_dense(value) and value.ndim == 5 and value.shape[1:3] == (3, 3)


def _select_images(leaf: Leaf) -> Float[Tensor, "n 3 y x"] | None:
    images = leaf.value
    if not isinstance(images, Tensor) or not is_dense(images) or not images.is_floating_point() or not images.numel():
        return None
    if images.ndim == 5 and not _is_unclear(leaf):  # several images per sample, or frames of a video: take the first
        images = images[:, 0] if images.shape[2] == 3 else images[:, :, 0]
    return images if images.ndim == 4 and images.shape[1] == 3 else None


def _list_raw_images(leaf: Any) -> list[Any]:
    """List images that are not preprocessed, or one tensor per sample; empty if there are none."""
    if isinstance(leaf, np.ndarray) and leaf.dtype == np.uint8:
        leaf = torch.tensor(leaf, device="cpu")
    if isinstance(leaf, Tensor) and is_dense(leaf) and leaf.dtype == torch.uint8 and leaf.ndim == 4 and leaf.numel():
        if leaf.shape[1] == 3:
            leaf = leaf.permute(0, 2, 3, 1)
        return list(leaf.cpu().numpy()) if leaf.shape[3] == 3 else []
    if not is_images(leaf):
        return []
    if any(isinstance(image, Tensor) and image.dtype == torch.uint8 for image in leaf):
        leaf = [image.permute(1, 2, 0).cpu().numpy() if isinstance(image, Tensor) else image for image in leaf]
    return list(leaf)
