"""Temporary changes to a model that a pass takes, always undone."""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


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
        for kept in (_python_rng_kept(), _flags_kept(model), _buffers_kept(model), _merged_weights_kept(model)):
            stack.enter_context(kept)
        yield


@contextmanager
def checkpointed(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Recompute ``blocks`` in the backward pass instead of keeping their activations."""
    with forwards_replaced(blocks, lambda forward: partial(checkpoint, forward, use_reentrant=False)):
        yield


@contextmanager
def forwards_replaced(
    modules: Sequence[nn.Module], replacement: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> Iterator[None]:
    """Let ``replacement`` of each module's forward run in its place; hooks still see what goes in and out."""
    own = [vars(module).get("forward") for module in modules]  # None where the class's is used
    for module in modules:
        module.forward = replacement(module.forward)
    try:
        yield
    finally:
        for module, forward in zip(modules, own, strict=True):
            if forward is None:
                del module.forward  # the class's shows again
            else:
                module.forward = forward


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


@contextmanager
def _merged_weights_kept(model: nn.Module) -> Iterator[None]:
    # peft's LoRA on nn.MultiheadAttention takes off in every forward what it has merged into the weights for it, and
    # the difference rounds. It puts new parameters in the place of the old ones, so that these can be put back.
    merging = [getattr(module, "base_layer", None) for module in model.modules()]
    weights = [
        (owner, name, weight)
        for attention in merging
        if isinstance(attention, nn.MultiheadAttention)
        for owner in attention.modules()
        for name, weight in owner.named_parameters(recurse=False)
    ]
    try:
        yield
    finally:
        for owner, name, weight in weights:
            vars(owner).pop(name, None)  # what is merged is no parameter, and would be in its way
            owner.register_parameter(name, weight)
