"""Gradient times input."""

from jaxtyping import Float
from torch import Tensor

from clipcam_lightning.cam.capture import Capture
from clipcam_lightning.cam.methods.attnlrp import relevance_of_cells


def input_x_gradient(capture: Capture) -> Float[Tensor, "b p h w"]:
    r"""Multiply a layer, centred over the cells, with its gradient, for which the divisors of norms are constant.

    .. math:: M_{ij} = \sum_k (A_{kij} - \bar A_k)\, \tilde G_{kij}

    Held constant are the deviation of layer norms and the length of the embedding, see :class:`ConstantNormalizers`.
    Subtracting the mean cell takes off what every cell contributes wherever the object is. On a ViT the first block's
    input is mapped by default, on other towers the last layer.

    Fits every tower. Values are signed.

    Args:
        capture: activations, and gradients with constant divisors.

    Returns:
        Raw maps, in units of the score.

    Source: Shrikumar et al. 2016, https://arxiv.org/abs/1605.01713; constant divisors: Ali et al. 2022, eq. 9,
    https://arxiv.org/abs/2202.07304
    """
    return relevance_of_cells(capture)
