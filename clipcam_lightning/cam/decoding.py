"""Decode image files and PIL images into arrays, and check the pixels that maps are drawn over."""

import io
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps
from torch import Tensor
from upath import UPath

from clipcam_lightning.cam.urls import PathLike, is_url, open_url, read_url, require_whole_url
from clipcam_lightning.errors import ConfigError, abridge

ImageLike: TypeAlias = PathLike | Image.Image | np.ndarray | Tensor
"""A file or its URL, a PIL image or a uint8 RGB array ``[y, x, 3]``; or model input, a float tensor ``[3, y, x]``."""

Images: TypeAlias = ImageLike | Sequence[ImageLike] | Mapping[str, Tensor]
"""One image, a list of images, a batch ``[n, 3, y, x]`` of model input or ``[n, y, x, 3]`` of uint8 RGB, or the output
of the image processor of transformers."""

KINDS = "a file, a PIL image, a uint8 array [height, width, 3] or a float tensor [3, height, width]"


def list_images(images: Any) -> list[ImageLike]:
    """List the images that a user gives as one image, a batch or any collection.

    Raises:
        ConfigError: there are none, or they are something else.
    """
    if isinstance(images, Tensor | np.ndarray):
        listed = list(images) if images.ndim == 4 else [images]
    elif isinstance(images, str | os.PathLike | UPath | Image.Image):
        listed = [images]
    else:
        listed = list(images) if isinstance(images, Iterable) and not isinstance(images, Mapping) else []
    if not listed:
        got = f"none in the {type(images).__name__}" if isinstance(images, Iterable) else type(images).__name__
        raise ConfigError(f"images must be at least one image, each {KINDS} (got {got}).")
    return listed


def decode_rgb(image: Any) -> UInt8[np.ndarray, "y x 3"]:
    """Decode one image to RGB; alpha is dropped, and EXIF orientation is applied.

    Args:
        image: a file or its URL, a PIL image, or an array, which is returned as it is.

    Raises:
        ConfigError: the image cannot be read, has no pixels, or is an array of something else than RGB.
    """
    pixels = image if isinstance(image, np.ndarray) else decode(image, "image", read_rgb)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ConfigError(f"an array must be uint8 [y, x, 3] (got {pixels.dtype} {pixels.shape}).")
    if not pixels.size:
        raise ConfigError(f"the image has no pixels (got {pixels.shape[1]}x{pixels.shape[0]}).")
    return pixels


def decode(image: Any, noun: str, read: Callable[[Image.Image], np.ndarray]) -> np.ndarray:
    """Decode an image completely and apply its EXIF orientation.

    PIL opens lazily, so only decoding shows that a file is truncated.

    Args:
        image: a file or its URL, or a PIL image.
        noun: what messages call it.
        read: converts the upright image to an array, or raises a ``ValueError``.

    Raises:
        ConfigError: the image is missing, damaged or something else; the message says why.
    """
    if not isinstance(image, str | os.PathLike | UPath | Image.Image):
        raise ConfigError(f"the {noun} must be a file, PIL image, array or tensor (got {type(image).__name__}).")
    if is_url(image):
        image = open_url(str(image))
    name = abridge(getattr(image, "filename", "") if isinstance(image, Image.Image) else image)
    subject = f"the {noun} {name}" if name else f"the {noun}"
    try:
        if isinstance(image, Image.Image):
            return read(_apply_orientation(image))
        if isinstance(image, UPath) and is_url(image):
            with Image.open(io.BytesIO(read_url(image))) as opened:
                return read(_apply_orientation(opened))
        if os.path.exists(image) and not os.path.isfile(image):  # noqa: PTH110, PTH113 - the core has no pathlib
            raise ValueError("it is not a file")  # opening a pipe would block
        with Image.open(image) as opened:
            return read(_apply_orientation(opened))
    except FileNotFoundError as error:
        if not is_url(image):
            require_whole_url(name)
        raise ConfigError(f"{subject} does not exist.") from error
    except Exception as error:  # a damaged file can make its decoder raise almost anything
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ConfigError(f"{subject} cannot be read: {abridge(reason)}") from error


def read_rgb(image: Image.Image) -> UInt8[np.ndarray, "y x 3"]:
    """Convert an image of any mode to RGB.

    Raises:
        ValueError: its pixels have 32 bits, whose range is unknown.
    """
    if image.mode in ("I", "F"):
        raise ValueError("the range of its 32-bit pixels is unknown; save it with 8 bits per channel")
    if image.mode.startswith("I;16"):  # PIL would clip these values at 255, to white
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if "transparency" in image.info:  # PIL warns unless the conversion goes through RGBA
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"))


def require_pixels(pixels: object, axes: str) -> None:
    """Refuse anything but pixels that a model saw: over a whole photograph, a map would be misplaced.

    Args:
        pixels: what a map is drawn over.
        axes: of the tensor, ``"n 3 y x"`` or ``"3 y x"``.

    Raises:
        ConfigError: the message says how such pixels are made.
    """
    count = len(axes.split())
    if isinstance(pixels, Tensor) and pixels.dtype == torch.uint8 and pixels.ndim == count and pixels.shape[-3] == 3:
        return
    got = f"{pixels.dtype} {tuple(pixels.shape)}" if isinstance(pixels, Tensor) else type(pixels).__name__
    raise ConfigError(
        f"pixels must be a uint8 tensor [{', '.join(axes.split())}] of what the model sees (got {got}); "
        f"find_clip(model).preprocessing.pixels(images){'[0]' if count == 3 else ''} makes it of any images."
    )


def _apply_orientation(image: Image.Image) -> Image.Image:
    """Turn an image as its EXIF orientation says; an image with unreadable EXIF stays as it is."""
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # bytes that only claim to be EXIF can make their reader raise almost anything
        return image
