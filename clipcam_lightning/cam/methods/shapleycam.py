"""ShapleyCAM."""

from jaxtyping import Float
from torch import Tensor

from clipcam_lightning.cam.capture import CurvatureCapture
from clipcam_lightning.cam.methods.channels import combine_channels


def shapleycam(capture: CurvatureCapture) -> Float[Tensor, "b p h w"]:
    r"""Weight each channel by its Shapley value in the game of all channels, to second order.

    .. math:: w_k = \tfrac{1}{hw} \sum_{ij} \left(G - \tfrac12 H A\right)_{kij}, \quad
        M = \mathrm{relu}\left(\sum_k w_k A_k\right)

    with ``H`` the Hessian of the score: Grad-CAM with a corrected gradient. It costs a second backward pass per prompt.

    Fits every tower.

    Source: Cai 2025, CAMs as Shapley Value-based Explainers, eq. 15, https://arxiv.org/abs/2501.06261
    """
    weights = (capture.gradients - 0.5 * capture.curvature).mean(dim=(-2, -1))
    return combine_channels(weights, capture.activations).relu()
