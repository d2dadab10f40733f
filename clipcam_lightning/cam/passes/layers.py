"""Passes of methods that read one layer's activations, with or without gradients."""

import warnings
from contextlib import nullcontext

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from clipcam_lightning.cam.capture import Capture, CurvatureCapture, LayerCapture, cut_at, replaced_output
from clipcam_lightning.cam.fuse import fuse_maps
from clipcam_lightning.cam.methods import METHODS, Method
from clipcam_lightning.cam.model_state import frozen_parameters
from clipcam_lightning.cam.passes.one_pass import Pass, Result, UnreadLayers
from clipcam_lightning.cam.rules import ConstantNormalizers, list_operations
from clipcam_lightning.cam.towers.tower import Tower
from clipcam_lightning.errors import ClipCamWarning, ConfigError


def run_activation_pass(method: Method, inputs: Pass) -> Result:
    """Run one forward; the maps serve every prompt."""
    tower, modules = inputs.clip.tower, inputs.modules
    with tower.skipping_unused(inputs.layers), cut_at(modules, graph=False) as recorded:
        features = inputs.embed(inputs.images)
    grids = [inputs.to_grid(output) for output in inputs.select_outputs(recorded)]
    return fuse_maps([method(LayerCapture(grid)) for grid in grids], inputs.fuse), features


def run_gradient_pass(method: Method, inputs: Pass) -> Result:
    """Run one forward, and per prompt one vector-Jacobian product through what follows the layers.

    Raises:
        ConfigError: an operation that the method has a rule for was run where it is not intercepted.
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
            features = inputs.embed(inputs.images)
            similarity = inputs.compute_similarity(features)
        _require_rules(method, inputs, similarity)
        scores, outputs, maps = inputs.compute_scores(similarity), inputs.select_outputs(recorded), []
        grids = [inputs.to_grid(output.detach()) for output in outputs]
        for p in range(inputs.prompts):
            # Images do not influence each other in eval mode, so one product serves the whole batch.
            gradients = torch.autograd.grad(
                scores[:, p].sum(),
                outputs,
                retain_graph=second_order or p + 1 < inputs.prompts,
                create_graph=second_order,
            )
            captures = [
                Capture(grid, inputs.to_grid(gradient.detach())[:, None])
                for grid, gradient in zip(grids, gradients, strict=True)
            ]
            if second_order:
                captures = [
                    CurvatureCapture(
                        **vars(capture), curvature=inputs.to_grid(_compute_curvature(gradient, output))[:, None]
                    )
                    for capture, gradient, output in zip(captures, gradients, outputs, strict=True)
                ]
            maps.append(fuse_maps([method(capture) for capture in captures], inputs.fuse))
            if p == 0:
                for name, capture, gradient in zip(inputs.layers, captures, gradients, strict=True):
                    _note_unread_patches(inputs, name, capture, gradient)
    return torch.cat(maps, dim=1), features.detach()


def _require_rules(method: Method, inputs: Pass, similarity: Tensor) -> None:
    """Refuse a forward in which an operation was run without its rule."""
    if method.rules is None or not issubclass(method.rules, ConstantNormalizers):
        return
    without_rule = sorted(method.rules.replaced & list_operations(similarity))
    if without_rule:
        clip, tower = type(inputs.clip.module).__name__, inputs.clip.tower
        fitting = ", ".join(name for name, each in METHODS.items() if not (each.rules or each.missing(tower)))
        raise ConfigError(
            f"{method.name} has no rule for {', '.join(without_rule)}, which {clip} runs in TorchScript or compiled "
            f"code; build the model without it, or use a method without rules: {fitting}."
        )


def _note_unread_patches(inputs: Pass, name: str, capture: Capture, gradient: Tensor) -> None:
    """Note whether no patch of a layer reaches the embedding, without waiting for the device."""
    inputs.unread.setdefault(name, []).append(gradient.any() & ~capture.gradients.any())


def warn_of_unread_layers(unread: UnreadLayers, tower: Tower) -> None:
    """Warn of layers from which no patch reaches the embedding, as after the last attention of a class-token tower.

    Where other tokens have no gradient either, the model is to blame and not the layer.

    Args:
        unread: the flags of all passes.
        tower: the image tower.

    Warns:
        ClipCamWarning: no patch of a layer reaches the embedding, so its maps are all zero.
    """
    if not unread:
        return
    is_unread = torch.stack([torch.stack(flags).any() for flags in unread.values()]).tolist()
    for name in (name for name, flag in zip(unread, is_unread, strict=True) if flag):
        warnings.warn(
            f"no patch of layer {name} reaches the embedding, which reads only its class token, so its maps are "
            f"all zero; layers worth mapping: {', '.join(tower.layers)}.",
            ClipCamWarning,
            stacklevel=2,
        )


def run_path_pass(method: Method, inputs: Pass) -> Result:
    """Run one forward, and per layer one at each point of the way to it, with a vector-Jacobian product per prompt."""
    tower, modules = inputs.clip.tower, inputs.modules
    with tower.skipping_unused(inputs.layers), cut_at(modules, graph=False) as recorded:
        features = inputs.embed(inputs.images)
    maps = [
        _average_along_path(method, inputs, name, output.detach())
        for name, output in zip(inputs.layers, inputs.select_outputs(recorded), strict=True)
    ]
    return fuse_maps(maps, inputs.fuse), features


def _average_along_path(method: Method, inputs: Pass, name: str, output: Tensor) -> Float[Tensor, "b p h w"]:
    """Average a method's maps over the midpoints of equal steps from the mean cell to the cells of ``output``."""
    layer = inputs.clip.module.get_submodule(name)
    grid, way, maps = inputs.to_grid(output), _centre_cells(inputs, output), []
    for step in range(method.steps):
        remaining = 1 - (step + 0.5) / method.steps
        with (
            inputs.clip.tower.skipping_unused(inputs.layers),
            replaced_output(layer, output - remaining * way),
            cut_at([layer]) as recorded,
        ):
            scores = inputs.compute_scores(inputs.compute_similarity(inputs.embed(inputs.images)))
            of_prompts = []
            for p in range(inputs.prompts):
                (gradient,) = torch.autograd.grad(
                    scores[:, p].sum(), recorded[layer], retain_graph=p + 1 < inputs.prompts
                )
                capture = Capture(grid, inputs.to_grid(gradient)[:, None])
                of_prompts.append(method(capture))
                if step == p == 0:
                    _note_unread_patches(inputs, name, capture, gradient)
        maps.append(torch.cat(of_prompts, dim=1))
    return torch.stack(maps).mean(dim=0)


def _centre_cells(inputs: Pass, output: Tensor) -> Tensor:
    """Subtract the mean cell from each cell of a layer's output, in the output's own form, with 0 for other tokens."""
    with torch.enable_grad():
        features = output.detach().requires_grad_()
        grid = inputs.clip.tower.to_grid(features, inputs.size)
        centred = grid.detach() - grid.detach().mean(dim=(2, 3), keepdim=True)
        # A grid is a choice of the output's numbers; the transpose of the choice puts them back.
        (placed,) = torch.autograd.grad(grid, features, centred)
    return placed


def _compute_curvature(gradient: Tensor, output: Tensor) -> Tensor:
    """Multiply the Hessian of the score with the layer's output; 0 if the score is linear in it."""
    if not gradient.requires_grad:
        return torch.zeros_like(output)
    (product,) = torch.autograd.grad(gradient, output, output.detach(), retain_graph=True, allow_unused=True)
    return torch.zeros_like(output) if product is None else product
