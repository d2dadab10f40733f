"""Towers of transformers: ``vision_model`` of CLIP, ChineseCLIP, AltCLIP, SigLIP, SigLIP 2 and what is built like them.

transformers is never imported: a model is known by the parts it has.
"""

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from clipcam_lightning.cam.adapters import TransformersAdapter, embedding_in
from clipcam_lightning.cam.towers.shared import tokens_to_grid, whole_cells
from clipcam_lightning.cam.towers.tower import OF_CLASS_TOKEN_SUMS, AttentionTower
from clipcam_lightning.errors import ConfigError


class HuggingFaceViT(AttentionTower):
    """A ViT over images, pooled by a class token that comes before the patches (CLIP) or by attention (SigLIP)."""

    def __init__(self, clip: nn.Module) -> None:
        super().__init__(clip)
        path, vision = _vision(clip)
        self.vision: Any = vision
        self.patch_size: int = self.vision.embeddings.patch_size
        self.blocks: Sequence[Any] = list(self.vision.encoder.layers)
        self.attentions = [block.self_attn for block in self.blocks]
        self.layers: list[str] = [f"{path}.encoder.layers.{i}" for i in range(len(self.blocks))]
        if _has_class_token(self.vision):
            self.pooling, self.recipe = "cls", OF_CLASS_TOKEN_SUMS
            self.final_norm = self.vision.post_layernorm
            # The embedding reads only the class token of the last block's output, so every patch's gradient there is
            # exactly zero. The output of layer_norm1 is where the patches of the last block still count.
            self.layers = [f"{name}.layer_norm1" for name in self.layers]
        else:
            self.pooling, self.pool, self.prefix = "attention", self.vision.head, 0
            # All patches of the last block's output are read, but by way of a norm, to which their length is nothing:
            # a patch's gradient there is orthogonal to the patch, and HiResCAM zero. After the norm it is not.
            self.layers.append(f"{path}.post_layernorm")
        self.default_layer = self.layers[-1]

    @classmethod
    def fits(cls, clip: nn.Module) -> bool:
        """Whether ``clip`` is a transformers model with such a ``vision_model``, or a wrapper of it."""
        return _vision(clip)[1] is not None and not _takes_patches(clip)

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        side: int = self.vision.embeddings.image_size
        return side, side

    def grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Whole patches."""
        return image_size[0] // self.patch_size, image_size[1] // self.patch_size

    def to_grid(self, features: Float[Tensor, "..."], image_size: tuple[int, int]) -> Float[Tensor, "b c h w"]:
        """Drop the class token where there is one, and lay the patch tokens out row by row."""
        return tokens_to_grid(self, features, image_size)

    def encode(self, images: Float[Tensor, "b 3 y x"]) -> Float[Tensor, "b e"]:
        """Image embeddings; at another size with positions that the model interpolates itself."""
        other_size = tuple(images.shape[-2:]) != self.input_size
        positions = {"interpolate_pos_encoding": True} if other_size else {}
        return embedding_in(self.clip.get_image_features(pixel_values=images, **positions))

    def scaled_size(self, size: tuple[int, int], scale: float) -> tuple[int, int]:
        """Whole patches."""
        return whole_cells(size, scale, (self.patch_size, self.patch_size))

    def unpacked(self, batch: Mapping[str, Tensor]) -> list[Float[Tensor, "3 _y _x"]]:
        """The images in what the model's image processor gives.

        Raises:
            ConfigError: they are not in it, or not as tensors.
        """
        (images,) = _tensors(batch, "pixel_values")
        return list(images)

    @contextmanager
    def native(self) -> Iterator[None]:
        """Attention by torch's ``scaled_dot_product_attention``, whatever implementation was chosen."""
        configs: list[Any] = [attention.config for attention in self.attentions]  # mostly one that all share
        chosen = [config._attn_implementation for config in configs]
        try:
            for config in configs:
                config._attn_implementation = "sdpa"
            yield
        finally:
            for config, implementation in zip(configs, chosen, strict=True):
                config._attn_implementation = implementation

    def embed_tokens(self, tokens: Float[Tensor, "b t d"]) -> Float[Tensor, "b t e"]:
        """Final norm, then the projection, or the attention that pools and its MLP over a single key."""
        normalized: Tensor = self.vision.post_layernorm(tokens)
        if self.pool is None:
            return self.head(normalized)
        alone: Tensor = self.pool(normalized.flatten(0, 1)[:, None])
        return alone.view(*tokens.shape[:2], -1)

    def project(self, block: int, heads: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        """Output projection."""
        projected: Tensor = self.blocks[block].self_attn.out_proj(heads)
        return projected

    def head(self, normalized: Float[Tensor, "b t d"]) -> Float[Tensor, "b t e"]:
        """The projection of a class token."""
        projected: Tensor = self.clip.visual_projection(normalized)
        return projected


class HuggingFaceNaFlexViT(HuggingFaceViT):
    """A ViT over sequences of patches from images of any size and shape, pooled by attention (SigLIP 2)."""

    any_size = True

    @classmethod
    def fits(cls, clip: nn.Module) -> bool:
        """Whether ``clip`` is a transformers model that takes patches and their ``spatial_shapes``."""
        return _vision(clip)[1] is not None and _takes_patches(clip)

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width in pixels of the square whose patches have the learned positions uninterpolated."""
        side = math.isqrt(self.vision.embeddings.num_patches) * self.patch_size
        return side, side

    def unpacked(self, batch: Mapping[str, Tensor]) -> list[Float[Tensor, "3 _y _x"]]:
        """The images in what SigLIP 2's image processor gives, each in its own size.

        Raises:
            ConfigError: they are not in it, not as tensors, or cut into patches of another size.
        """
        patches, shapes = _tensors(batch, "pixel_values", "spatial_shapes")
        return unpadded(patches, shapes, self.patch_size)

    def encode(self, images: Float[Tensor, "b 3 y x"]) -> Float[Tensor, "b e"]:
        """Image embeddings of images in any size that is whole patches.

        Raises:
            ConfigError: the size is not.
        """
        patches = patched(images, self.patch_size)
        shape = self.grid((images.shape[-2], images.shape[-1]))
        shapes = torch.tensor([shape], device=images.device).expand(len(images), -1)
        # Images of one size need no padding, and so no mask.
        return embedding_in(
            self.clip.get_image_features(pixel_values=patches, pixel_attention_mask=None, spatial_shapes=shapes)
        )


def patched(images: Float[Tensor, "b 3 y x"], patch_size: int) -> Float[Tensor, "b s d"]:
    """Images cut into patches row by row; in each, the pixels row by row, and the three values of a pixel together.

    Raises:
        ConfigError: the images are not whole patches.
    """
    height, width = images.shape[-2:]
    if height % patch_size or width % patch_size or not height or not width:
        raise ConfigError(
            f"images must be whole patches of {patch_size}x{patch_size} pixels (got {height}x{width}); "
            "resize or pad them."
        )
    cells: Tensor = images.unflatten(3, (-1, patch_size)).unflatten(2, (-1, patch_size))  # [b, c, h, p, w, p]
    return cells.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def unpadded(
    pixel_values: Float[Tensor, "n s d"], spatial_shapes: Int[Tensor, "n 2"], patch_size: int
) -> list[Float[Tensor, "3 _y _x"]]:
    """The images of a batch that SigLIP 2's image processor has cut into patches and padded; the exact inverse of it.

    Args:
        pixel_values: patches of each image row by row, the padding after them.
        spatial_shapes: height and width of each image in patches.
        patch_size: side of a patch in pixels.

    Returns:
        One image for each, in its own size.

    Raises:
        ConfigError: the patches are of another size, or fewer than their shapes say.
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


def _tensors(batch: Mapping[str, Tensor], *names: str) -> list[Tensor]:
    found = [batch[name] for name in names if name in batch and isinstance(batch[name], Tensor)]
    if len(found) < len(names):
        came = ", ".join(f"{name}: {type(value).__name__}" for name, value in batch.items()) or "nothing"
        raise ConfigError(
            f"expected the tensors {' and '.join(names)}, as the model's image processor gives them with "
            f"return_tensors='pt' (got {came})."
        )
    return found


def _vision(clip: nn.Module) -> tuple[str, Any]:
    """Path and module of the ViT at or below ``vision_model``, which may be wrapped; ``None`` if it is no such ViT."""
    if TransformersAdapter.spoken_by(clip):
        for path, part in clip.named_modules():
            if f"{path}.".startswith(f"{TransformersAdapter.vision}.") and _is_vision(part):
                return path, part
    return "", None


def _is_vision(part: nn.Module) -> bool:
    children = dict(part.named_children())  # its own, and not those of a module that it wraps and speaks for
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
    return "spatial_shapes" in inspect.signature(clip.get_image_features).parameters
