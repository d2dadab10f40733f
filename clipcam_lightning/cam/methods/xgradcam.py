"""XGrad-CAM."""

import torch
from jaxtyping import Float
from torch import Tensor

from clipcam_lightning.cam.capture import Capture
from clipcam_lightning.cam.methods.channels import combine_channels


def xgradcam(capture: Capture) -> Float[Tensor, "b p h w"]:
    r"""Weight each channel by the mean of its gradient, weighted with the activations.

    .. math:: w_k = \sum_{ij} \frac{A_{kij}}{\sum_{ij} A_{kij}} G_{kij}, \quad
        M = \mathrm{relu}\left(\sum_k w_k A_k\right)

    Made for activations after a ReLU. On a ViT the sum of a channel can be close to 0, and the channel's weight is then
    dominated by rounding errors, which makes this the least stable method here.

    Fits every tower.

    Source: Fu et al. 2020, eq. 8, https://arxiv.org/abs/2008.02312
    """
    sums = capture.activations.sum(dim=(-2, -1))[:, None]
    weights = torch.einsum("bpchw,bchw->bpc", capture.gradients, capture.activations) / (sums + 1e-7)
    return combine_channels(weights, capture.activations).relu()
