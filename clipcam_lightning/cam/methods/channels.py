"""The weighted sum of channels that many CAM methods end in."""

import torch
from jaxtyping import Float
from torch import Tensor


def combine_channels(
    weights: Float[Tensor, "b p c"], activations: Float[Tensor, "b c h w"]
) -> Float[Tensor, "b p h w"]:
    """Sum the channels, each multiplied with its weight."""
    return torch.einsum("bpc,bchw->bphw", weights, activations)
