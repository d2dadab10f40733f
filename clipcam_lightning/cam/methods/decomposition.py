"""The additive decomposition of the image embedding over tokens, heads and blocks."""

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from clipcam_lightning.cam.capture import ClassTokenCapture


def decomposition(capture: ClassTokenCapture) -> Float[Tensor, "b p h w"]:
    r"""Sum what each patch adds directly to the similarity, through the class token's attention in any block.

    .. math:: M_i = \frac{1}{\lVert f \rVert} \sum_{l,h} t \cdot P\left(A_{l,ci}^h\, v_{l,i}^h W_{l,O}^h\right)

    with ``P`` the projection after the final norm, whose variance is held fixed. From each term the norm subtracts the
    term's own mean over the channels; the paper subtracts an equal part of the class token's mean instead. The
    decomposition is additive: the signed map and the terms of the class token, the MLPs and the biases sum to the
    cosine. What a patch adds by way of other tokens is not part of it. No gradient, and one product of matrices for all
    prompts.

    Fits towers that pool a class token and add each block's output to it.

    Source: Gandelsman et al. 2024, eqs. 1-7, https://arxiv.org/abs/2310.05916
    """
    residual_directions = _directions_before_final_norm(capture)
    total = torch.zeros((), dtype=torch.float32, device=residual_directions.device)
    for block, weights, values in zip(capture.blocks, capture.weights, capture.values, strict=True):
        heads, size = values.shape[1], values.shape[-1]
        projection = partial(capture.tower.project, block)
        head_directions = _apply_transpose(projection, residual_directions, heads * size, values.dtype)
        head_directions = head_directions.unflatten(-1, (heads, size))
        # Per token: the class token's attention times the value, along the direction in which a head raises the score.
        total = total + torch.einsum("bhs,bhsv,bphv->bps", weights.float(), values.float(), head_directions)
    return capture.to_map(total)


def _directions_before_final_norm(capture: ClassTokenCapture) -> Float[Tensor, "b p d"]:
    """Map the directions back to the residual stream, through the final norm with its variance held fixed."""
    norm, token = capture.tower.final_norm, capture.last_tokens[:, :1]
    assert norm is not None  # the method fits only towers that have one
    unit = capture.directions / capture.features.norm(dim=-1)[:, None, None]
    scaled = _apply_transpose(capture.tower.head, unit, token.shape[-1], token.dtype)
    if norm.weight is not None:
        scaled = scaled * norm.weight.float()
    scaled = scaled * (token.float().var(dim=-1, keepdim=True, correction=0) + norm.eps).rsqrt()
    return scaled - scaled.mean(dim=-1, keepdim=True)


def _apply_transpose(
    affine: Callable[[Tensor], Tensor], outputs: Float[Tensor, "b p _d"], width: int, dtype: torch.dtype
) -> Float[Tensor, "b p {width}"]:
    """Apply the transpose of an affine function to ``outputs``, with prompts in the place of tokens.

    Args:
        affine: maps ``[b, t, width]`` to ``[b, t, d]``.
        outputs: vectors in the function's output space.
        width: length of the function's inputs.
        dtype: type of the function's inputs.

    Returns:
        Vectors in the function's input space, float32.
    """
    rows = outputs.flatten(0, 1)[:, None, None]
    with torch.enable_grad():
        try:
            # The function runs on one vector, and all outputs go back through it: its values are not asked for.
            inputs = torch.zeros(1, 1, width, dtype=dtype, device=outputs.device, requires_grad=True)
            values = affine(inputs)
            (result,) = torch.autograd.grad(values, inputs, rows.to(values.dtype), is_grads_batched=True)
        except RuntimeError:  # some hooks and functions cannot go back with several outputs at once
            inputs = torch.zeros(len(rows), 1, width, dtype=dtype, device=outputs.device, requires_grad=True)
            values = affine(inputs)
            (result,) = torch.autograd.grad(values, inputs, rows[:, 0].to(values.dtype))
    return result.reshape(*outputs.shape[:2], width).float()
