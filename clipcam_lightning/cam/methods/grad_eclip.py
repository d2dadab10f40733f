"""Grad-ECLIP."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from clipcam_lightning.cam.capture import HeadCapture


def grad_eclip(capture: HeadCapture) -> Float[Tensor, "b p h w"]:
    r"""Weight the values of the last attention by the score's gradient and by the cosine of query and key.

    .. math:: \lambda_i = \mathrm{minmax}_i \cos(q_c, k_i), \quad w = \frac{\partial s}{\partial o_c}, \quad
        M_i = \mathrm{relu}\left(\lambda_i \sum_d w_d v_{id}\right)

    with :math:`o_c` the output of the heads for the pooled token, before the output projection, and queries and keys
    compared over all heads together. The heads stay as in the model, where the authors' code runs the last block with a
    single head and thus a different model. Otherwise this is their notebook; their evaluation script also applies the
    output projection to queries and keys.

    Fits towers whose embedding is read by a single attention query: a class token's, or that of a pooling attention.

    Source: Zhao et al. 2024, eqs. 7-11, https://arxiv.org/abs/2502.18816
    """
    attention = capture.last
    query, key = (x.transpose(1, 2).flatten(2) for x in (attention.first_query().query, attention.key))  # merged heads
    patches = capture.find_patches(key.shape[1])
    closeness = F.cosine_similarity(query, key, dim=-1)[:, patches]
    low, high = closeness.amin(1, keepdim=True), closeness.amax(1, keepdim=True)
    closeness = (closeness - low) / (high - low).clamp_min(torch.finfo(closeness.dtype).tiny)
    evidence = torch.einsum("bphv,bhsv->bps", capture.gradients, attention.value[:, :, patches])
    return capture.to_map((closeness[:, None] * evidence).relu())
