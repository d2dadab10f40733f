"""AttnLRP."""

import torch
from jaxtyping import Float
from torch import Tensor

from clipcam_lightning.cam.capture import Capture


def attnlrp(capture: Capture) -> Float[Tensor, "b p h w"]:
    r"""Multiply the input of a block, centred over the patches, with its gradient under the rules of AttnLRP.

    .. math:: M_{ij} = \sum_k (A_{kij} - \bar A_k)\, \tilde G_{kij}

    :math:`\tilde G` is the gradient under the rules of :class:`AttnLrpRules`, with which :math:`\sum A \odot \tilde G`
    is the relevance of layer-wise propagation. Subtracting the mean patch, which the paper does not do, takes off what
    every patch contributes wherever the object is. By default the first block's input, without positions, is mapped: a
    tower that averages its patches stores objects in the background from the first block on.

    Fits towers with attention between patches. Values are signed.

    Args:
        capture: activations, and gradients under the rules.

    Returns:
        Raw maps, in units of the score.

    Source: Achtibat et al. 2024, https://arxiv.org/abs/2402.05602
    """
    return relevance_of_cells(capture)


def relevance_of_cells(capture: Capture) -> Float[Tensor, "b p h w"]:
    """Sum gradient times centred activation over the channels."""
    centred = capture.activations - capture.activations.mean(dim=(2, 3), keepdim=True)
    return torch.einsum("bpchw,bchw->bphw", capture.gradients, centred)
