"""Score-CAM."""

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from clipcam_lightning.cam.capture import ScoreCapture
from clipcam_lightning.cam.methods.channels import combine_channels

SCORE_SCALE = 15.0


def scorecam(capture: ScoreCapture) -> Float[Tensor, "b p h w"]:
    r"""Weight each channel by the score of the image multiplied with that channel as a mask.

    .. math:: w = \mathrm{softmax}_k\, s\left(X \odot n(\mathrm{up}(A_k))\right), \quad
        M = \mathrm{relu}\left(\sum_k w_k A_k\right)

    with ``n`` the stretch to 0-1, and ``s`` 15 times the cosine by default (``score_scale``). Of the cosine itself the
    softmax is nearly uniform, and on ResNets every prompt gets nearly the same map; of larger logits few channels are
    left. Small CLIPs were measured at the cosine, at 100 and at their own logit scales of 13 to 20, for which 15
    stands: these point far better than the cosine on ResNets, and somewhat worse on ViTs among two objects. 100 is the
    scale of most published CLIPs. It is a constant, so that a trained temperature cannot look like drift.

    Perturbation-based: no gradient, and one forward per channel, shared by all prompts.

    Fits every tower.

    Source: Wang et al. 2020, eqs. 5-7, https://arxiv.org/abs/1910.01279
    """
    size = (capture.images.shape[-2], capture.images.shape[-1])

    def mask_image(image: int, channels: slice) -> Float[Tensor, "k 3 y x"]:
        masks = capture.activations[image, channels][:, None]
        masks = F.interpolate(masks, size=size, mode="bilinear", align_corners=False)
        low, high = masks.amin((2, 3), keepdim=True), masks.amax((2, 3), keepdim=True)
        return capture.images[image] * ((masks - low) / (high - low + 1e-8))

    scores = capture.score_variants(mask_image, capture.activations.shape[1])
    return combine_channels(scores.softmax(dim=1).transpose(1, 2), capture.activations).relu()
