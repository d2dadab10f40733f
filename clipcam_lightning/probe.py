"""One image with one prompt, read and checked."""

import os
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Int
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from clipcam_lightning.errors import ProbeError

PathLike: TypeAlias = str | os.PathLike[str]
ImageLike: TypeAlias = PathLike | Image.Image | np.ndarray | Tensor
MaskLike: TypeAlias = PathLike | Image.Image | np.ndarray | Tensor


@dataclass(frozen=True, eq=False)
class Probe:
    """One image with one prompt.

    Attributes:
        image: a file, a PIL image or uint8 RGB ``[y, x, 3]``; or float ``[3, y, x]``, taken as preprocessed already.
        prompt: what the map is asked about.
        name: unique in its set; by default made of the file's name or the prompt.
        mask: where the object is: array or tensor ``[y, x]``, or a picture (not black = object); as large as ``image``.
        box: the same as a box ``(left, top, right, bottom)`` in pixels of ``image``; right and bottom lie outside.
        tokens: token ids ``[l]`` that stand for the prompt; by default the tokenizer makes them.
    """

    image: ImageLike
    prompt: str
    name: str = ""
    mask: MaskLike | None = None
    box: tuple[int, int, int, int] | None = None
    tokens: Int[Tensor, "l"] | None = None


def read_probe(probe: Probe, where: str) -> Probe:
    """The probe with its image and mask as arrays, all of it checked."""
    if not isinstance(probe.prompt, str) or not probe.prompt.strip():
        raise ProbeError(f"{where}: the prompt is empty; it must say what to look for.")
    image = _read_image(probe.image, where)
    height, width = image.shape[1:] if isinstance(image, Tensor) else image.shape[:2]
    if probe.mask is not None and probe.box is not None:
        raise ProbeError(f"{where}: give a mask or a box, not both.")
    mask = None if probe.mask is None else _read_mask(probe.mask, where)
    if probe.box is not None:
        left, top, right, bottom = probe.box
        if not (0 <= left < right <= width and 0 <= top < bottom <= height):
            raise ProbeError(f"{where}: the box {probe.box} is not left < right, top < bottom inside {width}x{height}.")
        mask = np.zeros((height, width), dtype=bool)
        mask[top:bottom, left:right] = True
    if mask is not None and mask.shape != (height, width):
        raise ProbeError(
            f"{where}: the mask is {mask.shape[1]}x{mask.shape[0]} pixels, its image {width}x{height}; they must agree."
        )
    if mask is not None and not mask.any():
        raise ProbeError(f"{where}: the mask is empty; leave it out if the object's place is unknown.")
    with torch.inference_mode(False):
        tokens = None if probe.tokens is None else probe.tokens.detach().cpu().clone()
    return Probe(image, probe.prompt, probe.name, mask, None, tokens)


def _read_image(image: ImageLike, where: str) -> np.ndarray | Tensor:
    if isinstance(image, Tensor):
        if image.ndim != 3 or image.shape[0] != 3 or not image.is_floating_point():
            raise ProbeError(
                f"{where}: a tensor must be preprocessed float pixels [3, y, x] (got {image.dtype} "
                f"{tuple(image.shape)}); give raw pixels as a uint8 array [y, x, 3]."
            )
        if not image.numel():
            raise ProbeError(f"{where}: the image has no pixels.")
        with torch.inference_mode(False):
            return image.detach().float().cpu().clone()
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ProbeError(f"{where}: an array must be uint8 [y, x, 3] (got {image.dtype} {image.shape}).")
        if not image.size:
            raise ProbeError(f"{where}: the image has no pixels.")
        return image.copy()
    return np.array(_opened(image, "image", "RGB", where))


def _read_mask(mask: MaskLike, where: str) -> np.ndarray:
    if isinstance(mask, Tensor):
        mask = mask.detach().cpu().numpy()
    if isinstance(mask, np.ndarray):
        if mask.ndim != 2:
            raise ProbeError(f"{where}: a mask must be [y, x] (got {mask.shape}).")
        return mask.astype(bool)
    return np.asarray(_opened(mask, "mask", "L", where)) > 0


def _opened(image: PathLike | Image.Image, what: str, mode: str, where: str) -> Image.Image:
    """The picture, decoded: PIL opens lazily, and only decoding shows that a file is cut short."""
    name = getattr(image, "filename", "") if isinstance(image, Image.Image) else os.fspath(image)
    try:
        if isinstance(image, Image.Image):
            return image.convert(mode)
        with Image.open(image) as opened:
            return opened.convert(mode)
    except FileNotFoundError as error:
        raise ProbeError(f"{where}: the {what} {name} does not exist.") from error
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ProbeError(f"{where}: the {what} {name} cannot be read: {error}") from error
