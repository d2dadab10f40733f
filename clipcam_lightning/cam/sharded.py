"""A model whose parameters are split over ranks, put together for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor


@contextmanager
def put_together(module: nn.Module) -> Iterator[None]:
    """Let every rank call any part of ``module`` by itself, as often as it likes, as if nothing were split.

    To be entered by all ranks together, since the parameters are gathered then. Inside, whole copies stand in their
    place, and the hooks that would gather and split them at each call are put aside: no rank's call waits for another.
    The split parameters themselves, and what FSDP knows of them, stay as they are.

    Serves ``fully_shard`` and tensor parallelism. A module that is not split is left alone.
    """
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()  # after a validation the outermost is still whole, in the type it computes in
    if not any(isinstance(parameter, DTensor) for parameter in module.parameters()):
        yield
        return
    with _hooks_aside(module), _whole_parameters(module):
        yield


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
    hooks = [hooks for part in module.modules() for hooks in (part._forward_pre_hooks, part._forward_hooks)]
    own = [dict(each) for each in hooks]
    try:
        for each in hooks:
            for key, hook in list(each.items()):
                if hook.__module__.startswith("torch.distributed."):
                    del each[key]
        yield
    finally:
        for each, before in zip(hooks, own, strict=True):
            each.clear()
            each.update(before)
