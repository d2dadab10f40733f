"""Explain images: a model, images and prompts in, an :class:`Explanation` out."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import product

import numpy as np
import torch
from torch import Tensor, nn

from clipcam_lightning.cam.capture import AttentionCapture
from clipcam_lightning.cam.compact_images import CompactImages
from clipcam_lightning.cam.decoding import Images, list_images
from clipcam_lightning.cam.encoders import EncodeImage, EncodeText
from clipcam_lightning.cam.explained_images import ExplainedImages
from clipcam_lightning.cam.explanation import Explanation, concatenate_parts
from clipcam_lightning.cam.finding import ModelSpec
from clipcam_lightning.cam.fuse import Fusion, fuse_maps
from clipcam_lightning.cam.images import compute_scaled_sizes, group_by_size, resize_images
from clipcam_lightning.cam.methods import Layers, Method, MethodLike
from clipcam_lightning.cam.model import ClipModel, Tokenizer
from clipcam_lightning.cam.model_state import checkpointed, evaluation_mode
from clipcam_lightning.cam.passes import Pass, Result, UnreadLayers, compute_maps, warn_of_unread_layers
from clipcam_lightning.cam.precision import Precision, PromotedTypes
from clipcam_lightning.cam.settings import MapSettings
from clipcam_lightning.cam.targets import TargetLike, target_of
from clipcam_lightning.cam.texts import Prompts, embed_prompts, list_prompts
from clipcam_lightning.cam.towers.tower import Tower
from clipcam_lightning.cam.transfer import copy_to_device
from clipcam_lightning.cam.views import half_a_cell, shift_images, unshift_maps
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
    score_scale: float | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    shift: bool = False,
    fuse: Fusion | None = None,
    batch_size: int | None = None,
    precision: Precision = "float32",
    checkpointing: bool = False,
    clip: str | None = None,
    tokenizer: Tokenizer | None = None,
    towers: Sequence[type[Tower]] = (),
    encode_image: EncodeImage | None = None,
    encode_text: EncodeText | None = None,
) -> Explanation:
    """Map which regions of each image raise its similarity to each prompt.

    The model comes back as it was: modes, hooks, ``.grad``, buffers and random state, also after an exception.
    Frozen, compiled, checkpointed and quantized models are supported, models in half precision or with parts of
    different float types, and ``no_grad``, inference mode and autocast around the call; autocast is switched off
    inside, so that maps do not depend on it.

    Args:
        model: any module that holds a CLIP (a LightningModule, an open_clip model, a compiled, DDP or PEFT wrapper),
            or a :class:`ClipModel`.
        images: one image or several: files or their URLs, PIL images or uint8 RGB arrays ``[y, x, 3]``, which go
            through the model's own preprocessing; or model input, a float tensor ``[3, y, x]``, a list of them in any
            sizes, a batch ``[n, 3, y, x]``, or the output of a transformers image processor. Most towers take model
            input of any size and aspect in whole cells of the grid: positions are interpolated for the pass.
        prompts: one string, ``p`` strings for every image, one list of ``p`` strings per image, or embeddings
            ``[p, d]`` or ``[n, p, d]``.
        method, layers, target, score_scale, scales, flip, shift, fuse, batch_size, precision: how maps are made, as in
            :class:`MapSettings`.
        checkpointing: recompute the blocks after the layer instead of keeping their activations, for deep layers
            of a method that reads the true gradient of a layer.
        clip, tokenizer, towers, encode_image, encode_text: where the CLIP is and how it is read, as in
            :class:`ModelSpec`.

    Returns:
        An :class:`Explanation` of ``n`` images and ``p`` prompts, which shows itself in Jupyter.

    Raises:
        ModelError: no CLIP or several in ``model``, its weights have no values, or strings but no tokenizer.
        TowerError: the CLIP's tower is unknown, or the layer's output is no grid of patches.
        ConfigError: an argument cannot be used; the message lists what can.

    Example:
        >>> import torch
        >>> from clipcam_lightning import explain
        >>> from clipcam_lightning.shapes_world import WordTokenizer, trained_clip
        >>> images = torch.rand(2, 3, 64, 64)
        >>> explanation = explain(trained_clip("vit"), images, ["a red circle"], tokenizer=WordTokenizer())
        >>> explanation.maps.shape
        torch.Size([2, 1, 8, 8])

        A photograph goes through the model's own preprocessing:

        >>> from PIL import Image
        >>> photograph = Image.new("RGB", (120, 90), "red")
        >>> explain(trained_clip("vit"), photograph, "a red circle", tokenizer=WordTokenizer()).maps.shape
        torch.Size([1, 1, 8, 8])
    """
    settings = MapSettings(
        method=method,
        layers=layers,
        target=target,
        score_scale=score_scale,
        scales=scales,
        flip=flip,
        shift=shift,
        fuse=fuse,
        batch_size=batch_size,
        precision=precision,
    )
    found = ModelSpec(
        clip=clip, tokenizer=tokenizer, towers=towers, encode_image=encode_image, encode_text=encode_text
    ).find(model)
    if isinstance(images, Mapping):
        images = found.tower.unpack(images)
    elif not isinstance(images, Tensor | np.ndarray):
        images = list_images(images)  # of an iterator, which is used up by one pass
    explanation = explain_clip(found, images, prompts, settings, checkpointing=checkpointing)
    return replace(
        explanation,
        prompts=list_prompts(prompts, len(explanation.maps)),
        images=ExplainedImages(images, found.preprocessing),
    )


def explain_clip(
    clip: ClipModel,
    images: Images | CompactImages,
    prompts: Prompts,
    settings: MapSettings,
    *,
    checkpointing: bool = False,
) -> Explanation:
    """Explain images with a CLIP that was found and settings that were checked.

    Args:
        clip: the model.
        images, prompts, checkpointing: as in :func:`explain`.
        settings: how maps are made.

    Raises:
        ModelError: strings but no tokenizer.
        TowerError: the layer's output is no grid of patches.
        ConfigError: settings, images or prompts do not fit the model.
    """
    method, layers, fuse = settings.resolve(clip.tower)
    scale = settings.resolve_score_scale(method)
    target = target_of(settings.target)
    _check_settings(method, fuse, checkpointing)
    groups = group_by_size(clip, images)
    sizes = [compute_scaled_sizes(clip.tower, same, settings.scales) for _, same in groups]
    limit = settings.batch_size or BATCH_SIZE

    with evaluation_mode(clip.module), clip.tower.native(), ExitStack() as stack:
        if settings.precision != "float32":
            stack.enter_context(PromotedTypes())  # what a method runs again of the tower meets tensors of two types
        texts, count = embed_prompts(clip, prompts, target, sum(len(indices) for indices, _ in groups))
        if checkpointing:
            stack.enter_context(checkpointed(clip.tower.blocks))
        parts = []
        unread: UnreadLayers = {}
        for (indices, same), views in zip(groups, sizes, strict=True):
            rows = torch.tensor(indices, device="cpu").to(texts.device)
            # Nothing in this loop may wait for the device, which falls idle between batches if the host does.
            for start in range(0, len(indices), limit):
                chunk = slice(start, start + limit)
                batch, own = copy_to_device(same[chunk], clip.device), texts.index_select(0, rows[chunk])
                results = []
                for size, mirrored in product(views, (False, True) if settings.flip else (False,)):
                    view = resize_images(batch.flip(-1) if mirrored else batch, size)
                    one = Pass(
                        clip=clip,
                        images=view,
                        texts=own,
                        prompts=count,
                        target=method.target or target,
                        layers=layers,
                        fuse=fuse,
                        batch_size=limit,
                        score_scale=scale,
                        precision=settings.precision,
                        unread=unread,
                    )
                    for raw, embedded in _compute_shifted(method, one, settings.shift):
                        results.append((raw.flip(-1) if mirrored else raw, embedded))
                maps = fuse_maps([raw for raw, _ in results], "mean")
                embeddings = torch.stack([embedded for _, embedded in results]).mean(dim=0)
                similarity = torch.einsum("be,bqe->bq", embeddings, own)[:, :count]
                parts.append((indices[chunk], maps, similarity, embeddings))
        warn_of_unread_layers(unread, clip.tower)
    maps, similarity, embeddings, grids = concatenate_parts(parts)
    return Explanation(
        maps=maps,
        similarity=similarity,
        layers=layers,
        method=method.name,
        target=target.name if method.target is None else f"{method.target.name} of {target.name}",
        scales=tuple(settings.scales),
        flip=settings.flip,
        shift=settings.shift,
        fuse=fuse,
        score_scale=scale,
        grids=grids,
        precision=settings.precision,
        embeddings=embeddings,
    )


def _compute_shifted(method: Method, inputs: Pass, shift: bool) -> Iterator[Result]:
    """Compute the maps of a view, then with ``shift`` those of the view shifted by half a cell, put back in place."""
    maps, embeddings = compute_maps(method, inputs)
    yield maps, embeddings
    if shift:
        half = half_a_cell(inputs.size, (maps.shape[-2], maps.shape[-1]))
        maps, embeddings = compute_maps(method, replace(inputs, images=shift_images(inputs.images, half)))
        yield unshift_maps(maps, half, inputs.size), embeddings


def _check_settings(method: Method, fuse: Fusion, checkpointing: bool) -> None:
    """Refuse settings that a method would ignore, or break on.

    Raises:
        ConfigError: with what the setting is for.
    """
    if checkpointing and method.rules:
        raise ConfigError(
            f"{method.name} changes the backward pass, which checkpointing would compute without the change; "
            "leave checkpointing out, or name another method, such as 'gradcam'."
        )
    if not issubclass(method.reads, AttentionCapture):
        return
    if fuse != "mean":
        raise ConfigError(f"{method.name} makes one map of all its layers; fuse={fuse!r} is for methods of one layer.")
    if checkpointing:
        raise ConfigError(f"{method.name} keeps no graph before its blocks; checkpointing is for methods of one layer.")
