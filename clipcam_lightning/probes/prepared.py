"""Turn probes into the input of one model."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from clipcam_lightning.cam.compact_images import CompactImages
from clipcam_lightning.cam.images import require_size
from clipcam_lightning.cam.model import ClipModel
from clipcam_lightning.cam.preprocessing import Preprocessing
from clipcam_lightning.cam.representation import short_repr
from clipcam_lightning.errors import ConfigError, ProbeError, abridge
from clipcam_lightning.probes.probe import LoadedProbe, TokensLike, name_tokens


@dataclass(frozen=True, eq=False, repr=False)
class PreparedProbes:
    """Probes as the input of one model.

    Attributes:
        images: model input, on the CPU.
        texts: per probe one prompt or its tokens, to be embedded, or an embedding.
        masks: at the size of ``images``; all ``False`` where a probe has no mask.
        has_mask: whether each probe has a mask.
        preprocessing: of the model.
    """

    images: CompactImages
    texts: list[str | TokensLike | Float[Tensor, "d"]]
    masks: Bool[Tensor, "n y x"]
    has_mask: Bool[Tensor, "n"]
    preprocessing: Preprocessing

    __repr__ = short_repr

    @cached_property
    def pixels(self) -> UInt8[Tensor, "n 3 y x"]:
        """What the model sees, for display: a copy, made once, since it may be large."""
        return self.images.pixels(self.preprocessing)

    def select(self, rows: Sequence[int]) -> "PreparedProbes":
        """Keep some of the probes, by their numbers."""
        chosen = list(rows)
        return PreparedProbes(
            self.images.select(chosen),
            [self.texts[i] for i in chosen],
            self.masks[chosen],
            self.has_mask[chosen],
            self.preprocessing,
        )

    def embed_texts(self, clip: ClipModel) -> Float[Tensor, "n 1 d"]:
        """Embed the prompts.

        Args:
            clip: the model that the probes were prepared for.

        Returns:
            One unit embedding per probe, on the model's device.
        """
        groups: dict[object, list[int]] = defaultdict(list)
        for i, text in enumerate(self.texts):
            groups[_find_form(text)].append(i)
        rows: dict[int, Tensor] = {}
        for form, numbers in groups.items():
            rows |= zip(numbers, _embed(clip, form, [self.texts[i] for i in numbers]), strict=True)
        return torch.stack([rows[i] for i in range(len(self.texts))])[:, None]


def prepare_probes(probes: Sequence[LoadedProbe], clip: ClipModel) -> PreparedProbes:
    """Preprocess images and masks for a model.

    Args:
        probes: at least one.
        clip: the model.

    Returns:
        The model's input, in the order of ``probes``.

    Raises:
        ProbeError: the model does not take images of a probe's size, or the probes have several sizes; token ids have
            several lengths; or a mask lies outside of what the model sees.
    """
    lengths = {probe.name: len(name_tokens(probe.tokens)["input_ids"]) for probe in probes if probe.tokens is not None}
    if len(set(lengths.values())) > 1:
        raise ProbeError(f"all token ids must have the same length (got {lengths}).")
    size = _require_one_size(probes, clip)
    preprocessing = clip.preprocessing
    images = (preprocessing.image(probe.image) for probe in probes)  # one by one: as floats they are large
    return PreparedProbes(
        images=CompactImages.of(images, len(probes), preprocessing.normalisation),
        texts=[_get_text(probe) for probe in probes],
        masks=torch.stack([_prepare_mask(probe, preprocessing, size) for probe in probes]),
        has_mask=torch.tensor([probe.mask is not None for probe in probes], device="cpu"),
        preprocessing=preprocessing,
    )


def _get_text(probe: LoadedProbe) -> str | TokensLike | Float[Tensor, "d"]:
    if probe.embedding is not None:
        return probe.embedding
    return probe.prompt if probe.tokens is None else probe.tokens


def _find_form(text: str | TokensLike | Tensor) -> object:
    """What texts must have in common to be embedded together."""
    if isinstance(text, str | Tensor):
        return "prompt" if isinstance(text, str) else "embedding" if text.is_floating_point() else "ids"
    return tuple(text)


def _embed(clip: ClipModel, form: object, texts: list[Any]) -> Float[Tensor, "n d"]:
    if form == "prompt":
        return clip.embed_texts(texts)
    if form == "ids":
        return clip.embed_tokens(torch.stack(texts))
    if form == "embedding":
        return F.normalize(torch.stack(texts).to(clip.device), dim=-1)
    return clip.embed_tokens({name: torch.stack([text[name] for text in texts]) for name in texts[0]})


def _require_one_size(probes: Sequence[LoadedProbe], clip: ClipModel) -> tuple[int, int]:
    """Return height and width that all probes have as model input.

    Raises:
        ProbeError: the model does not take them, or there are several.
    """
    sizes = {}
    for probe in probes:
        sizes[probe.name] = clip.preprocessing.size
        if isinstance(probe.image, Tensor):
            height, width = sizes[probe.name] = probe.image.shape[1], probe.image.shape[2]
            try:
                require_size(clip.tower, (height, width))
            except ConfigError as error:
                raise ProbeError(
                    f"probe {probe.name!r} holds preprocessed pixels of {height}x{width}: {error}"
                ) from error
    if len(set(sizes.values())) > 1:
        got = {name: f"{height}x{width}" for name, (height, width) in sizes.items()}
        raise ProbeError(f"all probes must have one size after preprocessing (got {abridge(str(got))}).")
    return next(iter(sizes.values()))


def _prepare_mask(probe: LoadedProbe, preprocessing: Preprocessing, size: tuple[int, int]) -> Bool[Tensor, "y x"]:
    height, width = size
    if probe.mask is None:
        return torch.zeros(height, width, dtype=torch.bool, device="cpu")
    if isinstance(probe.image, Tensor):
        return torch.from_numpy(probe.mask)
    mask = preprocessing.mask(probe.mask)
    if not mask.any():
        raise ProbeError(
            f"the mask of probe {probe.name!r} vanishes when its image is resized and cropped to {height}x{width}; "
            "give another image, or leave the mask out."
        )
    return mask
