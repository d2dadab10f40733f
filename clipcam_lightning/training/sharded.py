"""Gather the parameters of a sharded model, so that each rank can call it by itself."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel, ShardingStrategy
from torch.distributed.tensor import DTensor


@contextmanager
def gathered_parameters(module: nn.Module, root: nn.Module) -> Iterator[None]:
    """Replace sharded parameters by whole copies, so that each rank can call any part of the module by itself.

    All ranks must enter together, because entering gathers the parameters. Inside, the hooks that would gather and
    reshard at each call are removed, so no rank waits for another. The sharded parameters and FSDP's own state stay
    as they are and are put back at the end.

    Supports ``fully_shard``, ``FullyShardedDataParallel`` and tensor parallelism. A module that is not sharded is not
    touched.

    Args:
        module: what is to be called; under ``FullyShardedDataParallel`` as it was found :func:`without_wrappers`.
        root: the outermost module around it, whose FSDP may own parameters of ``module``.
    """
    with ExitStack() as stack:
        if any(isinstance(part, FullyShardedDataParallel) for part in root.modules()):
            stack.enter_context(FullyShardedDataParallel.summon_full_params(root, writeback=False))
            stack.enter_context(without_wrappers(root))
        for part in root.modules():
            if isinstance(part, FSDPModule):
                part.reshard()  # after a validation the outermost module is still gathered, in its compute type
        if any(isinstance(parameter, DTensor) for parameter in module.parameters()):
            for replaced in (_without_torch_hooks, _plain_methods, _whole_parameters):
                stack.enter_context(replaced(module))
        yield


def reserve_memory(module: nn.Module, root: nn.Module) -> None:
    """Allocate as much memory as :func:`gathered_parameters` needs, and free it again.

    It is called before the ranks wait for each other, so that a rank with too little memory can tell the others.

    Args:
        module, root: as for :func:`gathered_parameters`.

    Raises:
        RuntimeError: there is too little memory.
    """
    wrappers = [part for part in root.modules() if isinstance(part, FullyShardedDataParallel)]
    if wrappers:  # their parameters count the elements of this rank, those of a DTensor the elements of all ranks
        shards, device = max(map(_count_shards, wrappers)), wrappers[0].compute_device
        parameters = list(root.parameters())
    else:
        for part in root.modules():
            if isinstance(part, FSDPModule):
                part.reshard()  # after a validation, the parameters of the root are still whole
        shards, device = 1, None
        parameters = [each for each in module.parameters() if isinstance(each, DTensor)]
    parameters.sort(key=Tensor.numel)
    parameters += parameters[-1:]  # while a parameter is gathered, its elements are there a second time
    reserved = [
        torch.empty(shards * each.numel(), dtype=each.dtype, device=device or each.device) for each in parameters
    ]
    del reserved


def is_sharded(root: nn.Module) -> bool:
    """Whether parameters below ``root`` are sharded, so that no rank can call the model by itself."""
    return any(isinstance(part, FSDPModule | FullyShardedDataParallel) for part in root.modules()) or any(
        isinstance(parameter, DTensor) for parameter in root.parameters()
    )


@contextmanager
def without_wrappers(root: nn.Module) -> Iterator[None]:
    """Put the wrapped modules in the place of their ``FullyShardedDataParallel`` wrappers below ``root``."""
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


def _count_shards(wrapper: FullyShardedDataParallel) -> int:
    if wrapper.sharding_strategy is ShardingStrategy.NO_SHARD or wrapper.process_group is None:
        return 1
    return wrapper.process_group.size()


@contextmanager
def _whole_parameters(module: nn.Module) -> Iterator[None]:
    sharded = [
        (part, name, parameter)
        for part in module.modules()
        for name, parameter in part.named_parameters(recurse=False)
        if isinstance(parameter, DTensor)
    ]
    whole: dict[DTensor, nn.Parameter] = {}  # a parameter that two modules share is gathered once
    try:
        with torch.no_grad():
            for part, name, parameter in sharded:
                if parameter not in whole:
                    whole[parameter] = nn.Parameter(parameter.full_tensor(), parameter.requires_grad)
                part._parameters[name] = whole[parameter]
        yield
    finally:
        for part, name, parameter in sharded:
            part._parameters[name] = parameter


@contextmanager
def _without_torch_hooks(module: nn.Module) -> Iterator[None]:
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
    """Undo ``register_fsdp_forward_method``, which makes a method gather parameters as the hooks do."""
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
