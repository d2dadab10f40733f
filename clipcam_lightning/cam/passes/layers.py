"""The pass of methods that read one layer's activations, with or without gradients."""

from contextlib import nullcontext

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from clipcam_lightning.cam.capture import Capture, CurvatureCapture, LayerCapture, cut_at
from clipcam_lightning.cam.fuse import fused
from clipcam_lightning.cam.methods import Method
from clipcam_lightning.cam.passes.one_pass import Pass, Result


def activations_only(method: Method, one: Pass) -> Result:
    """One forward; the maps serve every prompt."""
    tower, modules = one.clip.tower, one.modules()
    with tower.skipping_unused(one.layers), cut_at(modules, graph=False) as recorded:
        similarity = one.similarity(one.clip.features(one.images))
    grids = [tower.to_grid(output, one.size).float() for output in one.of_layers(recorded)]
    return fused([method(LayerCapture(grid)) for grid in grids], one.fuse), similarity


def with_gradients(method: Method, one: Pass) -> Result:
    """One forward, and one vector-Jacobian product a prompt through what follows the layers."""
    curved = method.reads is CurvatureCapture
    # Only the plain kernel of attention has second derivatives.
    kernel = sdpa_kernel(SDPBackend.MATH) if curved else nullcontext()
    with kernel, one.clip.tower.skipping_unused(one.layers), cut_at(one.modules()) as recorded:
        similarity = one.similarity(one.clip.features(one.images))
        scores, outputs, maps = one.scores(similarity), one.of_layers(recorded), []
        grids = [_grid(one, output.detach()) for output in outputs]
        for p in range(one.prompts):
            # Images do not influence each other in eval mode, so one product serves the whole batch.
            gradients = torch.autograd.grad(
                scores[:, p].sum(), outputs, retain_graph=curved or p + 1 < one.prompts, create_graph=curved
            )
            captures = [
                Capture(grid, _grid(one, gradient.detach())[:, None])
                for grid, gradient in zip(grids, gradients, strict=True)
            ]
            if curved:
                captures = [
                    CurvatureCapture(**vars(capture), curvature=_grid(one, _curvature(gradient, output))[:, None])
                    for capture, gradient, output in zip(captures, gradients, outputs, strict=True)
                ]
            maps.append(fused([method(capture) for capture in captures], one.fuse))
    return torch.cat(maps, dim=1), similarity


def _grid(one: Pass, output: Tensor) -> Float[Tensor, "b c h w"]:
    return one.clip.tower.to_grid(output, one.size).float()


def _curvature(gradient: Tensor, output: Tensor) -> Tensor:
    """The Hessian of the score times the layer's output; 0 where the score is linear in it."""
    if not gradient.requires_grad:
        return torch.zeros_like(output)
    (product,) = torch.autograd.grad(gradient, output, output.detach(), retain_graph=True, allow_unused=True)
    return torch.zeros_like(output) if product is None else product
