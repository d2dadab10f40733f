"""LeGrad."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from clipcam_lightning.cam.attention import Attention, AttentionHook, intercepted_attention
from clipcam_lightning.cam.capture import AttentionCapture


def legrad(capture: AttentionCapture) -> Float[Tensor, "b p h w"]:
    r"""Differentiate each block's own score by attention weights, and sum the positive parts over the blocks.

    .. math:: s_l = t \cdot \mathrm{unit}\left(\mathrm{embed}\left(\tfrac1n \sum_i Z_{l,i}\right)\right), \quad
        M = \sum_l \tfrac{1}{hn} \sum_{h,i} \mathrm{relu}\left(\frac{\partial s_l}{\partial A_l^{h}}\right)_{i,\cdot}

    with :math:`Z_l` the ``n`` output tokens of block ``l``. A block's score depends on its own attention only through
    that block, so each block has a small graph of its own. By default over the last two blocks.

    In towers that pool by attention, the pool takes the place of both means, and its own weights are differentiated:

    .. math:: s_l = t \cdot \mathrm{unit}\left(\mathrm{pool}(Z_l)\right), \quad
        M = \sum_l \tfrac1h \sum_h \mathrm{relu}\left(\frac{\partial s_l}{\partial A_{\mathrm{pool}}^h}\right)

    Unlike the authors' code, this applies the model's final norm (theirs does so neither before the pool of SigLIP nor
    after that of CoCa), and erases no cells in which the map of "a photo of a" is high. The target
    ``Contrast(negatives=["a photo of a"])`` subtracts that prompt from the score instead.

    Fits towers with attention in their blocks.

    Source: Bousselham et al. 2024, eqs. 5-9, https://arxiv.org/abs/2404.03214; attention pools:
    https://github.com/WalBouss/LeGrad
    """
    prompts = capture.directions.shape[1]
    total = capture.directions.new_zeros(len(capture.features), prompts, capture.grid[0] * capture.grid[1])
    for which in range(len(capture.blocks)):
        leaf: list[Tensor] = []

        def attend(_i: int, attention: Attention, leaf: list[Tensor] = leaf) -> Tensor:
            leaf.append(attention.weights().detach().requires_grad_())
            return leaf[0] @ attention.value

        with torch.enable_grad():
            embedding = F.normalize(_embed_block(capture, which, attend).float(), dim=-1)
            scores = torch.einsum("be,bpe->bp", embedding, capture.directions)
        for p in range(prompts):
            (gradient,) = torch.autograd.grad(scores[:, p].sum(), leaf, retain_graph=p + 1 < prompts)
            if capture.tower.pooling == "attention":
                gradient = gradient[:, :, :1]  # the first query makes the embedding
            total[:, p] += gradient.relu().mean(dim=(1, 2))[:, capture.find_patches(gradient.shape[-1])]
    return capture.to_map(total)


def _embed_block(capture: AttentionCapture, which: int, attend: AttentionHook) -> Float[Tensor, "b e"]:
    """Pool a block's output tokens, with ``attend`` in the place of the attention that is differentiated."""
    tower = capture.tower
    if tower.pooling == "attention":
        assert tower.pool is not None
        with torch.no_grad():  # the graph begins in the pool
            tokens = capture.replay_block(which, lambda _i, attention: attention.output())
        with intercepted_attention([tower.pool], attend):
            return tower.pool_tokens(tokens)
    tokens = capture.replay_block(which, attend)
    return tower.embed_tokens(tokens.mean(dim=1, keepdim=True))[:, 0]
