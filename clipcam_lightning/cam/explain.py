"""The one entrance: a model, images and prompts in; an :class:`Explanation` out."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import product

import torch
from torch import nn

from clipcam_lightning.cam.arguments import require_choice, require_positive
from clipcam_lightning.cam.capture import AttentionCapture
from clipcam_lightning.cam.explanation import Explanation, concatenate_parts
from clipcam_lightning.cam.fuse import FUSIONS, fuse_maps
from clipcam_lightning.cam.images import Images, compute_scaled_sizes, group_by_size, resize_images
from clipcam_lightning.cam.methods import Layers, Method, MethodLike, layers_of, method_of
from clipcam_lightning.cam.model import ClipModel, Tokenizer, find_clip
from clipcam_lightning.cam.model_state import checkpointed, evaluation_mode
from clipcam_lightning.cam.passes import Pass, compute_maps
from clipcam_lightning.cam.targets import TargetLike, target_of
from clipcam_lightning.cam.texts import Prompts, embed_prompts
from clipcam_lightning.errors import ConfigError

BATCH_SIZE = 32


def explain(
    model: nn.Module | ClipModel,
    images: Images,
    prompts: Prompts,
    *,
    method: MethodLike = "auto",
    layers: Layers = None,
    target: TargetLike = "similarity",
    tokenizer: Tokenizer | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    fuse: str = "mean",
    batch_size: int | None = None,
    checkpointing: bool = False,
) -> Explanation:
    """Map which regions of each image raise its similarity to each prompt.

    The model comes back as it was: modes, hooks, ``.grad``, buffers and random state, also after an exception.
    It works under ``no_grad``, inference mode and autocast, on frozen, compiled and checkpointed models; inside,
    autocast is off, so that maps do not depend on it.

    Args:
        model: any module that holds one CLIP (a LightningModule, an open_clip model, a compiled, DDP or PEFT
            wrapper), or a :class:`ClipModel`.
        images: preprocessed as the model expects, ``[n, 3, y, x]``. For SigLIP 2, which takes any size, also a list of
            ``[3, y, x]`` or what its processor gives.
        prompts: ``p`` strings for every image, one list of ``p`` strings per image, or embeddings ``[p, d]`` or
            ``[n, p, d]``.
        method: a name in ``METHODS``; a function from :class:`Capture` to maps; or ``"auto"``, what was
            measured best: the decomposition on a class-token ViT that is a sum over its blocks, HiResCAM of the last
            two blocks on others, Grad-CAM of the last two stages on a ResNet; and Grad-CAM on what was not measured.
        layers: names or indices of one or several layers; by default the tower's last one with a gradient, or those
            of ``"auto"``. For a method that reads attention, the blocks whose attention it reads.
        target: what is mapped: ``"similarity"``, ``"contrast"``, ``"logsoftmax"``, or one of them with arguments.
        tokenizer: strings to token ids; by default the model's own.
        scales: enlargements of the image whose maps are averaged; positions are interpolated for the pass.
        flip: average with the map of the mirrored image, mirrored back.
        fuse: how the maps of several layers are combined: ``"mean"``, ``"max"`` or ``"product"``. A method that reads
            attention makes one map of all its blocks by itself.
        batch_size: images per pass (default 32); it bounds memory and changes no map.
        checkpointing: recompute the blocks after the layer instead of keeping their activations, for deep layers
            of a method that reads no attention.

    Returns:
        An :class:`Explanation` of ``n`` images and ``p`` prompts.

    Raises:
        ModelError: no CLIP or several in ``model``, or strings but no tokenizer.
        TowerError: the CLIP's tower is unknown, or the layer's output is no grid of patches.
        ConfigError: an argument cannot be used; the message lists what can.
    """
    clip = model if isinstance(model, ClipModel) else find_clip(model)
    clip = replace(clip, tokenizer=tokenizer) if tokenizer else clip
    chosen, aim = method_of(method, clip.tower), target_of(target)
    names = layers_of(chosen, clip.tower, layers, auto=method == "auto")
    require_choice("fuse", fuse, tuple(FUSIONS))
    require_positive(batch_size=batch_size)
    _check_extras(chosen, fuse, checkpointing)
    groups = group_by_size(clip.tower, images)
    sizes = [compute_scaled_sizes(clip.tower, same, scales) for _, same in groups]
    limit = batch_size or BATCH_SIZE

    with evaluation_mode(clip.module), clip.tower.native(), ExitStack() as stack:
        texts, count = embed_prompts(clip, prompts, aim, sum(len(indices) for indices, _ in groups))
        if checkpointing:
            stack.enter_context(checkpointed(clip.tower.blocks))
        parts = []
        for (indices, same), views in zip(groups, sizes, strict=True):
            for start in range(0, len(indices), limit):
                chunk = indices[start : start + limit]
                # An inference tensor cannot be part of a graph; its copy, made here, can.
                batch = same[start : start + limit].to(clip.device, torch.float32, copy=True)
                results = []
                for size, mirrored in product(views, (False, True) if flip else (False,)):
                    view = resize_images(batch.flip(-1) if mirrored else batch, size)
                    one = Pass(clip, view, texts[chunk], count, chosen.target or aim, names, fuse, limit)
                    raw, cosines = compute_maps(chosen, one)
                    results.append((raw.flip(-1) if mirrored else raw, cosines))
                maps = fuse_maps([raw for raw, _ in results], "mean")
                parts.append((chunk, maps, torch.stack([cosines for _, cosines in results]).mean(dim=0)))
    maps, similarity, grids = concatenate_parts(parts)
    name = aim.name if chosen.target is None else f"{chosen.target.name} of {aim.name}"
    return Explanation(maps, similarity, names, chosen.name, name, grids=grids)


def _check_extras(method: Method, fuse: str, checkpointing: bool) -> None:
    """Refuse what would be ignored, or break, for a method that reads attention.

    Raises:
        ConfigError: with what it is for.
    """
    if not issubclass(method.reads, AttentionCapture):
        return
    if fuse != "mean":
        raise ConfigError(f"{method.name} makes one map of all its layers; fuse={fuse!r} is for methods of one layer.")
    if checkpointing:
        raise ConfigError(f"{method.name} keeps no graph before its blocks; checkpointing is for methods of one layer.")
