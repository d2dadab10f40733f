"""LayerCAM."""

import torch
from jaxtyping import Float
from torch import Tensor

from clipcam_lightning.cam.capture import Capture


def layercam(capture: Capture) -> Float[Tensor, "b p h w"]:
    r"""Multiply positive gradient and activation element by element, sum the channels, keep the positive part.

    .. math:: M = \mathrm{relu}\left(\sum_k \mathrm{relu}(G_k) \odot A_k\right)

    Fits every tower.

    Source: Jiang et al. 2021, eqs. 5-7, LayerCAM, IEEE TIP 30, https://doi.org/10.1109/TIP.2021.3089943
    """
    return torch.einsum("bpchw,bchw->bphw", capture.gradients.relu(), capture.activations).relu()
