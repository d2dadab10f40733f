"""A model whose parameters are split over ranks, put together for a while."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.distributed.tensor import DTensor


@contextmanager
def gathered_parameters(module: nn.Module, root: nn.Module) -> Iterator[None]:
    """Let every rank call any part of ``module`` by itself, as often as it likes, as if nothing were split.

    To be entered by all ranks together, since the parameters are gathered then. Inside, whole copies stand in their
    place, and the hooks that would gather and split them at each call are put aside: no rank's call waits for another.
    The split parameters themselves, and what FSDP knows of them, stay as they are.

    Serves ``fully_shard``, ``FullyShardedDataParallel`` and tensor parallelism. A module that is not split is left
    alone.

    Args:
        module: what is to be called; under ``FullyShardedDataParallel`` as it was found :func:`unwrapped`.
        root: the outermost module around it, whose FSDP may own parameters of ``module``.
    """
    with ExitStack() as stack:
        if any(isinstance(part, FullyShardedDataParallel) for part in root.modules()):
            stack.enter_context(FullyShardedDataParallel.summon_full_params(root, writeback=False))
            stack.enter_context(unwrapped(root))
        for part in root.modules():
            if isinstance(part, FSDPModule):
                part.reshard()  # after a validation the outermost is still whole, in the type it computes in
        if any(isinstance(parameter, DTensor) for parameter in module.parameters()):
            for aside in (_hooks_aside, _plain_methods, _whole_parameters):
                stack.enter_context(aside(module))
        yield


@contextmanager
def unwrapped(root: nn.Module) -> Iterator[None]:
    """Without the wrappers of ``FullyShardedDataParallel`` below ``root``: what they wrap, in their place."""
    wrappers = [
        (part, name, child)
        for part in root.modules()
        for name, child in part.named_children()
        if isinstance(child, FullyShardedDataParallel)
    ]
    try:
        for part, name, child in wrappers:
            part._modules[name] = child.module
        yield
    finally:
        for part, name, child in wrappers:
            part._modules[name] = child


@contextmanager
def _whole_parameters(module: nn.Module) -> Iterator[None]:
    split = [
        (part, name, parameter)
        for part in module.modules()
        for name, parameter in part.named_parameters(recurse=False)
        if isinstance(parameter, DTensor)
    ]
    whole: dict[DTensor, nn.Parameter] = {}  # one that two modules share is gathered once
    try:
        with torch.no_grad():
            for part, name, parameter in split:
                if parameter not in whole:
                    whole[parameter] = nn.Parameter(parameter.full_tensor(), parameter.requires_grad)
                part._parameters[name] = whole[parameter]
        yield
    finally:
        for part, name, parameter in split:
            part._parameters[name] = parameter


@contextmanager
def _hooks_aside(module: nn.Module) -> Iterator[None]:
    tables = [table for part in module.modules() for table in (part._forward_pre_hooks, part._forward_hooks)]
    own = [dict(table) for table in tables]
    try:
        for table, hooks in zip(tables, own, strict=True):
            table.clear()
            table.update({key: hook for key, hook in hooks.items() if not _is_of_torch(hook)})
        yield
    finally:
        for table, hooks in zip(tables, own, strict=True):
            table.clear()
            table.update(hooks)


@contextmanager
def _plain_methods(module: nn.Module) -> Iterator[None]:
    """Undo ``register_fsdp_forward_method``, which makes a method do what the hooks do."""
    wrapped = [
        (vars(part), name, method)
        for part in module.modules()
        for name, method in vars(part).items()
        if hasattr(method, "__wrapped__") and _is_of_torch(method)
    ]
    try:
        for attributes, name, method in wrapped:
            attributes[name] = method.__wrapped__
        yield
    finally:
        for attributes, name, method in wrapped:
            attributes[name] = method


def _is_of_torch(function: Any) -> bool:
    """Whether a hook or method is defined in torch's code for distributed training."""
    plain = getattr(function, "__func__", function)
    return str(getattr(plain, "__globals__", {}).get("__name__", "")).startswith("torch.distributed.")
