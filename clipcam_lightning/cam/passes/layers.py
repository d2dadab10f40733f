"""Passes of methods that read one layer's activations, with or without gradients."""

import warnings
from collections.abc import Sequence
from contextlib import nullcontext

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from clipcam_lightning.cam.capture import Capture, CurvatureCapture, LayerCapture, cut_at
from clipcam_lightning.cam.fuse import fuse_maps
from clipcam_lightning.cam.methods import Method
from clipcam_lightning.cam.model_state import frozen_parameters
from clipcam_lightning.cam.passes.one_pass import Pass, Result
from clipcam_lightning.errors import ClipCamWarning


def run_activation_pass(method: Method, inputs: Pass) -> Result:
    """Run one forward; the maps serve every prompt."""
    tower, modules = inputs.clip.tower, inputs.modules
    with tower.skipping_unused(inputs.layers), cut_at(modules, graph=False) as recorded:
        similarity = inputs.compute_similarity(inputs.clip.features(inputs.images))
    grids = [tower.to_grid(output, inputs.size).float() for output in inputs.select_outputs(recorded)]
    return fuse_maps([method(LayerCapture(grid)) for grid in grids], inputs.fuse), similarity


def run_gradient_pass(method: Method, inputs: Pass) -> Result:
    """Run one forward, and per prompt one vector-Jacobian product through what follows the layers.

    Warns:
        ClipCamWarning: no patch of a layer reaches the embedding, so its maps are all zero.
    """
    second_order = method.reads is CurvatureCapture
    # Only the math kernel of attention has second derivatives.
    kernel = sdpa_kernel(SDPBackend.MATH) if second_order else nullcontext()
    with (
        kernel,
        inputs.clip.tower.skipping_unused(inputs.layers),
        cut_at(inputs.modules) as recorded,
        frozen_parameters(inputs.clip.module) if method.rules else nullcontext(),
    ):
        with method.rules() if method.rules else nullcontext():
            similarity = inputs.compute_similarity(inputs.clip.features(inputs.images))
        scores, outputs, maps = inputs.compute_scores(similarity), inputs.select_outputs(recorded), []
        grids = [_to_grid(inputs, output.detach()) for output in outputs]
        for p in range(inputs.prompts):
            # Images do not influence each other in eval mode, so one product serves the whole batch.
            gradients = torch.autograd.grad(
                scores[:, p].sum(),
                outputs,
                retain_graph=second_order or p + 1 < inputs.prompts,
                create_graph=second_order,
            )
            captures = [
                Capture(grid, _to_grid(inputs, gradient.detach())[:, None])
                for grid, gradient in zip(grids, gradients, strict=True)
            ]
            if second_order:
                captures = [
                    CurvatureCapture(
                        **vars(capture), curvature=_to_grid(inputs, _compute_curvature(gradient, output))[:, None]
                    )
                    for capture, gradient, output in zip(captures, gradients, outputs, strict=True)
                ]
            maps.append(fuse_maps([method(capture) for capture in captures], inputs.fuse))
            if p == 0:
                _warn_of_unread_patches(inputs, captures, gradients)
    return torch.cat(maps, dim=1), similarity


def _warn_of_unread_patches(inputs: Pass, captures: Sequence[Capture], gradients: Sequence[Tensor]) -> None:
    """Warn of layers from which no patch reaches the embedding, as after the last attention of a class-token tower.

    Where other tokens have no gradient either, the model is to blame and not the layer.
    """
    for name, capture, gradient in zip(inputs.layers, captures, gradients, strict=True):
        if gradient.any() and not capture.gradients.any():
            warnings.warn(
                f"no patch of layer {name} reaches the embedding, which reads only its class token, so its maps are "
                f"all zero; layers worth mapping: {', '.join(inputs.clip.tower.layers)}.",
                ClipCamWarning,
                stacklevel=2,
            )


def _to_grid(inputs: Pass, output: Tensor) -> Float[Tensor, "b c h w"]:
    return inputs.clip.tower.to_grid(output, inputs.size).float()


def _compute_curvature(gradient: Tensor, output: Tensor) -> Tensor:
    """Multiply the Hessian of the score with the layer's output; 0 if the score is linear in it."""
    if not gradient.requires_grad:
        return torch.zeros_like(output)
    (product,) = torch.autograd.grad(gradient, output, output.detach(), retain_graph=True, allow_unused=True)
    return torch.zeros_like(output) if product is None else product
