"""GAE, generic attention explainability."""

from jaxtyping import Float
from torch import Tensor

from clipcam_lightning.cam.capture import WeightCapture
from clipcam_lightning.cam.methods.relevance import propagate_relevance


def gae(capture: WeightCapture) -> Float[Tensor, "b p h w"]:
    r"""Propagate relevance back through the attention weights whose gradient supports the prompt.

    .. math:: \bar A_l = \tfrac1h \sum_h \mathrm{relu}\left(\nabla A_l^h \odot A_l^h\right), \quad
        R \leftarrow R + \bar A_l R, \quad M = R_{\mathrm{cls}}

    By default over the last block alone, as in the authors' notebook for CLIP; ``layers`` selects others. The row that
    is read is that of the class token. In towers that pool by attention it is :math:`\bar A_{\mathrm{pool}} R`, since
    no residual path leads around the pool. In towers that pool by the mean it is the mean row of :math:`R - I`: the
    residual path gives every patch the same share there, whatever the prompt.

    Over one block of a class-token tower the map is linear in the score. Over several, or with a pool after a block, it
    depends on its scale (``score_scale``): the larger, the more weigh paths through several blocks. By default the
    score is the cosine; on small CLIPs logits, as in the notebook, were no better.

    Fits towers with attention.

    Source: Chefer et al. 2021, eqs. 5-6, https://arxiv.org/abs/2103.15679
    """
    # [b, p, h, t, s] with p = 1: one prompt at a time
    flows = [
        (gradients[:, 0] * weights).relu().mean(dim=1)
        for weights, gradients in zip(capture.weights, capture.gradients, strict=True)
    ]
    pool = flows.pop()[:, 0] if capture.pool is not None else None
    residual = capture.tower.pooling != "mean"
    return capture.to_map(propagate_relevance(capture, flows, pool, identity=1.0, residual=residual)[:, None])
