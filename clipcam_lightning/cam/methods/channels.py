"""The sum that half of the CAM methods end in."""

import torch
from jaxtyping import Float
from torch import Tensor


def weighted_channels(
    weights: Float[Tensor, "b p c"], activations: Float[Tensor, "b c h w"]
) -> Float[Tensor, "b p h w"]:
    """Sum of the channels, each times its weight."""
    return torch.einsum("bpc,bchw->bphw", weights, activations)
