"""The decomposition of the image embedding over tokens, heads and blocks."""

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from clipcam_lightning.cam.capture import ClassTokenCapture


def decomposition(capture: ClassTokenCapture) -> Float[Tensor, "b p h w"]:
    r"""What each patch adds to the similarity on the direct way, through the attention of any block.

    .. math:: M_i = \frac{1}{\lVert f \rVert} \sum_{l,h} t \cdot P\left(A_{l,ci}^h\, v_{l,i}^h W_{l,O}^h\right)

    with ``P`` the projection after the final norm, whose mean and variance are held fixed. The maps are signed and
    add up: with the terms of the class token, the MLPs and the biases their sum is the cosine itself. What a patch
    does by way of other tokens is not seen. No gradient, and one product of matrices for all prompts.

    Fits towers that pool a class token and add each block's output to it.

    Source: Gandelsman et al. 2024, eqs. 1-7, https://arxiv.org/abs/2310.05916
    """
    wanted = _before_final_norm(capture)
    total = torch.zeros((), device=wanted.device)
    for block, weights, values in zip(capture.blocks, capture.weights, capture.values, strict=True):
        heads, size = values.shape[1], values.shape[-1]
        projection = partial(capture.tower.project, block)
        given = _transposed(projection, wanted, heads * size, values.dtype).unflatten(-1, (heads, size))
        # The class token's attention times values times what each head would have to give for the prompt.
        total = total + torch.einsum("bhs,bhsv,bphv->bps", weights.float(), values.float(), given)
    return capture.to_map(total)


def _before_final_norm(capture: ClassTokenCapture) -> Float[Tensor, "b p d"]:
    """The directions as the residual stream has them, before the final norm with its statistics held fixed."""
    norm, token = capture.tower.final_norm, capture.last_tokens[:, :1]
    assert norm is not None  # such towers are what the method fits
    unit = capture.directions / capture.features.norm(dim=-1)[:, None, None]
    scaled = _transposed(capture.tower.head, unit, token.shape[-1], token.dtype)
    if norm.weight is not None:
        scaled = scaled * norm.weight.float()
    scaled = scaled * (token.float().var(dim=-1, keepdim=True, correction=0) + norm.eps).rsqrt()
    return scaled - scaled.mean(dim=-1, keepdim=True)


def _transposed(
    affine: Callable[[Tensor], Tensor], outputs: Float[Tensor, "b p _d"], width: int, dtype: torch.dtype
) -> Float[Tensor, "b p {width}"]:
    """The transpose of an affine function, applied to ``outputs``; each prompt takes the place of a token.

    The function works in ``dtype``, the model's own.
    """
    with torch.enable_grad():
        inputs = torch.zeros(*outputs.shape[:2], width, dtype=dtype, device=outputs.device, requires_grad=True)
        (result,) = torch.autograd.grad(affine(inputs), inputs, outputs.to(dtype))
    return result.float()
