"""Embed the prompts that ``explain`` is called with."""

import reprlib
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from clipcam_lightning.cam.model import ClipModel
from clipcam_lightning.cam.targets import Target
from clipcam_lightning.errors import ConfigError

Prompts: TypeAlias = str | Sequence[str] | Sequence[Sequence[str]] | Tensor
"""One or several prompts for every image, one list per image, or embeddings ``[p, d]`` or ``[n, p, d]``."""


def embed_prompts(clip: ClipModel, prompts: Prompts, target: Target, images: int) -> tuple[Float[Tensor, "n q d"], int]:
    """Embed the prompts and the target's negatives.

    Prompts that all images share are embedded once, and their embeddings are not copied.

    Args:
        clip: the model.
        prompts: strings or embeddings of any length.
        target: the target whose negatives are appended.
        images: number of images, ``n``.

    Returns:
        Unit embeddings per image, first of the prompts, then of the negatives; and the number of prompts.

    Raises:
        ConfigError: prompts and images do not match, a prompt is empty, or an embedding is all zero.
    """
    with torch.no_grad():
        texts = _embed(clip, prompts, images)
        count = texts.shape[1]
        if len(target.negatives):
            negatives = target.negatives
            others = _scale_to_unit(clip, negatives) if isinstance(negatives, Tensor) else clip.embed_texts(negatives)
            if texts.shape[-1] != others.shape[-1]:
                raise ConfigError(
                    "prompts and negatives must have embeddings of one length "
                    f"(got {texts.shape[-1]} and {others.shape[-1]})."
                )
            texts = torch.cat([texts, others.expand(len(texts), -1, -1)], dim=1)
        return texts.expand(images, -1, -1), count


def list_prompts(prompts: Prompts, images: int) -> tuple[tuple[str, ...], ...]:
    """List the prompts of each image as texts; of embeddings, which have none, their numbers.

    Args:
        prompts: that :func:`embed_prompts` accepts.
        images: number of images, ``n``.
    """
    if isinstance(prompts, Tensor):
        return (tuple(f"embedding {i}" for i in range(1, prompts.shape[-2] + 1)),) * images
    if isinstance(prompts, str):
        return ((prompts,),) * images
    if isinstance(prompts[0], str):
        return (tuple(map(str, prompts)),) * images
    return tuple(tuple(map(str, row)) for row in prompts)


def _embed(clip: ClipModel, prompts: Prompts, images: int) -> Float[Tensor, "_n p d"]:
    """Return unit embeddings per image, or of length 1 if all images share the prompts."""
    if isinstance(prompts, Tensor):
        if (
            prompts.ndim not in (2, 3)
            or (prompts.ndim == 3 and len(prompts) != images)
            or not prompts.is_floating_point()
        ):
            raise ConfigError(
                f"prompt embeddings must be floats [p, d] or [{images}, p, d] (got {prompts.dtype} "
                f"{tuple(prompts.shape)}); embed token ids with ClipModel.embed_tokens."
            )
        return _scale_to_unit(clip, prompts if prompts.ndim == 3 else prompts[None])
    if isinstance(prompts, str):
        prompts = [prompts]
    shared = _is_list(prompts) and all(isinstance(prompt, str) for prompt in prompts)
    if not (shared or (_is_list(prompts) and all(map(_is_list, prompts)))) or not len(prompts):
        raise ConfigError(
            "prompts must be a string, a list of strings, one list of strings per image, or a float tensor of "
            f"embeddings (got {reprlib.repr(prompts)})."
        )
    rows = [[str(prompt) for prompt in prompts]] if shared else [list(row) for row in prompts]
    if (not shared and len(rows) != images) or len({len(row) for row in rows}) != 1 or not rows[0]:
        raise ConfigError(
            f"prompts must be strings for every image, or one list per image, all of one length "
            f"(got {len(rows)} lists of lengths {[len(row) for row in rows]} for {images} images)."
        )
    flat = [prompt for row in rows for prompt in row]
    for prompt in flat:
        if not isinstance(prompt, str) or not prompt.strip():
            raise ConfigError(f"prompts must be non-empty strings (got {prompt!r}).")
    return clip.embed_texts(flat).reshape(len(rows), len(rows[0]), -1)


def _is_list(prompts: object) -> bool:
    """Check whether something holds prompts in an order: a set and a string do not."""
    return isinstance(prompts, Sequence | np.ndarray) and not isinstance(prompts, str)


def _scale_to_unit(clip: ClipModel, embeddings: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
    embeddings = embeddings.clone().to(clip.device).float()
    # NaN and infinity pass: they may come from the model's own weights, and show in the maps.
    if not embeddings.numel() or not embeddings.any(dim=-1).all():
        raise ConfigError(f"embeddings must be at least one, none of them all zero (got {tuple(embeddings.shape)}).")
    return F.normalize(embeddings, dim=-1)
