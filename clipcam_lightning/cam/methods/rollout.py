"""Attention rollout."""

from jaxtyping import Float
from torch import Tensor

from clipcam_lightning.cam.capture import AttentionCapture
from clipcam_lightning.cam.methods.relevance import propagate_relevance


def rollout(capture: AttentionCapture) -> Float[Tensor, "b 1 h w"]:
    r"""Multiply the attention of all blocks, mixed half and half with the identity; the prompts have no influence.

    .. math:: \hat A_l = \tfrac12 \left(I + \tfrac1h \sum_h A_l^h\right), \quad
        R = \hat A_L \cdots \hat A_1, \quad M = R_{\mathrm{cls}}

    In towers that pool by attention or by the mean, the weights of the pool replace the class token's row.

    Fits towers with attention.

    Source: Abnar & Zuidema 2020, sec. 4, https://arxiv.org/abs/2005.00928
    """
    heads = [attention.weights().mean(dim=1) for attention in capture.attentions]
    pool = capture.pool.weights()[:, :, 0].mean(dim=1) if capture.pool is not None else None
    return capture.to_map(propagate_relevance(capture, [each / 2 for each in heads], pool, identity=0.5)[:, None])
