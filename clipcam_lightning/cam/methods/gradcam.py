"""Grad-CAM."""

from jaxtyping import Float
from torch import Tensor

from clipcam_lightning.cam.capture import Capture
from clipcam_lightning.cam.methods.channels import weighted_channels


def gradcam(capture: Capture) -> Float[Tensor, "b p h w"]:
    r"""Weight each channel by its mean gradient, sum the channels, keep the positive part.

    .. math:: \alpha_k = \tfrac{1}{hw} \sum_{ij} G_{kij}, \quad M = \mathrm{relu}\left(\sum_k \alpha_k A_k\right)

    The mean ignores where a gradient sits, so on a ViT, whose gradient differs from patch to patch, the map can
    light up ground that has nothing to do with the prompt;
    :func:`~clipcam_lightning.cam.methods.hirescam.hirescam` keeps gradient and patch together.

    Fits every tower.

    Source: Selvaraju et al. 2017, eqs. 1-2, https://arxiv.org/abs/1610.02391
    """
    weights = capture.gradients.mean(dim=(-2, -1))  # alpha, eq. 1
    return weighted_channels(weights, capture.activations).relu()  # eq. 2
