"""What one pass records, and the temporary changes to a model that it takes, always undone."""

import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from clipcam_lightning.errors import TowerError


@dataclass(frozen=True)
class Capture:
    """What a method gets to see: one layer, one prompt, a batch of images.

    Attributes:
        activations: the layer's output on its own grid.
        gradients: of the target score with respect to ``activations``.
    """

    activations: Float[Tensor, "b c h w"]
    gradients: Float[Tensor, "b c h w"]


@contextmanager
def cut_at(layers: Sequence[nn.Module]) -> Iterator[dict[nn.Module, Tensor]]:
    """Start the autograd graph at the first of ``layers`` that runs; record the output of each.

    Everything before runs under ``no_grad``. From the first layer on, grad mode is on and the recorded
    tensors can be differentiated. The graph ends there, so a frozen model works and no ``.grad`` is touched.

    Yields:
        An initially empty dict that receives each layer's output.

    Raises:
        TowerError: a layer gives no tensor.
    """
    recorded: dict[nn.Module, Tensor] = {}

    def record(layer: nn.Module, _inputs: object, output: object) -> Tensor:
        if not isinstance(output, Tensor):
            raise TowerError(f"a layer must give one tensor, {type(layer).__name__} gives a {type(output).__name__}.")
        if not recorded:
            torch.set_grad_enabled(True)
            output = output.detach().requires_grad_()
        recorded.setdefault(layer, output)
        return output.clone()  # an in-place op downstream must not touch what was recorded

    handles = [layer.register_forward_hook(record) for layer in layers]
    try:
        with torch.no_grad():  # also puts grad mode back after the hook switched it on
            yield recorded
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Let a pass run in eval mode and full precision, and give ``model`` back exactly as it was.

    Restored, also after an exception: every submodule's own training flag, gradient-checkpointing flags,
    buffers, and the random state of torch, numpy and Python. Inside, autocast and inference mode are off and
    compiled code runs eagerly, because hooks on already compiled code are skipped without a word.
    """
    devices = {tensor.device for tensor in model.parameters() if tensor.device.type == "cuda"}
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(torch.random.fork_rng(devices=sorted(devices, key=str)))
        for kind in ("cpu", *({"cuda"} if devices else ())):
            stack.enter_context(torch.autocast(kind, enabled=False))
        for kept in (_python_rng_kept(), _flags_kept(model), _buffers_kept(model)):
            stack.enter_context(kept)
        yield


@contextmanager
def checkpointed(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Recompute ``blocks`` in the backward pass instead of keeping their activations."""
    own = [vars(block).get("forward") for block in blocks]  # None where the class's is used
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    try:
        yield
    finally:
        for block, forward in zip(blocks, own, strict=True):
            if forward is None:
                del block.forward  # the class's shows again
            else:
                block.forward = forward


@contextmanager
def _python_rng_kept() -> Iterator[None]:
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


@contextmanager
def _flags_kept(model: nn.Module) -> Iterator[None]:
    # Set one by one and not through .eval(): a user may have frozen single layers in eval mode,
    # and some LoRA layers merge their weights when .eval() or .train() is called.
    flags = [
        (module, name, vars(module)[name])
        for module in model.modules()
        for name in ("training", "grad_checkpointing", "gradient_checkpointing")
        if isinstance(vars(module).get(name), bool)
    ]
    try:
        for module, name, _ in flags:
            vars(module)[name] = False
        yield
    finally:
        for module, name, value in flags:
            vars(module)[name] = value


@contextmanager
def _buffers_kept(model: nn.Module) -> Iterator[None]:
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    try:
        yield
    finally:
        for module, name, buffer, copy in buffers:
            if getattr(module, name) is not buffer:
                setattr(module, name, buffer)
            if not torch.equal(buffer, copy):
                buffer.copy_(copy)
