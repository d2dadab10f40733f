"""Element-wise Grad-CAM."""

from jaxtyping import Float
from torch import Tensor

from clipcam_lightning.cam.capture import Capture


def elementwise(capture: Capture) -> Float[Tensor, "b p h w"]:
    r"""Multiply gradient and activation where they meet and sum what is positive; what is negative cancels nothing.

    .. math:: M = \sum_k \mathrm{relu}\left(G_k \odot A_k\right)

    Fits every tower.

    Source: Pillai & Pirsiavash 2021, sec. 3 (the element-wise product in place of mean gradients),
    https://arxiv.org/abs/2010.03023; as pytorch-grad-cam's ``GradCAMElementWise`` has it.
    """
    return (capture.gradients * capture.activations[:, None]).relu().sum(dim=2)
