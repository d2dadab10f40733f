"""Embed the prompts of probes, anew only if a weight of the text tower changed, and find which is closest."""

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from clipcam_lightning.cam.encoders import EncoderPair
from clipcam_lightning.cam.model import ClipModel
from clipcam_lightning.cam.model_state import evaluation_mode, list_modules
from clipcam_lightning.monitoring.background import number_equal
from clipcam_lightning.probes.prepared import PreparedProbes

SCALES = ("logit_scale", "logit_bias")  # trained, but no part of an embedding

ROWS = 256  # images that are compared with all prompts at once

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


def find_closest(
    embeddings: Float[Tensor, "n *k d"], texts: Float[Tensor, "m 1 d"], ignored: Mapping[int, Sequence[int]] = {}
) -> Int[Tensor, "n *k"]:
    """Find the prompt that each image is closest to.

    Args:
        embeddings: of the images; their lengths do not matter.
        texts: unit embeddings of the prompts.
        ignored: by image, numbers of prompts that do not count, unless they have the embedding of its own prompt.

    Returns:
        Numbers of prompts, of equal ones the first; -1 for an image without any finite cosine.
    """
    vectors = texts[:, 0].float().cpu()
    numbers, firsts = number_equal([vector.numpy().tobytes() for vector in vectors])
    different, first_of = vectors[firsts].T, torch.tensor(firsts, dtype=torch.int64, device="cpu")
    closest = []
    for start in range(0, len(embeddings), ROWS):
        cosines = embeddings[start : start + ROWS].float().cpu() @ different
        cosines = cosines.where(cosines.isfinite(), -torch.inf)
        for row in range(len(cosines)):
            if start + row in ignored:
                columns = numbers[list(ignored[start + row])]
                cosines[row][..., columns[columns != numbers[start + row]]] = -torch.inf
        largest = cosines.max(-1)
        closest.append(first_of[largest.indices].where(largest.values.isfinite(), -1))
    return torch.cat(closest)


def list_other_prompts(prompts: Sequence[str], images: Sequence[Hashable]) -> dict[int, list[int]]:
    """List for each probe those of the same image that have another prompt, which is as true of it.

    Args:
        prompts: of the probes.
        images: of the probes, or what tells them apart.
    """
    of_image: dict[Hashable, list[int]] = defaultdict(list)
    for i, image in enumerate(images):
        of_image[image].append(i)
    others = {i: [j for j in of_image[image] if prompts[j] != prompts[i]] for i, image in enumerate(images)}
    return {i: each for i, each in others.items() if each}


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
