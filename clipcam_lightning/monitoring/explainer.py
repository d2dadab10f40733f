"""A look that does not fit into memory is tried again with fewer images at a time."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from clipcam_lightning.cam.explain import BATCH_SIZE, explain
from clipcam_lightning.cam.explanation import Explanation
from clipcam_lightning.cam.model import ClipModel
from clipcam_lightning.cam.texts import Prompts
from clipcam_lightning.errors import ClipCamError

# What a plain RuntimeError says then; torch's CPU allocator has no error class of its own.
WORDS = ("out of memory", "DefaultCPUAllocator")


def explain_in_memory(
    clip: ClipModel,
    images: Float[Tensor, "n 3 y x"],
    prompts: Prompts,
    *,
    batch_size: int | None = None,
    **settings: Any,
) -> Explanation:
    """Explain in batches that fit: each time memory runs out, try again with half as many images a pass.

    Args:
        clip: the model.
        images: preprocessed.
        prompts: as in :func:`~clipcam_lightning.explain`.
        batch_size: images per pass to begin with (default 32).
        settings: further arguments of ``explain``.

    Returns:
        What ``explain`` returns; the batch size changes no map.

    Raises:
        ClipCamError: one image at a time is still too much.
    """
    limit = min(batch_size or BATCH_SIZE, len(images))
    while True:
        try:
            return explain(clip, images, prompts, batch_size=limit, **settings)
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
            said = str(error)
        # Not in the except block: while the error lives, its traceback keeps every tensor of the failed attempt.
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        if limit <= 1:
            raise ClipCamError(
                f"there is not enough memory to explain even one image at a time ({said}). "
                "Free some, or choose a method that needs less, such as 'gradcam'."
            )
        limit //= 2


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in str(error) for words in WORDS)
