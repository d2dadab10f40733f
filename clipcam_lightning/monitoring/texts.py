"""Embed the prompts of probes, anew only if a weight of the text tower changed."""

from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from clipcam_lightning.cam.encoders import EncoderPair
from clipcam_lightning.cam.model import ClipModel
from clipcam_lightning.cam.model_state import evaluation_mode, list_modules
from clipcam_lightning.probes.prepared import PreparedProbes

SCALES = ("logit_scale", "logit_bias")  # trained, but no part of an embedding

CYCLE = 4093  # weights of a checksum: a prime, so that equal columns of a matrix get different ones
BLOCK = 64 * CYCLE  # words that are multiplied at once, few enough for the cache of a processor
SHIFT = 29  # bits, other than the 32 between the signs of two floats in a word
MIXERS = (-7046029254386353131, -4658895280553007687)  # of splitmix64, as signed numbers

Checksums: TypeAlias = tuple[int, ...]


class KeptTexts:
    """Embeds the prompts of one probe set, and keeps the embeddings while the text tower stays as it is."""

    def __init__(self) -> None:
        self._kept: tuple[ClipModel, Checksums, Tensor] | None = None

    def __call__(self, clip: ClipModel, prepared: PreparedProbes) -> Float[Tensor, "n 1 d"]:
        """Embed the prompts, or return the embeddings of the call before.

        They are kept if no parameter of the text tower is trained, all its weights have the checksums of the call
        before, and no hook or adapter of the model can change what it computes.

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
    """Compute a checksum of each weight outside the image tower.

    Args:
        clip: the model.

    Returns:
        One checksum per weight; ``None`` if one of them is trained, or it is not known which weights a text passes.
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
        weights = position_weights(tensors[0].device)
        return tuple(torch.stack([checksum(value, weights) for value in tensors]).tolist())


def _may_change_by_itself(module: nn.Module) -> bool:
    """Whether what a module computes may change without its weights: by a hook, or an adapter that is switched."""
    hooks = module._forward_hooks or module._forward_pre_hooks
    return bool(hooks) or hasattr(module, "peft_config") or hasattr(module, "base_layer")  # of PEFT


def _is_plain(value: Tensor) -> bool:
    """Whether a tensor holds its own values: not a shard, nor the packed values of a library."""
    is_dense = type(value) in (Tensor, nn.Parameter) and value.layout == torch.strided
    return is_dense and not value.is_meta and not value.is_quantized


def position_weights(device: torch.device) -> Int[Tensor, "c"]:
    """Make the odd 64-bit numbers by which :func:`checksum` multiplies words.

    They look random: with weights that grow evenly, zeros and ones in another order may have the same sum.

    Args:
        device: of the tensors to sum.
    """
    numbers = torch.arange(1, CYCLE + 1, device=device)
    for factor in MIXERS:
        numbers = numbers * factor
        numbers = numbers ^ (numbers >> 32)
    return numbers | 1  # the product of an odd number and a word differs for every word


def checksum(value: Tensor, weights: Int[Tensor, "c"]) -> Int[Tensor, ""]:
    """Add up the bits of a tensor in 64-bit words, each multiplied by a number that depends on its position.

    It detects any change of a single word. Other changes, such as another order of rows, are only missed by
    coincidence, or if words move by a multiple of ``CYCLE`` within a block.

    Args:
        value: of any type whose bits can be viewed.
        weights: of :func:`position_weights`, on the device of ``value``.
    """
    flat = value.detach().contiguous().flatten()
    # A parameter may be a part of a larger buffer, and begin anywhere in it.
    fits = all(count * flat.element_size() % 8 == 0 for count in (flat.numel(), flat.storage_offset()))
    total = torch.zeros((), dtype=torch.int64, device=flat.device)
    for block in flat.view(torch.int64 if fits else torch.uint8).split(BLOCK):
        words = block.long()
        # Else a sign, the highest bit, only counts in the highest bit of the sum. Zeros are shifted in, since with the
        # sign a word and its complement would become one.
        words = words ^ (words >> SHIFT & (1 << 64 - SHIFT) - 1)
        whole = len(words) // CYCLE * CYCLE
        columns, rest = words[:whole].view(-1, CYCLE).sum(0), words[whole:]  # a column has one weight
        columns[: len(rest)] += rest
        total = total * MIXERS[0] + (columns * weights).sum()
    return total
