"""Eigen-Grad-CAM."""

import torch
from jaxtyping import Float
from torch import Tensor

from clipcam_lightning.cam.capture import Capture
from clipcam_lightning.cam.methods.eigencam import project_on_first_component


def eigengradcam(capture: Capture) -> Float[Tensor, "b p h w"]:
    r"""Apply Eigen-CAM to gradient times activation, so that the prompt matters.

    .. math:: M = \mathrm{relu}(\overline{(G \odot A)} v_1)

    The sign of a singular vector is arbitrary. It is chosen such that the map correlates positively with the evidence
    :math:`\sum_k G_k \odot A_k`.

    Fits every tower.

    Source: pytorch-grad-cam's ``EigenGradCAM``, after Muhammad & Yeasin 2020, https://arxiv.org/abs/2008.00299
    """
    evidence = (capture.gradients * capture.activations[:, None]).flatten(0, 1)
    projected, total = project_on_first_component(evidence), evidence.sum(dim=1)
    agreement = (projected * (total - total.mean(dim=(1, 2), keepdim=True))).sum(dim=(1, 2), keepdim=True)
    oriented = torch.where(agreement < 0, -projected, projected)
    return oriented.relu().reshape(*capture.gradients.shape[:2], *oriented.shape[-2:])
