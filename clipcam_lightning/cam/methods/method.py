"""What a CAM method is."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from clipcam_lightning.cam.capture import Capture
from clipcam_lightning.cam.targets import Target
from clipcam_lightning.cam.towers.tower import Tower


@dataclass(frozen=True)
class Method:
    """A function from what a pass recorded to raw maps, and what the pass must record for it.

    Attributes:
        function: from a capture of ``b`` images and ``p`` prompts to maps ``[b, p, h, w]``; ``p`` may be 1 in the
            result of one that asks for no prompt.
        reads: the kind of capture it takes. What that does not hold is not recorded.
        needs: what a tower must offer (:attr:`Tower.offers`) for the method to fit it.
        blocks: how many of the last blocks it reads unless told; ``None`` for all. Of attention methods only.
        one_block: whether it can read one block only.
        target: what it differentiates whatever the caller's target, for a method that is a target of its own.
    """

    function: Callable[[Any], Float[Tensor, "b p h w"]]
    reads: type = Capture
    needs: tuple[str, ...] = ()
    blocks: int | None = None
    one_block: bool = False
    target: Target | None = None

    @property
    def name(self) -> str:
        """What the function is called."""
        return getattr(self.function, "__name__", type(self.function).__name__)

    def missing(self, tower: Tower) -> list[str]:
        """What it needs and ``tower`` does not offer; empty if it fits."""
        return [word for word in self.needs if word not in tower.offers]

    def __call__(self, capture: Any) -> Float[Tensor, "b p h w"]:
        """The maps of one capture."""
        return self.function(capture)
