"""Embed the prompts of probes, anew only if a weight of the text tower changed."""

from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn

from clipcam_lightning.cam.encoders import EncoderPair
from clipcam_lightning.cam.model import ClipModel
from clipcam_lightning.cam.model_state import evaluation_mode, list_modules
from clipcam_lightning.probes.prepared import PreparedProbes

SCALES = ("logit_scale", "logit_bias")  # trained, but no part of an embedding

Checksums: TypeAlias = tuple[int, ...]


class KeptTexts:
    """Embeds the prompts of one probe set, and keeps the embeddings while the text tower stays as it is."""

    def __init__(self) -> None:
        self._kept: tuple[ClipModel, Checksums, Tensor] | None = None

    def __call__(self, clip: ClipModel, prepared: PreparedProbes) -> Float[Tensor, "n 1 d"]:
        """Embed the prompts, or return the embeddings of the call before.

        They are kept if no parameter of the text tower is trained, the bits of all its weights are the same, and no
        hook or adapter of the model can change what it computes.

        Args:
            clip: the model as it is now.
            prepared: the same probes at each call.
        """
        checksums = checksum_text_tower(clip)
        if self._kept is not None and self._kept[0].module is clip.module and self._kept[1] == checksums:
            return self._kept[2]
        with evaluation_mode(clip.module), torch.no_grad():
            texts = prepared.embed_texts(clip)
        self._kept = None if checksums is None else (clip, checksums, texts)
        return texts


def checksum_text_tower(clip: ClipModel) -> Checksums | None:
    """Add up the bits of each weight outside the image tower, in 64-bit words.

    Args:
        clip: the model.

    Returns:
        One sum per weight; ``None`` if one of them is trained, or it is not known which weights a text passes.
    """
    modules = list_modules(clip.module)  # also those in lists, whose parameters torch does not list
    if isinstance(clip.module, EncoderPair) or any(map(_may_change_by_itself, modules)):
        return None
    if len(modules) > sum(1 for _ in clip.module.modules()):
        return None
    vision = f"{clip.adapter.vision}."
    tensors = [
        value
        for values in (clip.module.named_parameters, clip.module.named_buffers)
        for name, value in values(remove_duplicate=False)
        if not name.startswith(vision) and not name.endswith(SCALES)
    ]
    if not tensors or any(value.requires_grad or not _is_plain(value) for value in tensors):
        return None
    if len({value.device for value in tensors}) > 1:
        return None
    with torch.no_grad():
        return tuple(torch.stack([_add_up(value) for value in tensors]).tolist())


def _may_change_by_itself(module: nn.Module) -> bool:
    """Whether what a module computes may change without its weights: by a hook, or an adapter that is switched."""
    hooks = module._forward_hooks or module._forward_pre_hooks
    return bool(hooks) or hasattr(module, "peft_config") or hasattr(module, "base_layer")  # of PEFT


def _is_plain(value: Tensor) -> bool:
    """Whether a tensor holds its own values: not a shard, nor the packed values of a library."""
    is_dense = type(value) in (Tensor, nn.Parameter) and value.layout == torch.strided
    return is_dense and not value.is_meta and not value.is_quantized


def _add_up(value: Tensor) -> Tensor:
    flat = value.detach().contiguous().flatten()
    # A parameter may be a part of a larger buffer, and begin anywhere in it.
    fits = all(count * flat.element_size() % 8 == 0 for count in (flat.numel(), flat.storage_offset()))
    return flat.view(torch.int64 if fits else torch.uint8).sum(dtype=torch.int64)
