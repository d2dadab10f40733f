"""What a CAM method is."""

from collections.abc import Callable
from typing import TypeAlias

from jaxtyping import Float
from torch import Tensor

from clipcam_lightning.cam.capture import Capture

Method: TypeAlias = Callable[[Capture], Float[Tensor, "b h w"]]
"""A function from what a pass recorded to raw maps; its ``__name__`` is how it is reported."""
