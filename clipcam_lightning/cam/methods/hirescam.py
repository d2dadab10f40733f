"""HiResCAM."""

import torch
from jaxtyping import Float
from torch import Tensor

from clipcam_lightning.cam.capture import Capture


def hirescam(capture: Capture) -> Float[Tensor, "b p h w"]:
    r"""Multiply gradient and activation element by element, sum the channels, keep the positive part.

    .. math:: M = \mathrm{relu}\left(\sum_k G_k \odot A_k\right)

    Fits every tower.

    Source: Draelos & Carin 2020, eq. 3, https://arxiv.org/abs/2011.08891, where the positive part is also taken for
    display.
    """
    return torch.einsum("bpchw,bchw->bphw", capture.gradients, capture.activations).relu()
