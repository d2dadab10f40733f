"""The state of a raw map: whether it carries information, and if not, why."""

from enum import Enum

from jaxtyping import Float
from torch import Tensor

MIN_SPREAD = 1e-6  # of the largest magnitude; below it, rounding alone makes a map vary


class MapState(str, Enum):
    """Whether a raw map carries information, and if not, why: it is *degenerate*.

    A member is a string, its name for files and programs; ``words`` is what people read on images.

    Attributes:
        VALID: some cells speak for the prompt more than others.
        NOWHERE_POSITIVE: every cell speaks against the prompt or not at all, as the maps of signed methods can.
        ALL_ZERO: no cell speaks for or against the prompt. Of a method that keeps only positive values, such as
            Grad-CAM, it is the map that would else be nowhere positive.
        CONSTANT: all cells are equal, up to rounding.
        NOT_FINITE: at least one cell is NaN or infinite.

    Example:
        >>> import torch
        >>> from clipcam_lightning import map_state
        >>> state = map_state(torch.tensor([[-2.0, -1.0], [-3.0, 0.0]]))
        >>> state.value, state.is_degenerate
        ('nowhere positive', True)
        >>> state.words
        'nothing in this image raises the similarity'
    """

    VALID = "valid"
    NOWHERE_POSITIVE = "nowhere positive"
    ALL_ZERO = "all zero"
    CONSTANT = "constant"
    NOT_FINITE = "not finite"

    @property
    def is_degenerate(self) -> bool:
        """Whether the map carries no information."""
        return self is not MapState.VALID

    @property
    def words(self) -> str:
        """What the state says about image and model; empty for a valid map."""
        return _WORDS[self]

    def __str__(self) -> str:
        return self.value


_WORDS = {
    MapState.VALID: "",
    MapState.NOWHERE_POSITIVE: "nothing in this image raises the similarity",
    MapState.ALL_ZERO: "nothing in this image raises the similarity",
    MapState.CONSTANT: "every part of this image counts the same",
    MapState.NOT_FINITE: "the model computed NaN or infinity",
}


def map_state(map_: Float[Tensor, "h w"]) -> MapState:
    """Find the state of a raw map.

    Values are compared with the largest magnitude of the map, so the state does not depend on its scale.

    Args:
        map_: raw saliency, on the layer's own grid, without padding.

    Returns:
        The state; of several that apply, the first of not finite, all zero, constant and nowhere positive.

    Example:
        >>> import torch
        >>> str(map_state(torch.zeros(7, 7)))
        'all zero'
    """
    if not map_.isfinite().all():
        return MapState.NOT_FINITE
    if not map_.any():
        return MapState.ALL_ZERO
    highest, lowest, rounding = map_.max(), map_.min(), MIN_SPREAD * map_.abs().max()
    if highest - lowest < rounding:
        return MapState.CONSTANT
    return MapState.NOWHERE_POSITIVE if highest <= rounding else MapState.VALID
