"""What the core asks of an image tower."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from clipcam_lightning.errors import ConfigError, TowerError

ATTENTION = "attention"
BLOCKS = "attention between patches"
ONE_QUERY = "an embedding that one query reads"
RESIDUAL = "a class token that is a sum over the blocks"


class Recipe(NamedTuple):
    """What ``method="auto"`` means for a family of towers; measured by ``benchmarks/localisation.py``.

    Attributes:
        method: a name in ``METHODS``.
        layers: indices; ``None`` for the method's own choice.
    """

    method: str
    layers: tuple[int, ...] | None = None


# Families that could not be measured keep the classic, Grad-CAM at their default layer.
CLASSIC = Recipe("gradcam")
OF_CLASS_TOKEN_SUMS = Recipe("decomposition")
OF_OTHER_CLASS_TOKENS = Recipe("hirescam", (-2, -1))  # the best that reads no attention
OF_RESNETS = Recipe("gradcam", (-2, -1))


class Tower(ABC):
    """The image encoder of a CLIP, seen as layers and a grid.

    A subclass says which models it fits, names its layers and lays their output out as a grid.

    Attributes:
        clip: the module that embeds images.
        layers: dotted names, below ``clip``, of the layers worth mapping, first to last.
        default_layer: the one of ``layers`` that Grad-CAM should use.
        blocks: the modules that run one after the other, first to last; each takes the output of the one before.
        channel_dim, batch_dim: where a layer's output keeps its channels and its images.
        any_size: whether images of any size in whole cells are what the model expects.
        recipe: what ``method="auto"`` stands for.
    """

    layers: Sequence[str]
    default_layer: str
    blocks: Sequence[nn.Module] = ()
    channel_dim: int = 1
    batch_dim: int = 0
    any_size: bool = False
    recipe: Recipe = CLASSIC

    def __init__(self, clip: nn.Module) -> None:
        self.clip: Any = clip

    @classmethod
    @abstractmethod
    def fits(cls, clip: nn.Module) -> bool:
        """Whether ``clip`` is a model of this family."""

    @property
    @abstractmethod
    def input_size(self) -> tuple[int, int]:
        """Height and width in pixels of the images the model expects."""

    @abstractmethod
    def to_grid(self, features: Float[Tensor, "..."], image_size: tuple[int, int]) -> Float[Tensor, "b c h w"]:
        """Lay out a layer's output on its grid, row by row.

        Raises:
            TowerError: the output has no such grid.
        """

    def encode(self, images: Float[Tensor, "b 3 y x"]) -> Float[Tensor, "b e"]:
        """Image embeddings of any length, of images in any size that :meth:`scaled_size` gives.

        Positions that another size needs are interpolated for this pass; no parameter is written to.
        """
        features: Tensor = self.clip.encode_image(images)
        return features

    @abstractmethod
    def scaled_size(self, size: tuple[int, int], scale: float) -> tuple[int, int]:
        """Height and width of an image of ``size`` made ``scale`` times as large, in whole cells of the grid.

        Raises:
            ConfigError: that leaves no cell, or the tower takes one size only.
        """

    @property
    def offers(self) -> frozenset[str]:
        """What methods may ask of a tower beyond a grid, in words that an error can list."""
        return frozenset()

    def unpacked(self, batch: Mapping[str, Tensor]) -> list[Float[Tensor, "3 _y _x"]]:
        """Images ``[3, y, x]`` of what the model's own processor gives, where that is more than a tensor.

        Raises:
            ConfigError: the tower takes tensors only.
        """
        raise ConfigError(
            f"{type(self).__name__} takes images as a tensor [n, 3, y, x] "
            f"(got a mapping with {', '.join(map(str, batch))})."
        )

    def native(self) -> AbstractContextManager[None]:
        """Switch the tower, for one pass, to code that the core can look into, where its library has several."""
        return nullcontext()

    def skipping_unused(self, layers: Sequence[str]) -> AbstractContextManager[None]:
        """Leave out, for one pass, work after ``layers`` on which the embedding does not depend."""
        return nullcontext()

    def resolve(self, layer: int | str) -> str:
        """The dotted name of a layer given by name or by index into :attr:`layers`.

        Raises:
            ConfigError: there is no such layer; the message lists those there are.
        """
        if isinstance(layer, int) and -len(self.layers) <= layer < len(self.layers):
            return self.layers[layer]
        if isinstance(layer, str) and layer and layer in dict(self.clip.named_modules()):
            return layer
        raise ConfigError(
            f"layer must be an index from {-len(self.layers)} to {len(self.layers) - 1} or a submodule of "
            f"{type(self.clip).__name__} (got {layer!r}). Layers worth mapping: {', '.join(self.layers)}."
        )


class AttentionTower(Tower):
    """A tower whose patches attend to each other, or are pooled by attention.

    Attributes:
        attentions: the module in each of ``blocks`` that holds its attention; empty for a convolutional tower that
            only pools by attention.
        pooling: what the embedding is read from: the class token (``"cls"``), the mean of the patches (``"mean"``),
            or an attention over them (``"attention"``).
        pool: the module that pools by attention.
        prefix: tokens before the patches.
        final_norm: what normalises a pooled class token before the projection, where all blocks add affine functions
            of their heads to it; else ``None``.
    """

    channel_dim = -1
    attentions: Sequence[nn.Module] = ()
    pooling: Literal["cls", "mean", "attention"]
    pool: nn.Module | None = None
    prefix: int = 1
    final_norm: nn.LayerNorm | None = None

    @property
    def offers(self) -> frozenset[str]:
        """Attention, and what of it there is."""
        return frozenset(
            word
            for word, there in {
                ATTENTION: True,
                BLOCKS: bool(self.attentions),
                ONE_QUERY: self.pooling in ("cls", "attention"),
                RESIDUAL: self.final_norm is not None,
            }.items()
            if there
        )

    def to_tokens(self, output: Any) -> Float[Tensor, "b t d"]:
        """A block's output, whatever its library returns, as tokens with the batch first."""
        tokens: Tensor = output[0] if isinstance(output, tuple) else output
        return tokens

    @abstractmethod
    def grid(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Height and width in patches of an image of that size."""

    @abstractmethod
    def embed_tokens(self, tokens: Float[Tensor, "b t d"]) -> Float[Tensor, "b t e"]:
        """What the image embedding would be if each token of the last block were the only one to be pooled."""

    def project(self, block: int, heads: Float[Tensor, "b t d"]) -> Float[Tensor, "b t d"]:
        """What the attention of a block adds to its tokens, given the concatenated outputs of its heads.

        Raises:
            TowerError: the tower does not say; it need not, if it has no attention in its blocks.
        """
        raise TowerError(f"{type(self).__name__} must define project(block, heads) for methods that follow the heads.")

    def head(self, normalized: Float[Tensor, "b t d"]) -> Float[Tensor, "b t e"]:
        """The projection after ``final_norm``: an affine function.

        Raises:
            TowerError: the tower does not say; it need not, if it has no ``final_norm``.
        """
        raise TowerError(f"{type(self).__name__} has a final_norm and must define head(normalized), what follows it.")
