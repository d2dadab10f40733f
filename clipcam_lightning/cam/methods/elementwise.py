"""Element-wise Grad-CAM."""

from jaxtyping import Float
from torch import Tensor

from clipcam_lightning.cam.capture import Capture


def elementwise(capture: Capture) -> Float[Tensor, "b p h w"]:
    r"""Multiply gradient and activation element by element and sum the positive products over the channels.

    .. math:: M = \sum_k \mathrm{relu}\left(G_k \odot A_k\right)

    Unlike in HiResCAM, negative products do not cancel positive ones.

    Fits every tower.

    Source: Pillai & Pirsiavash 2021, sec. 3 (the element-wise product in place of mean gradients),
    https://arxiv.org/abs/2010.03023; the positive part as in pytorch-grad-cam's ``GradCAMElementWise``.
    """
    return (capture.gradients * capture.activations[:, None]).relu().sum(dim=2)
