"""What explains the images of an evaluation, in batches that fit into memory."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeAlias, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from clipcam_lightning.cam.compact_images import CompactImages
from clipcam_lightning.cam.explain import BATCH_SIZE, explain_clip
from clipcam_lightning.cam.explanation import Explanation
from clipcam_lightning.cam.model import ClipModel
from clipcam_lightning.cam.model_state import evaluation_mode
from clipcam_lightning.cam.precision import autocast_to
from clipcam_lightning.cam.settings import MapSettings
from clipcam_lightning.cam.texts import Prompts
from clipcam_lightning.cam.transfer import copy_to_device
from clipcam_lightning.errors import ClipCamError

# These words in the message of a plain RuntimeError mark it as out of memory: of torch, of its CPU allocator, and of
# CUDA's libraries, such as CUBLAS_STATUS_ALLOC_FAILED.
OUT_OF_MEMORY = ("out of memory", "DefaultCPUAllocator", "ALLOC_FAILED")

ModelInput: TypeAlias = Float[Tensor, "n 3 y x"] | CompactImages

T = TypeVar("T")


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

    def __call__(self, images: ModelInput, prompts: Prompts) -> Explanation:
        """Explain preprocessed images, each with its own prompts."""
        ...

    def embed_images(self, images: ModelInput) -> Float[Tensor, "n d"]:
        """Embed preprocessed images as unit vectors in float32, on the CPU."""
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

    def __call__(self, images: ModelInput, prompts: Prompts) -> Explanation:
        """Explain the images in batches that fit into memory."""
        return explain_within_memory(self.clip, images, prompts, self.settings)

    def embed_images(self, images: ModelInput) -> Float[Tensor, "n d"]:
        """Embed the images in batches that fit into memory."""
        return embed_within_memory(self.clip, images, self.settings)


def explain_within_memory(clip: ClipModel, images: ModelInput, prompts: Prompts, settings: MapSettings) -> Explanation:
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
    return _with_less_memory(
        lambda limit: explain_clip(clip, images, prompts, replace(settings, batch_size=limit)), len(images), settings
    )


def embed_within_memory(clip: ClipModel, images: ModelInput, settings: MapSettings) -> Float[Tensor, "n d"]:
    """Embed images as unit vectors, in batches that fit into memory.

    Args:
        clip: the model.
        images: preprocessed.
        settings: ``batch_size`` is the number of images per pass to begin with, ``precision`` that of the tower.

    Raises:
        ClipCamError: there is not enough memory for a single image.
    """

    def embed(limit: int) -> Tensor:
        autocast = autocast_to(settings.precision, clip.device)
        with evaluation_mode(clip.module), clip.tower.native(), torch.no_grad(), autocast:
            # The embeddings are small, and fetched once: the device would fall idle if each batch was.
            batches = (copy_to_device(batch.contiguous(), clip.device) for batch in images.split(limit))
            return torch.cat([F.normalize(clip.features(batch), dim=-1) for batch in batches]).cpu()

    return _with_less_memory(embed, len(images), settings)


def _with_less_memory(attempt: Callable[[int], T], count: int, settings: MapSettings) -> T:
    """Call ``attempt`` with the number of images per pass, and again with half as many each time memory runs out."""
    limit = min(settings.batch_size or BATCH_SIZE, count)
    while True:
        try:
            return attempt(limit)
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
