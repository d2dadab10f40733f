"""Eigen-Grad-CAM."""

import torch
from jaxtyping import Float
from torch import Tensor

from clipcam_lightning.cam.capture import Capture
from clipcam_lightning.cam.methods.eigencam import first_component


def eigengradcam(capture: Capture) -> Float[Tensor, "b p h w"]:
    r"""Eigen-CAM of gradient times activation, so that the prompt matters.

    .. math:: M = \mathrm{relu}(\overline{(G \odot A)} v_1)

    A singular vector has no sign. It is chosen so that the map rises with :math:`\sum_k G_k \odot A_k`, the evidence.

    Fits every tower.

    Source: pytorch-grad-cam's ``EigenGradCAM``, after Muhammad & Yeasin 2020, https://arxiv.org/abs/2008.00299
    """
    evidence = (capture.gradients * capture.activations[:, None]).flatten(0, 1)
    projected, total = first_component(evidence), evidence.sum(dim=1)
    agreement = (projected * (total - total.mean(dim=(1, 2), keepdim=True))).sum(dim=(1, 2), keepdim=True)
    oriented = torch.where(agreement < 0, -projected, projected)
    return oriented.relu().reshape(*capture.gradients.shape[:2], *oriented.shape[-2:])
