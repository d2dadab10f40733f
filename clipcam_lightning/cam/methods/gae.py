"""Generic attention explainability."""

from jaxtyping import Float
from torch import Tensor

from clipcam_lightning.cam.capture import WeightCapture
from clipcam_lightning.cam.methods.relevance import pooled_relevance


def gae(capture: WeightCapture) -> Float[Tensor, "b p h w"]:
    r"""Let relevance flow back through the attention weights that speak for the prompt.

    .. math:: \bar A_l = \tfrac1h \sum_h \mathrm{relu}\left(\nabla A_l^h \odot A_l^h\right), \quad
        R \leftarrow R + \bar A_l R, \quad M = R_{\mathrm{cls}}

    By default of the last block alone; ``layers`` names others. Where an attention pools the patches, its own
    :math:`\bar A` is the row to start from; where a mean does, the mean is.

    Fits towers with attention.

    Source: Chefer et al. 2021, eqs. 5-6, https://arxiv.org/abs/2103.15679
    """
    # [b, p, h, t, s] with p = 1: one prompt at a time
    flows = [
        (gradients[:, 0] * weights).relu().mean(dim=1)
        for weights, gradients in zip(capture.weights, capture.gradients, strict=True)
    ]
    pool = flows.pop()[:, 0] if capture.pool is not None else None
    return capture.to_map(pooled_relevance(capture, flows, pool, stays=1.0)[:, None])
