"""Explain images with the help of all ranks, each with a share of them."""

from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from clipcam_lightning.cam.explanation import Explanation, concatenate_parts
from clipcam_lightning.cam.model import ClipModel
from clipcam_lightning.cam.settings import MapSettings
from clipcam_lightning.cam.texts import Prompts
from clipcam_lightning.errors import ClipCamError, describe_error
from clipcam_lightning.monitoring.explainer import explain_within_memory
from clipcam_lightning.training.ranks import Ranks


@dataclass(frozen=True)
class _Request:
    """What all ranks explain next; shape None: reuse the images of the previous request."""

    prompts: Any
    shape: tuple[int, ...] | None = None
    dtype: torch.dtype = torch.float32


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
        self._images: Tensor | None = None  # of the previous request: all of them on rank 0, elsewhere the own share

    def __call__(self, images: Float[Tensor, "n 3 y x"], prompts: Prompts) -> Explanation:
        """Explain images; to be called on rank 0 while the other ranks assist."""
        sent = prompts.cpu() if isinstance(prompts, Tensor) else prompts
        is_known = images is self._images
        self._ranks.broadcast(_Request(sent) if is_known else _Request(sent, tuple(images.shape), images.dtype))
        if not is_known:
            self._ranks.scatter_images(self.clip.device, tuple(images.shape), images.dtype, images)
            self._images = images
        share = self._ranks.shares(len(images))[0]
        return self._explain_together(images[share], prompts[share])

    def assist(self, request: _Request) -> None:
        """Explain this rank's share of a request."""
        share = self._ranks.shares(len(request.prompts))[self._ranks.index]
        if request.shape is not None:
            self._images = self._ranks.scatter_images(self.clip.device, request.shape, request.dtype)
        assert self._images is not None
        with suppress(Exception):  # rank 0 receives the message and decides
            self._explain_together(self._images, request.prompts[share])

    def _explain_together(self, images: Tensor, prompts: Any) -> Explanation:
        """Explain this rank's share and concatenate the shares of all ranks.

        Raises:
            BaseException: of this rank.
            ClipCamError: with the messages of other ranks that failed.
        """
        failure: BaseException | None = None
        part: Explanation | str = ""
        if len(images):
            try:
                part = explain_within_memory(self.clip, images, prompts, self.settings)
                part = replace(part, maps=part.maps.cpu(), similarity=part.similarity.cpu())
            except BaseException as error:  # of any kind: the other ranks must not wait
                failure, part = error, describe_error(error)
        try:
            parts = self._ranks.exchange(part)
        except ClipCamError:
            if failure is not None:
                raise failure from None
            raise
        bounds = pairwise(accumulate((len(part.maps) for part in parts), initial=0))
        rows = [(list(range(*bound)), part.maps, part.similarity) for bound, part in zip(bounds, parts, strict=True)]
        maps, similarity, grids = concatenate_parts(rows)
        return replace(parts[0], maps=maps, similarity=similarity, grids=grids)
