"""Prompts as the core is given them, turned into unit embeddings per image."""

from collections.abc import Sequence
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from clipcam_lightning.cam.model import ClipModel
from clipcam_lightning.cam.targets import Target
from clipcam_lightning.errors import ConfigError

Prompts: TypeAlias = Sequence[str] | Sequence[Sequence[str]] | Tensor


def embedded_prompts(
    clip: ClipModel, prompts: Prompts, target: Target, images: int
) -> tuple[Float[Tensor, "n q d"], int]:
    """Unit embeddings per image, first of the prompts, then of the target's negatives; and how many are prompts.

    Prompts that all images share are embedded once and not copied.

    Raises:
        ConfigError: prompts and images do not pair, a prompt is empty, or an embedding says nothing.
    """
    with torch.no_grad():
        own = _embedded(clip, prompts, images)
        count = own.shape[1]
        if len(target.negatives):
            negatives = target.negatives
            others = _unit(clip, negatives) if isinstance(negatives, Tensor) else clip.embed_texts(negatives)
            if own.shape[-1] != others.shape[-1]:
                raise ConfigError(
                    "prompts and negatives must be embedded alike "
                    f"(got {own.shape[-1]} and {others.shape[-1]} numbers)."
                )
            own = torch.cat([own, others.expand(len(own), -1, -1)], dim=1)
        return own.expand(images, -1, -1), count


def _embedded(clip: ClipModel, prompts: Prompts, images: int) -> Float[Tensor, "_n p d"]:
    """Of each image, or of one for all."""
    if isinstance(prompts, Tensor):
        if (
            prompts.ndim not in (2, 3)
            or (prompts.ndim == 3 and len(prompts) != images)
            or not prompts.is_floating_point()
        ):
            raise ConfigError(
                f"prompt embeddings must be floats [p, d] or [{images}, p, d] (got {prompts.dtype} "
                f"{tuple(prompts.shape)}); token ids are embedded with ClipModel.embed_tokens."
            )
        return _unit(clip, prompts if prompts.ndim == 3 else prompts[None])
    if isinstance(prompts, str) or not len(prompts):
        raise ConfigError(f"prompts must be a list of strings, one list per image, or embeddings (got {prompts!r}).")
    shared = all(isinstance(prompt, str) for prompt in prompts)
    rows = [[str(prompt) for prompt in prompts]] if shared else [list(row) for row in prompts]
    if (not shared and len(rows) != images) or len({len(row) for row in rows}) != 1 or not rows[0]:
        raise ConfigError(
            f"prompts must be strings for every image, or one list per image, all of one length "
            f"(got {len(rows)} lists of lengths {[len(row) for row in rows]} for {images} images)."
        )
    flat = [prompt for row in rows for prompt in row]
    if not all(isinstance(prompt, str) and prompt.strip() for prompt in flat):
        raise ConfigError("a prompt must be a string with something in it.")
    return clip.embed_texts(flat).reshape(len(rows), len(rows[0]), -1)


def _unit(clip: ClipModel, embeddings: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
    embeddings = embeddings.clone().to(clip.device).float()
    # What is not finite may come from the model's own weights; the maps then say so.
    if not embeddings.numel() or not embeddings.any(dim=-1).all():
        raise ConfigError(f"embeddings must be at least one, none of them all zero (got {tuple(embeddings.shape)}).")
    return F.normalize(embeddings, dim=-1)
