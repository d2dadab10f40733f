"""The one entrance: a model, images and prompts in; an :class:`Explanation` out."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from clipcam_lightning.cam.capture import Capture, checkpointed, cut_at, untouched
from clipcam_lightning.cam.fuse import FUSIONS, fused, resized
from clipcam_lightning.cam.methods import Method, method_of
from clipcam_lightning.cam.model import ClipModel, Tokenizer, find_clip
from clipcam_lightning.cam.targets import Target, TargetLike, target_of
from clipcam_lightning.checks import require_choice, require_positive
from clipcam_lightning.colors import overlaid
from clipcam_lightning.errors import ConfigError

BATCH_SIZE = 32
Prompts: TypeAlias = Sequence[str] | Sequence[Sequence[str]] | Tensor
Layers: TypeAlias = int | str | Sequence[int | str] | None


@dataclass(frozen=True)
class Explanation:
    """Where a CLIP looks, for every image and prompt.

    Attributes:
        maps: raw saliency on the layer's own grid, float32, not rescaled; on the model's device.
        similarity: cosine of image and prompt, -1 to 1; the mean over the scales.
        layers: dotted names of the layers that were mapped.
        method: name of the CAM method.
        target: name of the target.
    """

    maps: Float[Tensor, "n p h w"]
    similarity: Float[Tensor, "n p"]
    layers: tuple[str, ...]
    method: str
    target: str

    def resized(self, size: tuple[int, int]) -> Float[Tensor, "n p y x"]:
        """The raw maps, bilinearly enlarged to ``size`` (height, width) in pixels."""
        return resized(self.maps.flatten(0, 1), size).reshape(*self.maps.shape[:2], *size)

    def normalized(self) -> Float[Tensor, "n p h w"]:
        """Each map stretched to 0-1 by its own minimum and maximum, for display; a constant map becomes 0."""
        low, high = self.maps.amin((2, 3), keepdim=True), self.maps.amax((2, 3), keepdim=True)
        return (self.maps - low) / (high - low).clamp_min(torch.finfo(torch.float32).tiny)

    def overlay(self, pixels: UInt8[Tensor, "n 3 y x"]) -> UInt8[Tensor, "n p 3 y x"]:
        """Each map in colour over its picture; ``Preprocessing.pixels`` makes ``pixels`` from model input."""
        size = (pixels.shape[-2], pixels.shape[-1])
        heat = resized(self.normalized().flatten(0, 1), size).reshape(*self.maps.shape[:2], *size).cpu()
        return torch.stack([torch.stack([overlaid(p, h) for h in row]) for p, row in zip(pixels, heat, strict=True)])


def explain(
    model: nn.Module | ClipModel,
    images: Float[Tensor, "n 3 y x"],
    prompts: Prompts,
    *,
    method: str | Method = "gradcam",
    layers: Layers = None,
    target: TargetLike = "similarity",
    tokenizer: Tokenizer | None = None,
    scales: Sequence[float] = (1.0,),
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
        images: preprocessed as the model expects.
        prompts: ``p`` strings for every image, one list of ``p`` strings per image, or embeddings ``[p, d]`` or
            ``[n, p, d]``.
        method: a name in ``METHODS`` or a function from :class:`Capture` to maps.
        layers: names or indices of one or several layers; by default the tower's last one with a gradient.
        target: what is differentiated: ``"similarity"``, ``"contrast"`` or a ``Contrast(negatives=...)``.
        tokenizer: strings to token ids; by default the model's own.
        scales: enlargements of the image whose maps are averaged; positions are interpolated for the pass.
        fuse: how the maps of several layers are combined: ``"mean"``, ``"max"`` or ``"product"``.
        batch_size: images per pass (default 32); it bounds memory and changes no map.
        checkpointing: recompute the blocks after the layer instead of keeping their activations, for deep layers.

    Returns:
        An :class:`Explanation` of ``n`` images and ``p`` prompts.

    Raises:
        ModelError: no CLIP or several in ``model``, or strings but no tokenizer.
        TowerError: the CLIP's tower is unknown, or the layer's output is no grid of patches.
        ConfigError: an argument cannot be used; the message lists what can.
    """
    clip = model if isinstance(model, ClipModel) else find_clip(model)
    clip = replace(clip, tokenizer=tokenizer) if tokenizer else clip
    chosen, aim = method_of(method), target_of(target)
    names = layer_names(clip, layers)
    require_choice("fuse", fuse, tuple(FUSIONS))
    require_positive(batch_size=batch_size)
    _check_images(clip, images)
    if not scales or min(scales) <= 0:
        raise ConfigError(f"scales must be positive factors (got {tuple(scales)}).")

    with untouched(clip.module), ExitStack() as stack:
        texts, count = _embedded_prompts(clip, prompts, aim, len(images))
        stack.enter_context(clip.tower.skipping_unused(names))
        if checkpointing:
            stack.enter_context(checkpointed(clip.tower.blocks))
        maps, similarity = [], []
        for start in range(0, len(images), batch_size or BATCH_SIZE):
            chunk = slice(start, start + (batch_size or BATCH_SIZE))
            batch = images[chunk].clone()  # an inference tensor cannot be part of a graph; its clone, made here, can
            passes = [
                _one_pass(clip, _scaled(clip, batch, scale), texts[chunk], count, chosen, names, aim, fuse)
                for scale in scales
            ]
            maps.append(fused([each[0].flatten(0, 1) for each in passes], "mean").unflatten(0, (-1, count)))
            similarity.append(torch.stack([each[1] for each in passes]).mean(0))
    return Explanation(
        maps=torch.cat(maps),
        similarity=torch.cat(similarity),
        layers=names,
        method=getattr(chosen, "__name__", type(chosen).__name__),
        target=aim.name,
    )


