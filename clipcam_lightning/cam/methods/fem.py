"""FEM, the Feature Explanation Method."""

from jaxtyping import Float
from torch import Tensor

from clipcam_lightning.cam.capture import LayerCapture
from clipcam_lightning.cam.methods.channels import combine_channels

K = 2.0  # standard deviations above the mean from which an activation counts as rare


def fem(capture: LayerCapture) -> Float[Tensor, "b 1 h w"]:
    r"""Weight each channel by the share of its cells with a rare activation; the prompts have no influence.

    .. math:: w_k = \tfrac{1}{hw} \left|\{ij : A_{kij} > \mu_k + 2 \sigma_k\}\right|, \quad
        M = \mathrm{relu}\left(\sum_k w_k A_k\right)

    Fits every tower.

    Source: Fuad et al. 2020, sec. III, Features understanding in 3D CNNs for actions recognition in video (Feature
    Explanation Method), https://hal.science/hal-02963298
    """
    A = capture.activations  # noqa: N806
    mean, deviation = A.mean(dim=(2, 3), keepdim=True), A.std(dim=(2, 3), keepdim=True, correction=0)
    weights = (mean + K * deviation < A).to(A.dtype).mean(dim=(2, 3))
    return combine_channels(weights[:, None], A).relu()
