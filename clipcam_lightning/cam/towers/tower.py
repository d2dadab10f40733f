"""The interface between the core and an image tower."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, NamedTuple

from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override

from clipcam_lightning.cam.arguments import suggest
from clipcam_lightning.cam.fuse import Fusion
from clipcam_lightning.errors import ConfigError, TowerError

# What methods need of a tower, as error messages list it.
ATTENTION = "attention"
BLOCKS = "attention between patches"
ONE_QUERY = "an embedding that one query reads"
RESIDUAL = "a class token that is a sum over the blocks"
HEAD = "a known way from its tokens to the embedding"


class Recipe(NamedTuple):
    """What ``method="auto"`` stands for on a kind of tower; measured by ``benchmarks/default_maps.py``.

    Attributes:
        method: a key of ``METHODS``.
        layers: indices of the layers, or of the inputs of the blocks; ``None`` for the method's own choice.
        fuse: how the maps of these layers are combined.
    """

    method: str
    layers: tuple[int, ...] | None = None
    fuse: Fusion = "mean"

    def layers_of(self, tower: "Tower") -> tuple[int, ...] | None:
        """Indices that a tower has; for one that is not so deep, its first or last layer."""
        depth = len(getattr(tower, "block_inputs", ()) or tower.layers)
        return self.layers and tuple(min(max(i, -depth), depth - 1) for i in self.layers)


CLASSIC_RECIPE = Recipe("gradcam")  # for towers that were not measured
ADDITIVE_CLASS_TOKEN_RECIPE = Recipe("decomposition")
CLASS_TOKEN_RECIPE = Recipe("hirescam", (-2, -1))  # the best that reads no attention
POOLED_PATCHES_RECIPE = Recipe("attnlrp", (1,))
RESNET_RECIPE = Recipe("input_x_gradient", (-2, -1))


class Tower(ABC):
    """The image encoder of a CLIP, seen as layers and a grid.

    A subclass defines which models it fits, names their layers and lays out a layer's output as a grid.

    Args:
        clip: the CLIP itself, without wrappers.

    Attributes:
        clip: the CLIP.
        layers: dotted names, below ``clip``, of the layers worth mapping, first to last.
        default_layer: the one of ``layers`` that Grad-CAM uses by default.
        blocks: modules that run one after the other, first to last, each on the output of the one before.
        channel_dim, batch_dim: dimensions of channels and images in the output of ``layers``.
        has_known_head: whether nothing that the tower does not know follows it, such as an adapter or a projection.
        verify: clears ``has_known_head`` if that is not so; called once, before it is first used.
        recipe: what ``method="auto"`` stands for.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from clipcam_lightning import Tower, explain
        >>> class Encoder(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.visual = nn.Conv2d(3, 8, kernel_size=16, stride=16)
        ...     def encode_image(self, images):
        ...         return self.visual(images).mean(dim=(2, 3))
        ...     def encode_text(self, tokens):
        ...         return torch.zeros(len(tokens), 8)  # not used below: the prompts are embeddings
        >>> class PatchTower(Tower):
        ...     layers, default_layer, input_size = ("visual",), "visual", (64, 64)
        ...     @classmethod
        ...     def fits(cls, clip):
        ...         return isinstance(clip, Encoder)
        ...     def to_grid(self, features, image_size):
        ...         return features
        ...     def scaled_size(self, size, scale):
        ...         return round(size[0] * scale / 16) * 16, round(size[1] * scale / 16) * 16
        >>> from clipcam_lightning import find_clip
        >>> clip = find_clip(Encoder(), towers=[PatchTower])
        >>> explain(clip, torch.randn(1, 3, 64, 64), torch.randn(2, 8)).maps.shape  # 1 image, 2 prompt embeddings
        torch.Size([1, 2, 4, 4])
    """

    layers: Sequence[str]
    default_layer: str
    blocks: Sequence[nn.Module] = ()
    channel_dim: int = 1
    batch_dim: int = 0
    has_known_head: bool = True
    verify: Callable[["Tower"], None] | None = None
    recipe: Recipe = CLASSIC_RECIPE

    def __init__(self, clip: nn.Module) -> None:
        self.clip: Any = clip

    @classmethod
    @abstractmethod
    def fits(cls, clip: nn.Module) -> bool:
        """Check whether ``clip`` belongs to this family."""

    @property
    @abstractmethod
    def input_size(self) -> tuple[int, int]:
        """Height and width in pixels of the images that the model expects."""

    @property
    def input_channels(self) -> int:
        """Number of channels of the images that the model takes. Maps are made of RGB images, which have three."""
        return 3

    @abstractmethod
    def to_grid(self, features: Float[Tensor, "..."], image_size: tuple[int, int]) -> Float[Tensor, "b c h w"]:
        """Lay out a layer's output on its grid, row by row.

        Args:
            features: output of a layer.
            image_size: height and width of the images in pixels.

        Returns:
            The grid.

        Raises:
            TowerError: the output has no such grid.
        """

    def dims(self, features: Float[Tensor, "..."], image_size: tuple[int, int]) -> tuple[int, int]:
        """Return the dimensions of images and of channels in a layer's output.

        Args:
            features: output of a layer that :meth:`to_grid` accepts.
            image_size: height and width of the images in pixels.

        Returns:
            Index of the dimension of the images, and of the dimension of the channels.
        """
        return self.batch_dim, self.channel_dim

    def encode(self, images: Float[Tensor, "b 3 y x"]) -> Float[Tensor, "b e"]:
        """Embed images of any size that :meth:`scaled_size` returns, without scaling the embeddings to unit length.

        Positions are interpolated for this pass if the size requires it; no parameter is written to.
        """
        features: Tensor = self.clip.encode_image(images)
        return features

    @abstractmethod
    def scaled_size(self, size: tuple[int, int], scale: float) -> tuple[int, int]:
        """Compute the size of a scaled image in whole cells of the grid.

        At scale 1, a size that the tower takes is returned unchanged; images of another size are refused.

        Args:
            size: height and width in pixels.
            scale: factor of both.

        Returns:
            Height and width in pixels.

        Raises:
            ConfigError: the result is smaller than one cell, or the tower supports one size only.
        """

    @property
    def offers(self) -> frozenset[str]:
        """What methods may use in addition to a grid, in words that error messages list."""
        return frozenset()

    def unpack(self, batch: Mapping[str, Tensor]) -> list[Float[Tensor, "3 _y _x"]]:
        """Extract the images from the output of the model's own image processor, if that is not a plain tensor.

        Raises:
            ConfigError: the tower takes tensors only.
        """
        raise ConfigError(
            f"{type(self).__name__} takes images as a tensor [n, 3, y, x] "
            f"(got a mapping with {', '.join(map(str, batch))})."
        )

    def native(self) -> AbstractContextManager[None]:
        """Switch the tower to torch's own attention functions, if its library has others, so that it is intercepted."""
        return nullcontext()

    def skipping_unused(self, layers: Sequence[str]) -> AbstractContextManager[None]:
        """Skip work after ``layers`` that the embedding does not depend on."""
        return nullcontext()

    def resolve(self, layer: int | str, layers: Sequence[str] = ()) -> str:
        """Return the dotted name of a layer.

        Args:
            layer: dotted name of any submodule, or index into ``layers``.
            layers: dotted names; by default :attr:`layers`.

        Returns:
            The name below ``clip``.

        Raises:
            ConfigError: there is no such layer; the message lists ``layers``.
        """
        layers = layers or self.layers
        if isinstance(layer, int) and -len(layers) <= layer < len(layers):
            return layers[layer]
        names = [name for name, _ in self.clip.named_modules(remove_duplicate=False) if name]
        if isinstance(layer, str) and layer in names:
            return layer
        raise ConfigError(
            f"layer must be an index from {-len(layers)} to {len(layers) - 1} or a submodule of "
            f"{type(self.clip).__name__} (got {layer!r}). Layers worth mapping: {', '.join(layers)}."
            f"{suggest(layer, names)}"
        )


class AttentionTower(Tower):
    """A tower whose patches attend to each other, or are pooled by attention.

    The attention must be computed by torch's ``scaled_dot_product_attention`` or ``multi_head_attention_forward``,
    where it is intercepted. Beyond what :class:`Tower` lists, a subclass sets ``blocks`` and the attributes below, such
    that ``layers[i]`` and ``attentions[i]`` belong to ``blocks[i]``, and defines :meth:`grid` and :meth:`embed_tokens`;
    with attention in the blocks :meth:`project`, and if the pool has attention, too, :meth:`pool_tokens`; with a
    ``final_norm`` :meth:`head`. Of a tower that pools a class token, the last block's output has no gradient in any
    patch: there, ``layers`` are the first norm of each block.

    Attributes:
        attentions: the module in each of ``blocks`` that holds its attention; empty for a convolutional tower that
            only pools by attention.
        block_inputs: dotted name, per block, of the module that returns the block's input; for the first block the
            patch embedding, before positions are added.
        pooling: how the embedding is read: from the class token (``"cls"``), from the mean of the patches
            (``"mean"``), or by attention over the patches (``"attention"``).
        pool: the module that pools by attention.
        prefix: number of tokens before the patches.
        final_norm: the norm between the pooled class token and the projection, if every block adds an affine function
            of its heads to the class token; else ``None``.

    Example:
        >>> from clipcam_lightning import AttentionTower, find_clip
        >>> from clipcam_lightning.shapes_world import trained_clip
        >>> tower = find_clip(trained_clip("vit")).tower
        >>> isinstance(tower, AttentionTower), tower.pooling, tower.grid((64, 64))
        (True, 'cls', (8, 8))
    """

    channel_dim = -1
    attentions: Sequence[nn.Module] = ()
    block_inputs: Sequence[str] = ()
    pooling: Literal["cls", "mean", "attention"]
    pool: nn.Module | None = None
    prefix: int = 1
    final_norm: nn.LayerNorm | None = None

    @property
    def offers(self) -> frozenset[str]:
        """Attention, and further properties of it."""
        if self.verify is not None:
            verify, self.verify = self.verify, None
            verify(self)
        has = {
            ATTENTION: True,
            BLOCKS: bool(self.attentions),
            ONE_QUERY: self.pooling in ("cls", "attention"),
            RESIDUAL: self.final_norm is not None and self.has_known_head,
            HEAD: self.has_known_head,
        }
        return frozenset(need for need, offered in has.items() if offered)

    def to_tokens(self, output: Any) -> Float[Tensor, "b t d"]:
        """Convert a block's output, in the form of its library, to tokens with the batch first."""
        tokens: Tensor = output[0] if isinstance(output, tuple) else output
        return tokens

    @override
    def dims(self, features: Float[Tensor, "..."], image_size: tuple[int, int]) -> tuple[int, int]:
        """As in :class:`Tower`; a patch embedding may still be a grid, where the blocks return tokens."""
        if self.attentions and features.ndim == 4:
            return 0, 1 if features.shape[2:] == self.grid(image_size) else 3
        return super().dims(features, image_size)

    @abstractmethod
    def grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Compute height and width in patches of an image of ``image_size`` (height, width) in pixels."""

    @abstractmethod
    def embed_tokens(self, tokens: Float[Tensor, "b t d"]) -> Float[Tensor, "b t e"]:
        """Compute, for each output token of the last block, the image embedding if it alone were pooled."""

    def pool_tokens(self, tokens: Float[Tensor, "b t d"]) -> Float[Tensor, "b e"]:
        """Compute the image embedding with ``tokens`` as the last block's output, in a tower that pools by attention.

        Raises:
            TowerError: not implemented (only needed for towers with attention in their blocks and in their pool).
        """
        raise TowerError(f"{type(self).__name__} pools by attention and must define pool_tokens(tokens).")

    def project(self, block: int, heads: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        """Compute what the attention of a block adds to its tokens.

        Args:
            block: index into ``blocks``.
            heads: outputs of the heads, concatenated.

        Returns:
            The summand of each token.

        Raises:
            TowerError: not implemented (only needed for towers with attention blocks).
        """
        raise TowerError(f"{type(self).__name__} must define project(block, heads) for methods that read heads.")

    def head(self, normalized: Float[Tensor, "b t d"]) -> Float[Tensor, "b t e"]:
        """Apply the projection after ``final_norm``, an affine function.

        Raises:
            TowerError: not implemented (only needed for towers with a ``final_norm``).
        """
        raise TowerError(f"{type(self).__name__} has a final_norm and must define head(normalized).")