def _one_pass(
    clip: ClipModel,
    images: Float[Tensor, "b 3 y x"],
    texts: Float[Tensor, "b q d"],
    prompts: int,
    method: Method,
    names: Sequence[str],
    target: Target,
    fuse: str,
) -> tuple[Float[Tensor, "b p h w"], Float[Tensor, "b p"]]:
    """Maps and similarities of one batch at one scale: one forward, one vector-Jacobian product a prompt."""
    size = (images.shape[-2], images.shape[-1])
    layers = [clip.module.get_submodule(name) for name in names]
    with cut_at(layers) as recorded:
        embeddings = clip.embed_images(images, clip.tower.position_embeddings(size))
        similarity = torch.einsum("bd,bqd->bq", embeddings, texts)
        scores = target(similarity, prompts)
        missed = [name for name, layer in zip(names, layers, strict=True) if layer not in recorded]
        if missed:
            raise ConfigError(f"the layer {missed[0]} does not run when images are embedded.")
        tensors = [recorded[layer] for layer in layers]
        grids = [clip.tower.to_grid(tensor.detach(), size).float() for tensor in tensors]
        maps = []
        for p in range(prompts):
            # Images do not influence each other in eval mode, so one product serves the whole batch.
            gradients = torch.autograd.grad(scores[:, p].sum(), tensors, retain_graph=p + 1 < prompts)
            captures = [
                Capture(grid, clip.tower.to_grid(gradient, size).float())
                for grid, gradient in zip(grids, gradients, strict=True)
            ]
            maps.append(fused([method(capture) for capture in captures], fuse))
    return torch.stack(maps, dim=1), similarity[:, :prompts].detach()


def layer_names(clip: ClipModel, layers: Layers) -> tuple[str, ...]:
    """Dotted names of the layers meant by ``layers``.

    Raises:
        ConfigError: the model has no such layer; the message lists those there are.
    """
    if layers is None:
        return (clip.tower.default_layer,)
    chosen = [layers] if isinstance(layers, int | str) else layers
    if not chosen:
        raise ConfigError("layers must name at least one layer, or be None for the tower's default.")
    return tuple(dict.fromkeys(clip.tower.resolve(layer) for layer in chosen))


def _check_images(clip: ClipModel, images: Tensor) -> None:
    height, width = clip.tower.input_size
    if images.ndim != 4 or not len(images) or images.shape[1:] != (3, height, width) or not images.is_floating_point():
        raise ConfigError(
            f"images must be preprocessed float pixels [n, 3, {height}, {width}], n at least 1 "
            f"(got {images.dtype} {tuple(images.shape)})."
        )


def _scaled(clip: ClipModel, images: Float[Tensor, "b 3 y x"], scale: float) -> Float[Tensor, "b 3 v u"]:
    if scale == 1:
        return images
    size = clip.tower.scaled_size(scale)
    return F.interpolate(images, size=size, mode="bicubic", antialias=True, align_corners=False)


def _embedded_prompts(
    clip: ClipModel, prompts: Prompts, target: Target, images: int
) -> tuple[Float[Tensor, "n q d"], int]:
    """Unit embeddings per image, first of the prompts, then of the target's negatives; and how many are prompts."""
    with torch.no_grad():
        own = _embedded(clip, prompts, images)
        if not target.negatives:
            return own, own.shape[1]
        negatives = clip.embed_texts(target.negatives)
        return torch.cat([own, negatives.expand(images, -1, -1)], dim=1), own.shape[1]


def _embedded(clip: ClipModel, prompts: Prompts, images: int) -> Float[Tensor, "n p d"]:
    if isinstance(prompts, Tensor):
        if prompts.ndim == 2:
            prompts = prompts.expand(images, -1, -1)
        if prompts.ndim != 3 or len(prompts) != images:
            raise ConfigError(
                f"prompt embeddings must be [p, d] or [{images}, p, d] (got {tuple(prompts.shape)}); "
                "token ids are embedded with ClipModel.embed_tokens."
            )
        return F.normalize(prompts.clone().to(clip.device).float(), dim=-1)
    if isinstance(prompts, str) or not len(prompts):
        raise ConfigError(f"prompts must be a list of strings, one list per image, or embeddings (got {prompts!r}).")
    if all(isinstance(prompt, str) for prompt in prompts):
        rows = [[str(prompt) for prompt in prompts]] * images
    else:
        rows = [list(row) for row in prompts]
    if len(rows) != images or len({len(row) for row in rows}) != 1 or not rows[0]:
        raise ConfigError(
            f"prompts must be strings for every image, or one list per image, all of one length "
            f"(got {len(rows)} lists of lengths {[len(row) for row in rows]} for {images} images)."
        )
    flat = [prompt for row in rows for prompt in row]
    if not all(isinstance(prompt, str) and prompt.strip() for prompt in flat):
        raise ConfigError("a prompt must be a string with something in it.")
    return clip.embed_texts(flat).reshape(images, len(rows[0]), -1)
