"""Grad-CAM."""

from jaxtyping import Float
from torch import Tensor

from clipcam_lightning.cam.capture import Capture
from clipcam_lightning.cam.methods.channels import combine_channels


def gradcam(capture: Capture) -> Float[Tensor, "b p h w"]:
    r"""Weight each channel by its mean gradient, sum the channels, keep the positive part.

    .. math:: \alpha_k = \tfrac{1}{hw} \sum_{ij} G_{kij}, \quad M = \mathrm{relu}\left(\sum_k \alpha_k A_k\right)

    The mean discards the position of a gradient. On a ViT, whose gradients differ from patch to patch, the map can
    therefore highlight regions that do not matter for the prompt;
    :func:`~clipcam_lightning.cam.methods.hirescam.hirescam` keeps gradient and patch together.

    Fits every tower.

    Source: Selvaraju et al. 2017, eqs. 1-2, https://arxiv.org/abs/1610.02391
    """
    weights = capture.gradients.mean(dim=(-2, -1))  # alpha, eq. 1
    return combine_channels(weights, capture.activations).relu()  # eq. 2
