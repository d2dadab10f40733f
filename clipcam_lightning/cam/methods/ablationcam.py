"""Ablation-CAM."""

from jaxtyping import Float
from torch import Tensor

from clipcam_lightning.cam.capture import ScoreCapture
from clipcam_lightning.cam.methods.channels import weighted_channels


def ablationcam(capture: ScoreCapture) -> Float[Tensor, "b p h w"]:
    r"""Weight each channel by the share of the score that is lost when it is set to 0.

    .. math:: w_k = \frac{s - s_k}{s}, \quad M = \mathrm{relu}\left(\sum_k w_k A_k\right)

    No gradient; one pass through what comes after the layer a channel, shared by all prompts. A negative score turns
    the sign of every weight, as the formula has it.

    Fits every tower.

    Source: Desai & Ramaswamy 2020, eqs. 3-4, Ablation-CAM, https://doi.org/10.1109/WACV45572.2020.9093360
    """
    whole = capture.scores[:, None]
    weights = (whole - capture.without_channels()) / whole
    return weighted_channels(weights.transpose(1, 2), capture.activations).relu()
