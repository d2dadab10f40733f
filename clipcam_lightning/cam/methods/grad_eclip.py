"""Grad-ECLIP."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from clipcam_lightning.cam.capture import HeadCapture


def grad_eclip(capture: HeadCapture) -> Float[Tensor, "b p h w"]:
    r"""Values of the last attention, weighted by the score's gradient and by how near their keys are to the query.

    .. math:: \lambda_i = \mathrm{minmax}_i \cos(q_c, k_i), \quad w = \frac{\partial s}{\partial o_c}, \quad
        M_i = \mathrm{relu}\left(\lambda_i \sum_d w_d v_{id}\right)

    with :math:`o_c` the heads' output for the pooled token, before the output projection. The heads stay as the
    model has them; the authors' code runs the last block with one head, which is another model.

    Fits towers whose embedding comes from one attention query: a class token, or a pooling attention.

    Source: Zhao et al. 2024, eqs. 7-11, https://arxiv.org/abs/2502.18816
    """
    attention = capture.last
    query, key = (x.transpose(1, 2).flatten(2) for x in (attention.first().query, attention.key))  # heads merged
    patches = capture.grid[0] * capture.grid[1]
    nearness = F.cosine_similarity(query, key, dim=-1)[:, -patches:]
    low, high = nearness.amin(1, keepdim=True), nearness.amax(1, keepdim=True)
    nearness = (nearness - low) / (high - low).clamp_min(torch.finfo(nearness.dtype).tiny)
    evidence = torch.einsum("bphv,bhsv->bps", capture.gradients, attention.value[:, :, -patches:])
    return capture.to_map((nearness[:, None] * evidence).relu())
