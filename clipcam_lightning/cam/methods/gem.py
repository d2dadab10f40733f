"""GEM, the Grounding Everything Module."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from clipcam_lightning.cam.attention import Attention
from clipcam_lightning.cam.capture import WholeCapture
from clipcam_lightning.cam.methods.second_path import embed_on_second_path


def gem(capture: WholeCapture) -> Float[Tensor, "b p h w"]:
    r"""Run a second path of self-self attention beside the model's own, and compare its patches with the prompt.

    .. math:: x' \leftarrow x' + \mathrm{out}\left(\tfrac13 \sum_{p \in \{q,k,v\}}
        \mathrm{softmax}(\tau \hat p \hat p^\top)\, v\right), \quad
        p \leftarrow \mathrm{softmax}(\tau \hat p \hat p^\top)\, \hat p \text{ once before}, \quad
        \tau = \frac{\mathrm{mean} \lVert \mathrm{ln}(x) \rVert}{\sqrt{d}}

    with :math:`\hat p` of unit length, ``x`` the tokens of the model's own path and ``d`` the width of a head;
    :math:`M_i = \cos(\mathrm{embed}(x'_i), t)`, signed. Self-self attention lets each patch average the values of
    patches that resemble it. By default over the last six blocks.

    Fits towers with attention in their blocks.

    Source: Bousselham et al. 2024, eqs. 3-7, https://arxiv.org/abs/2312.00878
    """
    embedded = embed_on_second_path(capture, _attend_to_similar)
    return capture.to_map(torch.einsum("bse,bpe->bps", embedded, capture.directions))


def _attend_to_similar(attention: Attention, inputs: Float[Tensor, "b t d"]) -> Float[Tensor, "b h t v"]:
    """Average the values by the similarity of queries, of keys and of values; return the mean of the three."""
    length: Tensor = inputs.norm(dim=-1).mean(dim=1)[:, None, None, None]
    temperature = length / math.sqrt(attention.query.shape[-1])

    def weights(p: Tensor) -> Tensor:
        return (temperature * p @ p.transpose(-2, -1)).softmax(dim=-1)

    outputs = []
    for p in (attention.query, attention.key, attention.value):
        unit = F.normalize(p, dim=-1)
        unit = F.normalize(weights(unit) @ unit, dim=-1)
        outputs.append(weights(unit) @ attention.value)
    return torch.stack(outputs).mean(dim=0)
