"""One image with one prompt: as the user gives it, and as it was read."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float32, Int, UInt8
from PIL import Image
from torch import Tensor

from clipcam_lightning.cam.decoding import ImageLike
from clipcam_lightning.cam.representation import short_repr
from clipcam_lightning.cam.urls import PathLike

TokensLike: TypeAlias = Int[Tensor, "l"] | Mapping[str, Int[Tensor, "l"]]
"""Token ids, or by name all that a transformers tokenizer returns for one text."""

MaskLike: TypeAlias = PathLike | Image.Image | np.ndarray | Tensor
Box: TypeAlias = tuple[int, int, int, int]


@dataclass(frozen=True, eq=False, repr=False)
class Probe:
    """One image with one prompt, as the user gives it.

    Nothing is read or checked until a :class:`ProbeSet` is made of the probe.

    Attributes:
        image: a file or its URL, a PIL image or a uint8 RGB array ``[y, x, 3]``; alpha is dropped, EXIF orientation is
            applied. Or a float tensor ``[3, y, x]`` of pixels that are already preprocessed for the model.
        prompt: the text that the map explains.
        name: unique in its set, of lower-case letters and digits of any script, ``_``, ``.`` and ``-``; by default
            derived from the file's name or the prompt.
        mask: where the object is, at the size of ``image``: an array or tensor ``[y, x]`` (not zero is object), or a
            file, its URL or a PIL image (not black is object).
        box: the object as ``(left, top, right, bottom)`` in pixels of ``image``, instead of a mask; ``right`` and
            ``bottom`` lie just outside.
        tokens: token ids ``[l]`` that are embedded instead of ``prompt``, or a mapping with ``input_ids`` and all else
            that a tokenizer returns; by default the tokenizer makes them.
        embedding: ``[d]``, compared with the image instead of an embedding of ``prompt``, such as a row of a linear
            head.

    Example:
        >>> import numpy as np
        >>> from clipcam_lightning import Probe
        >>> probe = Probe(np.zeros((40, 60, 3), np.uint8), "a fox", box=(10, 5, 50, 35))
        >>> probe.prompt, probe.box
        ('a fox', (10, 5, 50, 35))
    """

    image: ImageLike
    prompt: str
    name: str = ""
    mask: MaskLike | None = None
    box: Box | None = None
    tokens: TokensLike | None = None
    embedding: Float32[Tensor, "d"] | None = None

    __repr__ = short_repr


@dataclass(frozen=True, eq=False, repr=False)
class LoadedProbe:
    """One image with one prompt, as a :class:`ProbeSet` holds it: read, checked, and on the CPU.

    Attributes:
        image: RGB pixels as a uint8 array, or pixels that are already preprocessed for the model as a float tensor.
        prompt: the text that the map explains.
        name: unique in its set.
        mask: where the object is; ``None`` if that is unknown.
        tokens: token ids, or all that a tokenizer returns, embedded instead of ``prompt``; ``None`` if the tokenizer
            makes them.
        embedding: compared with the image instead of an embedding of ``prompt``; ``None`` if there is none.

    Example:
        >>> import numpy as np
        >>> from clipcam_lightning import ProbeSet
        >>> ProbeSet([(np.zeros((64, 64, 3), dtype=np.uint8), "a black cat")])[0].name
        'a-black-cat'
    """

    image: UInt8[np.ndarray, "y x 3"] | Float32[Tensor, "3 y x"]
    prompt: str
    name: str
    mask: Bool[np.ndarray, "y x"] | None = None
    tokens: TokensLike | None = None
    embedding: Float32[Tensor, "d"] | None = None

    __repr__ = short_repr

    @cached_property
    def digest(self) -> str:
        """SHA-256 of pixels, mask, tokens, embedding and prompt, as 64 hex digits; the name does not count."""
        pixels = self.image.numpy() if isinstance(self.image, Tensor) else self.image
        others = [] if self.embedding is None else [self.embedding]
        tokens = [*name_tokens(self.tokens).values(), *others]
        sha = hashlib.sha256()
        arrays: list[np.ndarray | None] = [pixels, self.mask, *(each.numpy() for each in tokens)]
        for array in arrays if tokens else [*arrays, None]:
            sha.update(b"none" if array is None else f"{array.dtype}{array.shape}".encode() + array.tobytes())
        sha.update(self.prompt.encode("utf-8", "surrogatepass") + b"\0")
        return sha.hexdigest()


def name_tokens(tokens: TokensLike | None) -> dict[str, Int[Tensor, "l"]]:
    """Get the tensors of the tokens of a probe by the names that transformers tokenizers give them."""
    if tokens is None:
        return {}
    if not isinstance(tokens, Mapping):
        return {"input_ids": tokens}
    return {"input_ids": tokens["input_ids"], **{name: tokens[name] for name in sorted(tokens) if name != "input_ids"}}
