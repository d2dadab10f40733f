"""What the core asks of an image tower."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

from jaxtyping import Float
from torch import Tensor, nn

from clipcam_lightning.errors import ConfigError


class Tower(ABC):
    """The image encoder of a CLIP, seen as layers and a grid.

    A subclass says which models it fits, names its layers and lays their output out as a grid.

    Attributes:
        clip: the module that has ``encode_image``.
        layers: dotted names, below ``clip``, of the layers worth mapping, first to last.
        default_layer: the one of ``layers`` that Grad-CAM should use.
        blocks: the modules that gradient checkpointing can recompute, first to last.
    """

    layers: Sequence[str]
    default_layer: str
    blocks: Sequence[nn.Module] = ()

    def __init__(self, clip: nn.Module) -> None:
        self.clip = clip

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

    @abstractmethod
    def position_embeddings(self, image_size: tuple[int, int]) -> dict[str, Tensor]:
        """Parameters below ``clip`` that another image size needs, interpolated, by their dotted names.

        Raises:
            ConfigError: the tower cannot take that size.
        """

    @abstractmethod
    def scaled_size(self, scale: float) -> tuple[int, int]:
        """Height and width of an image ``scale`` times as large, in whole cells of the grid.

        Raises:
            ConfigError: that leaves no cell.
        """

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
