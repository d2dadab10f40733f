"""What explains the images of an evaluation, in batches that fit into memory."""

from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from clipcam_lightning.cam.explain import BATCH_SIZE, explain_clip
from clipcam_lightning.cam.explanation import Explanation
from clipcam_lightning.cam.model import ClipModel
from clipcam_lightning.cam.settings import MapSettings
from clipcam_lightning.cam.texts import Prompts
from clipcam_lightning.errors import ClipCamError

# torch's CPU allocator raises a plain RuntimeError; these words in its message mark it as out of memory.
OUT_OF_MEMORY = ("out of memory", "DefaultCPUAllocator")


@runtime_checkable
class Explainer(Protocol):
    """Explains images with one model and one set of settings: in this process, or with the help of all ranks.

    Attributes:
        clip: the model.
        settings: how maps are made.
    """

    @property
    def clip(self) -> ClipModel: ...  # noqa: D102

    @property
    def settings(self) -> MapSettings: ...  # noqa: D102

    def __call__(self, images: Float[Tensor, "n 3 y x"], prompts: Prompts) -> Explanation:
        """Explain preprocessed images, each with its own prompts."""
        ...


@dataclass(frozen=True, eq=False)
class LocalExplainer:
    """Explains in this process.

    Attributes:
        clip: the model.
        settings: how maps are made.
    """

    clip: ClipModel
    settings: MapSettings = field(default_factory=MapSettings)

    def __call__(self, images: Float[Tensor, "n 3 y x"], prompts: Prompts) -> Explanation:
        """Explain the images in batches that fit into memory."""
        return explain_within_memory(self.clip, images, prompts, self.settings)


def explain_within_memory(
    clip: ClipModel, images: Float[Tensor, "n 3 y x"], prompts: Prompts, settings: MapSettings
) -> Explanation:
    """Explain in batches that fit into memory: each time memory runs out, try again with half as many images per pass.

    Args:
        clip: the model.
        images: preprocessed.
        prompts: as in :func:`~clipcam_lightning.explain`.
        settings: how maps are made; ``batch_size`` is the number of images per pass to begin with.

    Returns:
        The explanation; the batch size changes no map.

    Raises:
        ClipCamError: there is not enough memory for a single image.
    """
    limit = min(settings.batch_size or BATCH_SIZE, len(images))
    while True:
        try:
            return explain_clip(clip, images, prompts, replace(settings, batch_size=limit))
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
            message = str(error)
        # Not in the except block: while the error lives, its traceback keeps every tensor of the failed attempt.
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        if limit <= 1:
            raise ClipCamError(
                f"there is not enough memory to explain even one image at a time ({message}). "
                "Free some, or choose a method that needs less, such as 'gradcam'."
            )
        limit //= 2


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(words in str(error) for words in OUT_OF_MEMORY)
