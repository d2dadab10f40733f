"""Read one probe: decode its image and mask, check every field, and copy it to the CPU."""

import operator
import reprlib
from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int, UInt8
from PIL import Image
from torch import Tensor

from clipcam_lightning.cam.decoding import ImageLike, decode, decode_rgb, read_rgb
from clipcam_lightning.errors import ConfigError, ProbeError
from clipcam_lightning.probes.probe import Box, LoadedProbe, MaskLike, Probe, TokensLike

FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGER_DTYPES = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def load_probe(probe: Probe, place: str) -> LoadedProbe:
    """Read and check one probe.

    Args:
        probe: as the user gave it.
        place: what error messages call the probe, such as ``"probe 3"`` or ``"probes.csv line 4"``.

    Returns:
        The probe with its image and mask as arrays that share no memory with those given. Its name is the given one,
        which may be empty.

    Raises:
        ProbeError: a field cannot be used; the message says where, which and why.
    """
    if not isinstance(probe.prompt, str):
        raise ProbeError(
            f"{place}: the prompt must be text (got {type(probe.prompt).__name__}); the image comes before the prompt."
        )
    if not probe.prompt.strip():
        raise ProbeError(f"{place}: the prompt is empty; it must say what to look for.")
    if not isinstance(probe.name, str):
        raise ProbeError(f"{place}: the name must be text (got {reprlib.repr(probe.name)}).")
    image = _load_image(probe.image, place)
    height, width = image.shape[1:] if isinstance(image, Tensor) else image.shape[:2]
    if not height * width:
        raise ProbeError(f"{place}: the image has no pixels.")
    if probe.mask is not None and probe.box is not None:
        raise ProbeError(f"{place}: give a mask or a box, not both.")
    mask = None if probe.mask is None else _load_mask(probe.mask, place)
    if probe.box is not None:
        mask = _fill_box(probe.box, height, width, place)
    if mask is not None and mask.shape != (height, width):
        raise ProbeError(
            f"{place}: the mask is {mask.shape[1]}x{mask.shape[0]} pixels, its image {width}x{height}; "
            "they must have the same size."
        )
    if mask is not None and not mask.any():
        raise ProbeError(f"{place}: the mask is empty; leave it out if the object's position is unknown.")
    tokens = None if probe.tokens is None else _load_tokens(probe.tokens, place)
    embedding = None if probe.embedding is None else _load_embedding(probe.embedding, place)
    if tokens is not None and embedding is not None:
        raise ProbeError(f"{place}: give tokens or an embedding, not both.")
    return LoadedProbe(image, probe.prompt, probe.name, mask, tokens, embedding)


def is_dense(tensor: Tensor) -> bool:
    """Return whether a tensor stores one value per element: it is not sparse, nested, quantized or on ``meta``."""
    return tensor.layout == torch.strided and not (tensor.is_nested or tensor.is_quantized or tensor.is_meta)


def _load_image(image: ImageLike, place: str) -> UInt8[np.ndarray, "y x 3"] | Float32[Tensor, "3 y x"]:
    if isinstance(image, Tensor):
        pixels = _copy(image, "image", place)
        if pixels.ndim != 3 or pixels.shape[0] != 3 or pixels.dtype not in FLOAT_DTYPES:
            raise ProbeError(
                f"{place}: a tensor must be preprocessed float pixels [3, y, x] (got {pixels.dtype} "
                f"{tuple(pixels.shape)}); give raw pixels as a uint8 array [y, x, 3]."
            )
        with torch.inference_mode(False):
            pixels = pixels.float()
        if not pixels.isfinite().all():
            raise ProbeError(f"{place}: the image must be finite; it holds NaN or infinity.")
        return pixels
    try:
        return np.array(decode_rgb(image), order="C")
    except ConfigError as error:
        raise ProbeError(f"{place}: {error}") from error


def _load_mask(mask: MaskLike, place: str) -> Bool[np.ndarray, "y x"]:
    if isinstance(mask, Tensor):
        values = _copy(mask, "mask", place)
        if values.dtype not in (*INTEGER_DTYPES, *FLOAT_DTYPES):
            raise ProbeError(f"{place}: a mask must be numbers [y, x] (got {values.dtype}).")
        mask = (values.float() if values.is_floating_point() else values).numpy()
    if not isinstance(mask, np.ndarray):
        try:
            return decode(mask, "mask", _read_nonblack)
        except ConfigError as error:
            raise ProbeError(f"{place}: {error}") from error
    if mask.ndim != 2 or mask.dtype.kind not in "biuf":
        raise ProbeError(f"{place}: a mask must be numbers [y, x] (got {mask.dtype} {mask.shape}).")
    if not np.isfinite(mask).all():
        raise ProbeError(f"{place}: a mask must be finite; this one holds NaN or infinity.")
    return np.array(mask != 0, order="C")


def _fill_box(box: Box, height: int, width: int, place: str) -> Bool[np.ndarray, "y x"]:
    """Return the mask of a box in an image of this size."""
    try:
        left, top, right, bottom = (operator.index(side) for side in box)
    except (TypeError, ValueError) as error:
        raise ProbeError(
            f"{place}: a box is four whole numbers, left top right bottom (got {reprlib.repr(box)})."
        ) from error
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise ProbeError(
            f"{place}: the box {left, top, right, bottom} is not left < right, top < bottom inside {width}x{height}."
        )
    mask = np.zeros((height, width), dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def _load_tokens(tokens: TokensLike, place: str) -> TokensLike:
    if isinstance(tokens, Mapping):
        if "input_ids" not in tokens:
            raise ProbeError(f"{place}: tokens by name must have input_ids (got {', '.join(map(str, tokens))}).")
        return {name: _load_ids(rows, place) for name, rows in tokens.items()}
    return _load_ids(tokens, place)


def _load_ids(tokens: Tensor, place: str) -> Int[Tensor, "l"]:
    if not isinstance(tokens, Tensor):
        raise ProbeError(f"{place}: token ids must be a tensor [l] (got {type(tokens).__name__}).")
    ids = _copy(tokens, "row of token ids", place)
    if ids.ndim != 1 or not len(ids) or ids.dtype not in (torch.int32, torch.int64):
        raise ProbeError(f"{place}: token ids must be integers [l] (got {ids.dtype} {tuple(ids.shape)}).")
    return ids


def _load_embedding(embedding: Tensor, place: str) -> Float32[Tensor, "d"]:
    values = (
        _copy(embedding, "embedding", place).float() if isinstance(embedding, Tensor) else torch.empty(0, device="cpu")
    )
    if values.ndim != 1 or not values.isfinite().all() or not values.any():
        got = (
            f"{embedding.dtype} {tuple(embedding.shape)}" if isinstance(embedding, Tensor) else type(embedding).__name__
        )
        raise ProbeError(f"{place}: an embedding must be finite numbers [d], not all zero (got {got}).")
    return values


def _copy(tensor: Tensor, noun: str, place: str) -> Tensor:
    """Copy a tensor to the CPU; the copy shares neither memory nor graph nor subclass with the original."""
    if not is_dense(tensor):
        raise ProbeError(f"{place}: the {noun} must be a dense tensor (got {tensor.layout} on {tensor.device}).")
    with torch.inference_mode(False):
        return tensor.detach().cpu().as_subclass(Tensor).resolve_conj().resolve_neg().clone()


def _read_nonblack(image: Image.Image) -> Bool[np.ndarray, "y x"]:
    if image.mode[0] in "IF":  # in 8 bits, small labels of a 16-bit or 32-bit image would become 0
        return np.array(image).astype(bool)
    return np.array(read_rgb(image).any(axis=-1))
