"""Grad-CAM++."""

import torch
from jaxtyping import Float
from torch import Tensor

from clipcam_lightning.cam.capture import Capture
from clipcam_lightning.cam.methods.channels import combine_channels


def gradcam_pp(capture: Capture) -> Float[Tensor, "b p h w"]:
    r"""Weight each channel by its positive gradients, with rare cells weighing more, so that several objects show.

    .. math::
        a_{kij} = \frac{G_{kij}^2}{2 G_{kij}^2 + S_k G_{kij}^3}, \quad S_k = \sum_{ij} A_{kij}, \quad
        M = \mathrm{relu}\left(\sum_k A_k \sum_{ij} a_{kij}\, \mathrm{relu}(G_{kij})\right)

    As in pytorch-grad-cam, a constant of 1e-6 keeps the denominator away from 0. It dominates where gradients are
    small, as those of a cosine are, and a cell's weight is then the cube of its gradient, up to a factor. The score is
    the cosine by default (``score_scale``): on small CLIPs that pointed at the object far more often than the logit.

    The closed form holds for a score that is the exponential of a linear function; elsewhere it is a heuristic.

    Fits every tower.

    Source: Chattopadhyay et al. 2018, eqs. 10 and 19, https://arxiv.org/abs/1710.11063
    """
    G = capture.gradients  # noqa: N806
    S = capture.activations.sum(dim=(-2, -1))[:, None, :, None, None]  # noqa: N806
    shares = torch.where(G == 0, 0, G**2 / (2 * G**2 + S * G**3 + 1e-6))  # eq. 19
    return combine_channels((shares * G.relu()).sum(dim=(-2, -1)), capture.activations).relu()
