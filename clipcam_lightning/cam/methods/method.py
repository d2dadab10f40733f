"""The description of a CAM method."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import getdoc
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor
from torch.overrides import TorchFunctionMode

from clipcam_lightning.cam.capture import Capture
from clipcam_lightning.cam.targets import Target
from clipcam_lightning.cam.towers.tower import Tower
from clipcam_lightning.errors import ConfigError

BACKWARD = 2  # forwards that a backward counts as
MAPS = "a method must return maps [b, p, h, w] of b images and p prompts (or 1, if prompts have no influence)"


class Variants(NamedTuple):
    """How many variants of an image a perturbation-based method scores, for each layer.

    Attributes:
        unit: what of the layer each of them changes, in the singular.
        number: the number of variants for a layer's channels and the height and width of its grid.
    """

    unit: str
    number: Callable[[int, int, int], int]


@dataclass(frozen=True)
class Method:
    """A function from a capture to raw maps, and what a pass must record for it.

    Attributes:
        function: maps a capture of ``b`` images and ``p`` prompts to maps ``[b, p, h, w]``, or ``[b, 1, h, w]`` if the
            prompts have no influence.
        reads: type of the capture. A pass records nothing else.
        needs: what a tower must offer (:attr:`Tower.offers`) for the method to fit it.
        blocks: number of last blocks that an attention method reads by default; ``None`` for all.
        one_block: whether the method can read one block only.
        target: the target that the method always differentiates; ``None`` for the caller's target.
        rules: of the operations under which the gradient is computed; ``None`` for the true gradient.
        block_inputs: whether layers are the inputs of the blocks where a tower has blocks with attention, the first of
            them by default; else :attr:`Tower.layers`.
        variants: of a perturbation-based method, the changed images that it scores; ``None`` for other methods.
        steps: number of points on the way from the layer's mean cell to its cells at which gradients are taken, and
            whose maps are averaged; 0 for the gradient at the cells themselves.
        compares_prompts: whether the prompts of an image change each other's maps, whatever the target.
        score_scale: default of the factor on the cosine before the target. It matters to a method that is not linear in
            the score; of any other the map is multiplied by it, or does not depend on it.

    Raises:
        ConfigError: ``rules``, ``block_inputs`` or ``steps`` do not fit ``reads``, or ``rules`` and ``steps`` are both
            given.

    Example:
        >>> import torch
        >>> from clipcam_lightning import Capture, Method
        >>> def gradient_norm(capture):
        ...     return capture.gradients.norm(dim=2)
        >>> method = Method(gradient_norm, reads=Capture)
        >>> method.name
        'gradient_norm'
        >>> method(Capture(torch.ones(1, 4, 7, 7), torch.ones(1, 2, 4, 7, 7))).shape  # 1 image, 2 prompts
        torch.Size([1, 2, 7, 7])
    """

    function: Callable[[Any], Float[Tensor, "b p h w"]]
    reads: type = Capture
    needs: tuple[str, ...] = ()
    blocks: int | None = None
    one_block: bool = False
    target: Target | None = None
    rules: type[TorchFunctionMode] | None = None
    block_inputs: bool = False
    variants: Variants | None = None
    steps: int = 0
    compares_prompts: bool = False
    score_scale: float = 1.0

    def __post_init__(self) -> None:
        if (self.rules or self.block_inputs or self.steps) and self.reads is not Capture:
            raise ConfigError(
                f"rules, block_inputs and steps are for methods that read a Capture (got {self.reads.__name__}): "
                "they change the gradient of a layer."
            )
        if self.rules and self.steps:
            raise ConfigError("a method has either rules or steps: gradients on the way are taken without rules.")

    @property
    def name(self) -> str:
        """Name of the function."""
        return getattr(self.function, "__name__", type(self.function).__name__)

    @property
    def cost(self) -> str:
        """Cost of one map in forwards of the image tower, where a backward counts as two, such as ``"3"``."""
        forwards = str(self.forwards([]))
        return f"{forwards} + 1 per {self.variants.unit}" if self.variants else forwards

    @property
    def source(self) -> str:
        """The paper and its equations, as the docstring of the function gives them after ``Source:``; else empty."""
        _, _, source = (getdoc(self.function) or "").partition("\nSource: ")
        return " ".join(source.partition("\n\n")[0].replace("``", "").split())

    def forwards(self, layers: Sequence[tuple[int, int, int]]) -> int:
        """Compute the cost of one map in forwards of the image tower, where a backward counts as two.

        It is a rule of thumb: a backward ends at the first layer, prompts of an image share its forwards, and what a
        method recomputes of some blocks is not counted.

        Args:
            layers: channels, height and width of each layer that is mapped; empty for one layer without variants.
        """
        backwards = BACKWARD * getattr(self.reads, "backwards", 0)
        if self.steps:
            return 1 + max(len(layers), 1) * self.steps * (1 + backwards)
        variants = sum(self.variants.number(*layer) for layer in layers) if self.variants else 0
        return 1 + backwards + variants

    def missing(self, tower: Tower) -> list[str]:
        """List what the method needs and ``tower`` does not offer; empty if the method fits."""
        return [need for need in self.needs if need not in tower.offers]

    def __call__(self, capture: Any) -> Float[Tensor, "b p h w"]:
        """Compute the raw maps of one capture.

        Raises:
            ConfigError: the function does not return maps.
        """
        maps: object = self.function(capture)
        if not isinstance(maps, Tensor) or maps.ndim != 4:
            got = tuple(maps.shape) if isinstance(maps, Tensor) else type(maps).__name__
            raise ConfigError(f"{MAPS}; {self.name} returned {got}.")
        return maps
