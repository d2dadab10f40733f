"""Ablation-CAM."""

from jaxtyping import Float
from torch import Tensor

from clipcam_lightning.cam.capture import ScoreCapture
from clipcam_lightning.cam.methods.channels import combine_channels


def ablationcam(capture: ScoreCapture) -> Float[Tensor, "b p h w"]:
    r"""Weight each channel by the share of the score that is lost when the channel is set to 0.

    .. math:: w_k = \frac{s - s_k}{s}, \quad M = \mathrm{relu}\left(\sum_k w_k A_k\right)

    Perturbation-based: no gradient, and per channel one forward of what follows the layer, shared by all prompts. A
    negative score inverts the sign of every weight, as in the formula.

    Fits every tower.

    Source: Desai & Ramaswamy 2020, eqs. 3-4, Ablation-CAM, https://doi.org/10.1109/WACV45572.2020.9093360
    """
    score = capture.scores[:, None]
    weights = (score - capture.score_without_channels()) / score
    return combine_channels(weights.transpose(1, 2), capture.activations).relu()
