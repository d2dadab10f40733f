"""One image with one prompt, read and checked."""

import operator
import os
import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Int, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from clipcam_lightning.cam.arguments import abridged, is_dense
from clipcam_lightning.errors import ProbeError

PathLike: TypeAlias = str | os.PathLike[str]
ImageLike: TypeAlias = PathLike | Image.Image | np.ndarray | Tensor
MaskLike: TypeAlias = PathLike | Image.Image | np.ndarray | Tensor
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
WHOLE = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


@dataclass(frozen=True, eq=False)
class Probe:
    """One image with one prompt.

    Attributes:
        image: a file, a PIL image or uint8 RGB ``[y, x, 3]``; or float ``[3, y, x]``, taken as preprocessed already.
            Of a picture's transparency nothing is kept, and a photograph is turned as its EXIF orientation says.
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
    if not isinstance(probe.name, str):
        raise ProbeError(f"{where}: the name must be text (got {reprlib.repr(probe.name)}).")
    image = _read_image(probe.image, where)
    height, width = image.shape[1:] if isinstance(image, Tensor) else image.shape[:2]
    if not height * width:
        raise ProbeError(f"{where}: the image has no pixels.")
    if probe.mask is not None and probe.box is not None:
        raise ProbeError(f"{where}: give a mask or a box, not both.")
    mask = None if probe.mask is None else _read_mask(probe.mask, where)
    if probe.box is not None:
        mask = _boxed(probe.box, height, width, where)
    if mask is not None and mask.shape != (height, width):
        raise ProbeError(
            f"{where}: the mask is {mask.shape[1]}x{mask.shape[0]} pixels, its image {width}x{height}; they must agree."
        )
    if mask is not None and not mask.any():
        raise ProbeError(f"{where}: the mask is empty; leave it out if the object's place is unknown.")
    tokens = None if probe.tokens is None else _read_tokens(probe.tokens, where)
    return Probe(image, probe.prompt, probe.name, mask, None, tokens)


def _read_image(image: ImageLike, where: str) -> np.ndarray | Tensor:
    if isinstance(image, Tensor):
        pixels = _own(image, "image", where)
        if pixels.ndim != 3 or pixels.shape[0] != 3 or pixels.dtype not in FLOATS:
            raise ProbeError(
                f"{where}: a tensor must be preprocessed float pixels [3, y, x] (got {pixels.dtype} "
                f"{tuple(pixels.shape)}); give raw pixels as a uint8 array [y, x, 3]."
            )
        with torch.inference_mode(False):
            pixels = pixels.float()
        if not pixels.isfinite().all():
            raise ProbeError(f"{where}: the image must be finite; it holds NaN or infinity.")
        return pixels
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ProbeError(f"{where}: an array must be uint8 [y, x, 3] (got {image.dtype} {image.shape}).")
        return np.array(image, order="C")
    return _decoded(image, "image", _rgb, where)


def _read_mask(mask: MaskLike, where: str) -> Bool[np.ndarray, "y x"]:
    if isinstance(mask, Tensor):
        values = _own(mask, "mask", where)
        if values.dtype not in (*WHOLE, *FLOATS):
            raise ProbeError(f"{where}: a mask must be numbers [y, x] (got {values.dtype}).")
        mask = (values.float() if values.is_floating_point() else values).numpy()
    if not isinstance(mask, np.ndarray):
        return _decoded(mask, "mask", _not_black, where)
    if mask.ndim != 2 or mask.dtype.kind not in "biuf":
        raise ProbeError(f"{where}: a mask must be numbers [y, x] (got {mask.dtype} {mask.shape}).")
    if not np.isfinite(mask).all():
        raise ProbeError(f"{where}: a mask must be finite; this one holds NaN or infinity.")
    return np.array(mask != 0, order="C")


def _boxed(box: Any, height: int, width: int, where: str) -> Bool[np.ndarray, "y x"]:
    """The mask of a box."""
    try:
        left, top, right, bottom = (operator.index(side) for side in box)
    except (TypeError, ValueError) as error:
        raise ProbeError(
            f"{where}: a box is four whole numbers, left top right bottom (got {reprlib.repr(box)})."
        ) from error
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise ProbeError(
            f"{where}: the box {left, top, right, bottom} is not left < right, top < bottom inside {width}x{height}."
        )
    mask = np.zeros((height, width), dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def _read_tokens(tokens: Any, where: str) -> Int[Tensor, "l"]:
    if not isinstance(tokens, Tensor):
        raise ProbeError(f"{where}: token ids must be a tensor [l] (got {type(tokens).__name__}).")
    ids = _own(tokens, "row of token ids", where)
    if ids.ndim != 1 or not len(ids) or ids.dtype not in (torch.int32, torch.int64):
        raise ProbeError(f"{where}: token ids must be integers [l] (got {ids.dtype} {tuple(ids.shape)}).")
    return ids


def _own(tensor: Tensor, what: str, where: str) -> Tensor:
    """A copy on the CPU that shares nothing with the given tensor, neither its memory nor its history nor its class."""
    if not is_dense(tensor):
        raise ProbeError(f"{where}: the {what} must be a dense tensor (got {tensor.layout} on {tensor.device}).")
    with torch.inference_mode(False):
        return tensor.detach().cpu().as_subclass(Tensor).resolve_conj().resolve_neg().clone()


def _decoded(image: Any, what: str, pixels: Callable[[Image.Image], np.ndarray], where: str) -> np.ndarray:
    """Pixels of an upright picture: PIL opens lazily, and only decoding shows that a file is cut short."""
    if not isinstance(image, str | os.PathLike | Image.Image):
        raise ProbeError(f"{where}: the {what} must be a file, picture, array or tensor (got {type(image).__name__}).")
    name = abridged(getattr(image, "filename", "") if isinstance(image, Image.Image) else os.fspath(image))
    try:
        if isinstance(image, Image.Image):
            return pixels(_upright(image))
        if Path(image).exists() and not Path(image).is_file():
            raise ValueError("it is not a file")  # a pipe would be waited for
        with Image.open(image) as opened:
            return pixels(_upright(opened))
    except FileNotFoundError as error:
        raise ProbeError(f"{where}: the {what} {name} does not exist.") from error
    except Exception as error:  # a damaged file can make its decoder raise almost anything
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ProbeError(f"{where}: the {what} {name} cannot be read: {abridged(reason)}") from error


def _upright(picture: Image.Image) -> Image.Image:
    """A photograph as viewers show it, and as it is stored where its EXIF cannot be read."""
    picture.load()
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:  # bytes that only claim to be EXIF can make their reader raise almost anything
        return picture


def _rgb(picture: Image.Image) -> UInt8[np.ndarray, "y x 3"]:
    if picture.mode in ("I", "F"):
        raise ValueError("what is white in its 32-bit pixels is not known; save it with 8 bits a channel")
    if picture.mode.startswith("I;16"):  # which PIL would clip at 255, to white
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if "transparency" in picture.info:  # PIL warns unless this goes by way of RGBA
        picture = picture.convert("RGBA")
    return np.array(picture.convert("RGB"))


def _not_black(picture: Image.Image) -> Bool[np.ndarray, "y x"]:
    if picture.mode[0] in "IF":  # deep grey, of which 8 bits would lose small labels
        return np.array(picture).astype(bool)
    return np.array(_rgb(picture).any(axis=-1))
