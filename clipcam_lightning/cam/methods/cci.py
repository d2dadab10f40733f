"""CCI, cluster-based concept importance."""

import torch
from jaxtyping import Float
from torch import Tensor

from clipcam_lightning.cam.capture import ScoreCapture
from clipcam_lightning.cam.methods.clusters import cluster_patches

CLUSTERS = 7


def cci(capture: ScoreCapture) -> Float[Tensor, "b p h w"]:
    r"""Hide one cluster of similar patches at a time from all attention, and map the loss of score.

    .. math:: M_i = s - s_{k(i)}, \quad \hat A^{(l)}_{k}(i, j) = \begin{cases}
        -\infty & j \in C_k \\ A^{(l)}(i, j) & \text{else} \end{cases}

    with :math:`k(i)` the cluster of patch ``i`` among seven, and :math:`s_k` the score while in every block, every head
    and the attention pool, if any, the logits ``A`` of that cluster's keys are masked: nothing of it reaches the
    embedding, and no pixel is painted over. The map is signed.

    The clusters are found by k-means on the directions of the activations of the mapped layer, by default the last one
    where patches still count. The paper then divides the map by the sum of the seven losses, which is a factor, and
    would invert the map where the sum is negative; here it is left out.

    Perturbation-based: no gradient, and seven forwards per image, shared by all prompts.

    Fits towers with attention in their blocks whose embedding is read by a single query: a class token's, or that of a
    pooling attention.

    Source: Agarwal et al. 2025, CCI, https://arxiv.org/abs/2511.12978, after the equations as quoted in reviews and
    notes on the paper; no code of the authors was published.
    """
    members = cluster_patches(capture.activations, CLUSTERS)
    losses = capture.scores[:, None] - capture.score_without_attention(members)
    return torch.einsum("bkp,bkhw->bphw", losses, members)
