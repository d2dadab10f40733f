"""MaskCLIP."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from clipcam_lightning.cam.capture import AttentionCapture


def maskclip(capture: AttentionCapture) -> Float[Tensor, "b p h w"]:
    r"""Embed every patch as if the last attention attended to that patch alone, and compare it with the prompt.

    .. math:: y = x + \mathrm{out}(v), \quad y \leftarrow y + \mathrm{mlp}(y), \quad M_i = \cos(\mathrm{embed}(y_i), t)

    In a tower that pools the patches by attention, the pool is the last attention, and each token is pooled alone. The
    maps are signed. No gradient, and one product of matrices for all prompts.

    Fits towers with attention.

    Source: Zhou et al. 2022, eqs. 1-2, https://arxiv.org/abs/2112.01071
    """
    if capture.tower.pooling == "attention":
        tokens = capture.last_tokens
    else:
        tokens = capture.replay_block(-1, lambda _i, attention: attention.value)
    embedded = F.normalize(capture.tower.embed_tokens(capture.select_patches(tokens)), dim=-1)
    return capture.to_map(torch.einsum("bse,bpe->bps", embedded.float(), capture.directions))
