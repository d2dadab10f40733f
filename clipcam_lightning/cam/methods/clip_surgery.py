"""CLIP Surgery."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from clipcam_lightning.cam.attention import Attention
from clipcam_lightning.cam.capture import WholeCapture
from clipcam_lightning.cam.methods.second_path import embed_on_second_path


def clip_surgery(capture: WholeCapture) -> Float[Tensor, "b p h w"]:
    r"""Run a second path of value-value attention, and subtract from each map what is common to all prompts.

    .. math:: x' \leftarrow x' + \mathrm{out}\left(\mathrm{softmax}\left(\frac{v v^\top}{\sqrt d}\right) v\right), \quad
        M_{p,i} = w_p\, t_p \cdot u_i - \frac1P \sum_q w_q\, t_q \cdot u_i, \quad
        w_p = \frac{P\, e^{2 t_p \cdot f}}{\sum_q e^{2 t_q \cdot f}}

    with :math:`u_i` the unit embedding of patch ``i`` on the second path, which skips the MLPs; ``v`` the values of the
    model's own path, ``d`` the width of a head, and ``f`` the unit image embedding. Value-value attention lets each
    patch average the values of patches that resemble it; the weights reduce what prompts that fit the image better put
    into the maps of others. By default over the last six blocks, as in the authors' code. The maps are signed. No
    gradient, and one product of matrices for all prompts.

    The factor 2 is the authors', for cosines; a ``score_scale`` multiplies it, and lowered pointing on small CLIPs.

    The prompts of an image thus change each other's maps. From the map of a single prompt nothing is subtracted; where
    the authors subtract that of an empty prompt, the target ``Contrast(negatives=["a photo"])`` comes close.

    Fits towers with attention in their blocks. The authors' variant for ResNets is not included.

    Source: Li et al. 2023, sec. 3.2-3.3, https://arxiv.org/abs/2304.05653
    """
    embedded = embed_on_second_path(capture, lambda attention, _inputs: _attend_by_values(attention))
    return capture.to_map(torch.einsum("bse,bpe->bps", embedded, _remove_redundancy(capture)))


def _attend_by_values(attention: Attention) -> Float[Tensor, "b h t v"]:
    # Biases in the mask are positions relative to the model's own queries.
    return replace(attention, query=attention.value, key=attention.value, mask=None).output()


def _remove_redundancy(capture: WholeCapture) -> Float[Tensor, "b p e"]:
    """Subtract the mean of the weighted directions from each; the product with a patch is linear in them."""
    directions = capture.directions
    if directions.shape[1] == 1:
        return directions
    fits = torch.einsum("be,bpe->bp", F.normalize(capture.features.float(), dim=-1), directions)
    weighted = directions * (2 * fits).softmax(dim=1)[..., None] * directions.shape[1]
    return weighted - weighted.mean(dim=1, keepdim=True)
