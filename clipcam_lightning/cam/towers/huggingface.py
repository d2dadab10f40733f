"""Towers of transformers: ``vision_model`` of CLIP, ChineseCLIP, AltCLIP, SigLIP, SigLIP 2 and models built like them.

transformers is not imported: a model is recognised by its parts.
"""

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from clipcam_lightning.cam.adapters import TransformersAdapter
from clipcam_lightning.cam.encoders import EncoderPair, extract_embedding
from clipcam_lightning.cam.towers.shared import round_to_cells, tokens_to_grid
from clipcam_lightning.cam.towers.tower import ADDITIVE_CLASS_TOKEN_RECIPE, POOLED_PATCHES_RECIPE, AttentionTower
from clipcam_lightning.errors import ConfigError


class HuggingFaceViT(AttentionTower):
    """A ViT over images, pooled by a class token before the patches (CLIP) or by attention (SigLIP)."""

    def __init__(self, clip: nn.Module) -> None:
        super().__init__(clip)
        path, vision = _find_vision(clip)
        self.vision: Any = vision
        self.patch_size: int = self.vision.embeddings.patch_size
        self.blocks: Sequence[Any] = list(self.vision.encoder.layers)
        self.attentions = [block.self_attn for block in self.blocks]
        self.layers: list[str] = [f"{path}.encoder.layers.{i}" for i in range(len(self.blocks))]
        self.block_inputs = [f"{path}.embeddings.patch_embedding", *self.layers[:-1]]
        if _has_class_token(self.vision):
            self.pooling, self.recipe = "cls", ADDITIVE_CLASS_TOKEN_RECIPE
            self.final_norm = self.vision.post_layernorm
            # The embedding reads only the class token of the last block's output, so every patch's gradient there is
            # exactly zero. The output of layer_norm1 is where the patches of the last block still count.
            self.layers = [f"{name}.layer_norm1" for name in self.layers]
        else:
            self.pooling, self.pool, self.prefix = "attention", self.vision.head, 0
            self.recipe = POOLED_PATCHES_RECIPE
            # The embedding reads all patches of the last block's output. But the next layer is a norm, which is
            # scale-invariant, so the gradient is orthogonal to the tokens and HiResCAM is 0. The norm's own output
            # does not have this problem.
            self.layers.append(f"{path}.post_layernorm")
        self.default_layer = self.layers[-1]

    @classmethod
    def fits(cls, clip: nn.Module) -> bool:
        """Check whether ``clip`` is a transformers model with such a ``vision_model``, or with a wrapper of one."""
        return _find_vision(clip)[1] is not None and not _takes_patches(clip)

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        embeddings = self.vision.embeddings
        side: int = getattr(embeddings, "image_size", None) or embeddings.config.image_size
        return side, side

    @property
    def input_channels(self) -> int:
        """Number of channels in the configuration."""
        channels: int = self.vision.config.num_channels
        return channels

    def grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Divide the image into whole patches."""
        return image_size[0] // self.patch_size, image_size[1] // self.patch_size

    def to_grid(self, features: Float[Tensor, "..."], image_size: tuple[int, int]) -> Float[Tensor, "b c h w"]:
        """Drop the class token, if any, and lay out the patch tokens row by row."""
        return tokens_to_grid(self, features, image_size)

    def encode(self, images: Float[Tensor, "b 3 y x"]) -> Float[Tensor, "b e"]:
        """Embed images; for another size, the model itself interpolates the positions."""
        other_size = tuple(images.shape[-2:]) != self.input_size
        positions = {"interpolate_pos_encoding": True} if other_size else {}
        if isinstance(self.clip, EncoderPair):
            return super().encode(images)
        return extract_embedding(self.clip.get_image_features(pixel_values=images, **positions))

    def scaled_size(self, size: tuple[int, int], scale: float) -> tuple[int, int]:
        """Round to whole patches.

        Raises:
            ConfigError: of a pair of encoders, which call the tower in a way of their own, for another size.
        """
        scaled = round_to_cells(size, scale, (self.patch_size, self.patch_size))
        if isinstance(self.clip, EncoderPair) and scaled != self.input_size:
            raise ConfigError(
                f"{type(self.clip.owner).__name__} encodes images of {self.input_size[0]}x{self.input_size[1]} pixels "
                "only: resize them and leave scales at (1.0,)."
            )
        return scaled

    def unpack(self, batch: Mapping[str, Tensor]) -> list[Float[Tensor, "3 _y _x"]]:
        """Extract the images from the output of the model's image processor.

        Raises:
            ConfigError: there are none, or they are not tensors.
        """
        (images,) = _require_tensors(batch, "pixel_values")
        return list(images)

    @contextmanager
    def native(self) -> Iterator[None]:
        """Compute attention with torch's ``scaled_dot_product_attention``, whatever implementation is configured."""
        configs: list[Any] = [attention.config for attention in self.attentions]  # usually one that all share
        own = [config._attn_implementation for config in configs]
        try:
            for config in configs:
                config._attn_implementation = "sdpa"
            yield
        finally:
            for config, implementation in zip(configs, own, strict=True):
                config._attn_implementation = implementation

    def embed_tokens(self, tokens: Float[Tensor, "b t d"]) -> Float[Tensor, "b t e"]:
        """Apply final norm and projection, or final norm and the attention pool over each token as its only key."""
        if self.pool is None:
            return self.head(self.vision.post_layernorm(tokens))
        pooled = self.pool_tokens(tokens.flatten(0, 1)[:, None])
        return pooled.view(*tokens.shape[:2], -1)

    def pool_tokens(self, tokens: Float[Tensor, "b t d"]) -> Float[Tensor, "b e"]:
        """Apply final norm and attention pool."""
        assert self.pool is not None  # the tower pools by attention
        pooled: Tensor = self.pool(self.vision.post_layernorm(tokens))
        # Only a VisionTextDualEncoder projects what an attention pool returns.
        projected: Tensor = getattr(self.clip, "visual_projection", nn.Identity())(pooled)
        return projected

    def project(self, block: int, heads: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        """Apply the output projection."""
        projected: Tensor = self.blocks[block].self_attn.out_proj(heads)
        return projected

    def head(self, normalized: Float[Tensor, "b t d"]) -> Float[Tensor, "b t e"]:
        """Apply the projection of the class token."""
        projected: Tensor = self.clip.visual_projection(normalized)
        return projected


class HuggingFaceNaFlexViT(HuggingFaceViT):
    """A ViT over sequences of patches from images of any size and shape, pooled by attention (SigLIP 2)."""

    @classmethod
    def fits(cls, clip: nn.Module) -> bool:
        """Check whether ``clip`` is a transformers model that takes patches and their ``spatial_shapes``."""
        return _find_vision(clip)[1] is not None and _takes_patches(clip)

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width in pixels of the square image for which the learned positions are not interpolated."""
        side = math.isqrt(self.vision.embeddings.num_patches) * self.patch_size
        return side, side

    def unpack(self, batch: Mapping[str, Tensor]) -> list[Float[Tensor, "3 _y _x"]]:
        """Extract the images from the output of SigLIP 2's image processor, each in its own size.

        Raises:
            ConfigError: there are none, they are not tensors, or their patches have another size.
        """
        patches, shapes = _require_tensors(batch, "pixel_values", "spatial_shapes")
        return unpad_images(patches, shapes, self.patch_size)

    def encode(self, images: Float[Tensor, "b 3 y x"]) -> Float[Tensor, "b e"]:
        """Embed images of any size in whole patches.

        Raises:
            ConfigError: the size is not a multiple of the patch size.
        """
        patches = cut_into_patches(images, self.patch_size)
        shape = self.grid((images.shape[-2], images.shape[-1]))
        shapes = torch.tensor([shape], device=images.device).expand(len(images), -1)
        # Images of one size need no padding, and so no mask.
        return extract_embedding(
            self.clip.get_image_features(pixel_values=patches, pixel_attention_mask=None, spatial_shapes=shapes)
        )


def cut_into_patches(images: Float[Tensor, "b 3 y x"], patch_size: int) -> Float[Tensor, "b s d"]:
    """Cut images into patches, as SigLIP 2's image processor does.

    Args:
        images: model input.
        patch_size: side of a patch in pixels.

    Returns:
        Patches row by row; in each, the pixels row by row with their three values together.

    Raises:
        ConfigError: the size of the images is not a multiple of ``patch_size``.
    """
    height, width = images.shape[-2:]
    if height % patch_size or width % patch_size or not height or not width:
        raise ConfigError(
            f"images must be whole patches of {patch_size}x{patch_size} pixels (got {height}x{width}); "
            "resize or pad the images."
        )
    cells: Tensor = images.unflatten(3, (-1, patch_size)).unflatten(2, (-1, patch_size))  # [b, c, h, p, w, p]
    return cells.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def unpad_images(
    pixel_values: Float[Tensor, "n s d"], spatial_shapes: Int[Tensor, "n 2"], patch_size: int
) -> list[Float[Tensor, "3 _y _x"]]:
    """Restore the images that SigLIP 2's image processor cut into patches and padded, exactly.

    Args:
        pixel_values: patches of each image row by row, then its padding.
        spatial_shapes: height and width of each image in patches.
        patch_size: side of a patch in pixels.

    Returns:
        The images, each in its own size.

    Raises:
        ConfigError: the patches have another size, or are fewer than ``spatial_shapes`` requires.
    """
    length, values = pixel_values.shape[1:]
    if values != 3 * patch_size**2 or spatial_shapes.prod(dim=1).max() > length:
        raise ConfigError(
            f"expected patches [n, s, 3 * {patch_size} * {patch_size}], s at least height times width of every image, "
            f"got {tuple(pixel_values.shape)} with spatial_shapes {spatial_shapes.tolist()}."
        )
    images = []
    for patches, (height, width) in zip(pixel_values, spatial_shapes.tolist(), strict=True):
        cells = patches[: height * width].view(height, width, patch_size, patch_size, 3)
        images.append(cells.permute(4, 0, 2, 1, 3).flatten(3).flatten(1, 2))
    return images


def _require_tensors(batch: Mapping[str, Tensor], *names: str) -> list[Tensor]:
    tensors = [batch[name] for name in names if name in batch and isinstance(batch[name], Tensor)]
    if len(tensors) < len(names):
        items = ", ".join(f"{name}: {type(value).__name__}" for name, value in batch.items()) or "nothing"
        raise ConfigError(
            f"expected the tensors {' and '.join(names)}, as the model's image processor returns them with "
            f"return_tensors='pt' (got {items})."
        )
    return tensors


def _find_vision(clip: nn.Module) -> tuple[str, Any]:
    """Find the ViT at or below ``vision_model``, which may be wrapped.

    Returns:
        Dotted name below ``clip`` and the module; ``""`` and ``None`` if there is none.
    """
    if isinstance(clip, EncoderPair) or TransformersAdapter.is_supported_by(clip):
        name = "visual" if isinstance(clip, EncoderPair) else TransformersAdapter.vision
        vision = getattr(clip, name, None)
        for path, part in vision.named_modules(prefix=name) if isinstance(vision, nn.Module) else ():
            if _is_vision(part):
                return path, part
    return "", None


def _is_vision(part: nn.Module) -> bool:
    children = dict(part.named_children())  # its own, not those of a module that it wraps and delegates to
    blocks = getattr(children.get("encoder"), "layers", ())
    return (
        {"embeddings", "post_layernorm"} <= children.keys()
        and len(blocks) > 0
        and all(hasattr(block, "layer_norm1") and _is_attention(getattr(block, "self_attn", None)) for block in blocks)
        and (_has_class_token(part) or hasattr(children.get("head"), "probe"))
    )


def _is_attention(part: Any) -> bool:
    return all(hasattr(part, name) for name in ("q_proj", "k_proj", "v_proj", "out_proj", "config"))


def _has_class_token(vision: Any) -> bool:
    return hasattr(vision.embeddings, "class_embedding")


def _takes_patches(clip: Any) -> bool:
    return not isinstance(clip, EncoderPair) and (
        "spatial_shapes" in inspect.signature(clip.get_image_features).parameters
    )
