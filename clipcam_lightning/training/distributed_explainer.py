"""Explain images with the help of all ranks, each with a share of them."""

from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from clipcam_lightning.cam.compact_images import CompactImages
from clipcam_lightning.cam.explanation import Explanation, concatenate_parts
from clipcam_lightning.cam.model import ClipModel
from clipcam_lightning.cam.preprocessing import Normalisation
from clipcam_lightning.cam.settings import MapSettings
from clipcam_lightning.cam.texts import Prompts
from clipcam_lightning.errors import ClipCamError, describe_error
from clipcam_lightning.monitoring.explainer import ModelInput, embed_within_memory, explain_within_memory
from clipcam_lightning.training.ranks import Ranks


@dataclass(frozen=True)
class _Request:
    """What all ranks explain next.

    Attributes:
        count: of the images.
        prompts: one row per image; ``None`` to embed the images instead of explaining them.
        shape: of all images; ``None`` for those that were kept.
        dtype: of their values.
        normalisation: of values that are bytes.
        keep: whether the images will be asked for again.
    """

    count: int
    prompts: Any
    shape: tuple[int, ...] | None
    dtype: torch.dtype
    normalisation: Normalisation | None
    keep: bool


class DistributedExplainer:
    """Explains on rank 0 with the help of the others, which :meth:`assist`.

    Each rank explains its share of the images with its own copy of the model. Inside a model no rank waits for
    another, so an error of one rank becomes an error of the call, on all ranks.

    Args:
        clip: this rank's copy of the model.
        settings: how maps are made, the same on all ranks.
        ranks: the ranks that explain together.
    """

    def __init__(self, clip: ClipModel, settings: MapSettings, ranks: Ranks) -> None:
        self.clip = clip
        self.settings = settings
        self._ranks = ranks
        self._kept: CompactImages | None = None  # images of the probes: all on rank 0, elsewhere the own share

    def __call__(self, images: ModelInput, prompts: Prompts) -> Explanation:
        """Explain images; to be called on rank 0 while the other ranks assist."""
        parts = self._request(images, prompts)
        bounds = pairwise(accumulate((len(part.maps) for part in parts), initial=0))
        rows = [
            (list(range(*bound)), part.maps, part.similarity, part.embeddings)
            for bound, part in zip(bounds, parts, strict=True)
        ]
        maps, similarity, embeddings, grids = concatenate_parts(rows)
        together: Explanation = replace(parts[0], maps=maps, similarity=similarity, embeddings=embeddings, grids=grids)
        return together

    def embed_images(self, images: ModelInput) -> Float[Tensor, "n d"]:
        """Embed images; to be called on rank 0 while the other ranks assist."""
        return torch.cat(self._request(images, None))

    def assist(self, request: _Request) -> None:
        """Take this rank's share of a request."""
        share = self._ranks.shares(request.count)[self._ranks.index]
        images = self._kept
        if request.shape is not None:
            values = self._ranks.scatter_images(self.clip.device, request.shape, request.dtype)
            images = CompactImages(values, request.normalisation)
        assert images is not None
        if request.keep:
            self._kept = images
        with suppress(Exception):  # rank 0 receives the message and decides
            self._exchange(images, None if request.prompts is None else request.prompts[share])

    def _request(self, images: ModelInput, prompts: Any) -> list[Any]:
        """Let every rank explain or embed its share, and collect the parts of all."""
        sent = prompts.cpu() if isinstance(prompts, Tensor) else prompts
        is_known, keep = images is self._kept, isinstance(images, CompactImages)  # others are changed for one request
        compact = images if isinstance(images, CompactImages) else CompactImages(images)
        values, shape = compact.values, None if is_known else tuple(images.shape)
        self._ranks.broadcast(_Request(len(images), sent, shape, values.dtype, compact.normalisation, keep))
        if shape is not None:
            self._ranks.scatter_images(self.clip.device, shape, values.dtype, values)
        if keep:
            self._kept = compact
        share = self._ranks.shares(len(images))[0]
        return self._exchange(compact.select(share), None if prompts is None else prompts[share])

    def _exchange(self, images: ModelInput, prompts: Any) -> list[Any]:
        """Explain or embed this rank's share, and exchange it for the shares of all ranks.

        Raises:
            BaseException: of this rank.
            ClipCamError: with the messages of other ranks that failed.
        """
        failure: BaseException | None = None
        part: Explanation | Tensor | str = ""
        if len(images):
            try:
                part = self._explain(images, prompts)
            except BaseException as error:  # of any kind: the other ranks must not wait
                failure, part = error, describe_error(error)
        try:
            return self._ranks.exchange(part)
        except ClipCamError:
            if failure is not None:
                raise failure from None
            raise

    def _explain(self, images: ModelInput, prompts: Any) -> Explanation | Tensor:
        if prompts is None:
            return embed_within_memory(self.clip, images, self.settings)
        part = explain_within_memory(self.clip, images, prompts, self.settings)
        assert part.embeddings is not None  # the images were just embedded
        return replace(part, maps=part.maps.cpu(), similarity=part.similarity.cpu(), embeddings=part.embeddings.cpu())
