"""Temporary changes to a model for the time of a pass; all of them are undone, also after an exception."""

import copy
import itertools
import random
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from clipcam_lightning.cam.precision import PromotedTypes, list_float_types
from clipcam_lightning.errors import ModelError

GENERATORS = (torch.Generator, random.Random, np.random.Generator)
VALUES = (bool, int, float, complex, str, bytes, type(None), tuple, torch.Tensor)
CONTAINERS = (list, deque, set, dict, OrderedDict, defaultdict, Counter)
VALUES_AND_CONTAINERS = (*VALUES, *CONTAINERS)
OF_MODULES = frozenset(vars(nn.Module()))
MAX_PARTS = 1000  # of a list or mapping that may hold modules, generators or other lists
MAX_VALUES = 2**16  # of a tensor that may count or average something; larger ones are data
LIBRARIES_WITH_STATE = ("torch.distributed.", "deepspeed.")
"""Packages whose modules prepare themselves in their first forward, and are to stay prepared."""


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put ``model`` into eval mode and full precision, and restore its state and all random states at the end.

    Restored, also after an exception: the training flag of every submodule, gradient-checkpointing flags, buffers,
    weights that PEFT merges in a forward, attributes of modules that are numbers, texts, tensors, lists, deques, dicts
    or sets, and the random state of torch, numpy and Python. During the ``with``,
    autocast and inference mode are off, gradients are on, and compiled code runs eagerly, because code that is compiled
    already skips hooks. Parts of different float types work together, and weights that were created in inference mode
    or quantized can be differentiated through.

    Raises:
        ModelError: a weight is on the meta device.
    """
    _require_values(model)
    devices = {tensor.device for tensor in model.parameters() if tensor.device.type == "cuda"}
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(torch.random.fork_rng(devices=sorted(devices, key=str)))
        for kind in ("cpu", *({"cuda"} if devices else ())):
            stack.enter_context(torch.autocast(kind, enabled=False))
        stack.enter_context(_restored_python_rng())
        modules = list_modules(model)
        stack.enter_context(_restored_generators(modules))
        stack.enter_context(_cleared_flags(modules))
        stack.enter_context(_restored_buffers(modules))
        stack.enter_context(_restored_attributes(modules))
        stack.enter_context(_restored_merged_weights(model))
        stack.enter_context(_cloned_inference_tensors(model))
        stack.enter_context(replaced_forwards(_list_quantized_layers(model), _dequantize))
        if list_float_types(model) != {torch.float32}:
            stack.enter_context(PromotedTypes())
        yield


@contextmanager
def frozen_parameters(model: nn.Module) -> Iterator[None]:
    """Let no parameter require a gradient while the context lasts."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in trainable:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


@contextmanager
def checkpointed(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Recompute ``blocks`` in the backward pass instead of keeping their activations."""
    with replaced_forwards(blocks, lambda forward: partial(checkpoint, forward, use_reentrant=False)):
        yield


@contextmanager
def replaced_forwards(
    modules: Sequence[nn.Module], replace: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> Iterator[None]:
    """Replace the forward of each of ``modules``; hooks still see its inputs and output.

    Args:
        modules: the modules.
        replace: returns the new forward for an old one.
    """
    own = [vars(module).get("forward") for module in modules]  # None if the module uses its class's forward
    for module in modules:
        module.forward = replace(module.forward)
    try:
        yield
    finally:
        for module, forward in zip(modules, own, strict=True):
            if forward is None:
                del module.forward
            else:
                module.forward = forward


@contextmanager
def restored_rng() -> Iterator[None]:
    """Restore the random state of torch, numpy and Python when the context ends."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with _restored_python_rng(), torch.random.fork_rng(devices=list(devices)):
        yield


@contextmanager
def _restored_python_rng() -> Iterator[None]:
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


@contextmanager
def _restored_generators(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Restore random generators that modules hold as attributes, also in lists and mappings."""
    held = _list_nested(value for module in modules for value in vars(module).values())
    generators = [each for each in held if isinstance(each, GENERATORS)]
    states: list[Any] = [
        each.get_state() if isinstance(each, torch.Generator) else copy.deepcopy(each) for each in generators
    ]
    try:
        yield
    finally:
        for each, state in zip(generators, states, strict=True):
            if isinstance(each, torch.Generator):
                each.set_state(state)
            elif isinstance(each, random.Random):
                each.setstate(state.getstate())
            else:
                each.bit_generator.state = state.bit_generator.state


def list_modules(model: nn.Module) -> list[nn.Module]:
    """List all modules, and those that some hide in lists or mappings, as people do with a frozen model."""
    found = dict.fromkeys(model.modules())
    for module in list(found):
        for value in vars(module).values():
            for each in _list_content(value):
                if isinstance(each, nn.Module) and each not in found:
                    found |= dict.fromkeys(each.modules())
    return list(found)


def _list_content(value: Any) -> Iterable[Any]:
    """List what a list, tuple, deque or mapping holds; nothing of other values, and of data, which are long."""
    if not isinstance(value, dict | list | tuple | deque) or len(value) > MAX_PARTS:
        return ()
    return value.values() if isinstance(value, dict) else value


def _list_nested(values: Iterable[Any]) -> list[Any]:
    """List values, what containers among them hold, what those hold, and so on; each object once."""
    found: dict[int, Any] = {}
    waiting = list(values)
    while waiting:
        each = waiting.pop()
        if id(each) not in found:
            found[id(each)] = each
            waiting.extend(_list_content(each))
    return list(found.values())


@contextmanager
def _cleared_flags(modules: Sequence[nn.Module]) -> Iterator[None]:
    # Set one by one and not with .eval(): a user may have frozen single layers in eval mode, and some LoRA layers merge
    # their weights when .eval() or .train() is called.
    flags = [
        (module, name, vars(module)[name])
        for module in modules
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
def _restored_buffers(modules: Sequence[nn.Module]) -> Iterator[None]:
    with ExitStack() as stack:  # it restores all others where one fails
        for module in modules:
            for name, buffer in module.named_buffers(recurse=False):
                stack.callback(_restore_buffer, module, name, buffer, buffer.detach(), buffer.detach().clone())
        yield


def _restore_buffer(module: nn.Module, name: str, buffer: torch.Tensor, view: torch.Tensor, copy: torch.Tensor) -> None:
    """Put a buffer back, with the shape of ``view``, which shares its memory, and the values of ``copy``."""
    if getattr(module, name, None) is not buffer:
        module._buffers[name] = buffer
    _restore_values(buffer, view, copy)


def _restore_values(tensor: torch.Tensor, view: torch.Tensor, copy: torch.Tensor) -> None:
    """Give a tensor the shape of ``view``, which shares its memory, and the values of ``copy``."""
    if _lacks_values(tensor):
        return
    with torch.inference_mode(tensor.is_inference()), torch.no_grad():
        if tensor.shape != view.shape or tensor.dtype != view.dtype:
            tensor.data = view
        if not _has_values(tensor, copy):
            tensor.copy_(copy)


def _has_values(tensor: torch.Tensor, copy: torch.Tensor) -> bool:
    """Check whether a tensor has the values of a copy, NaN where it has NaN."""
    if tensor.layout != torch.strided or tensor.is_nested:  # which torch does not compare
        return False
    return torch.equal(tensor, copy) or bool(((tensor == copy) | ((tensor != tensor) & (copy != copy))).all())


@contextmanager
def _restored_attributes(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Restore what a module counts, keeps or collects in each forward, since a training may go on with it.

    A module that prepares itself in its first forward stays prepared: where anything else was added, such as a buffer,
    a layer or a hook, its attributes are left as they are.
    """
    owners = [
        each
        for each in modules
        if not isinstance(each, torch.jit.ScriptModule) and not type(each).__module__.startswith(LIBRARIES_WITH_STATE)
    ]
    kept = [_Attributes(each) for each in owners]
    try:
        yield
    finally:
        if not any(each.has_new_hooks() for each in kept):  # one module may hook another
            for each in kept:
                each.restore()


class _Attributes:
    """The attributes of a module that are values or containers.

    Args:
        module: any.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._values, self._others = _list_attributes(module)
        held = _list_nested(self._values.values())
        self._contents = [(each, copy.copy(each)) for each in held if type(each) in CONTAINERS]
        self._tensors = [(each, each.detach(), each.detach().clone()) for each in held if _may_count(each)]
        self._hooks, self._parts = _list_hooks(module), _list_parts(module)

    def has_new_hooks(self) -> bool:
        """Whether the module has other hooks than at the start."""
        return _list_hooks(self._module) != self._hooks

    def restore(self) -> None:
        """Restore the attributes, unless the module prepared itself."""
        values, others = _list_attributes(self._module)
        if others != self._others or _list_parts(self._module) != self._parts:
            return
        owner, kind = vars(self._module), type(self._module)
        for name in values.keys() - self._values.keys():
            if not isinstance(getattr(kind, name, None), cached_property):
                del owner[name]
        owner.update(self._values)
        for container, content in self._contents:
            if not _holds_the_same(container, content):
                container.clear()
                (container.extend if isinstance(container, list | deque) else container.update)(content)
        for tensor, view, values_before in self._tensors:
            if _may_count(tensor):
                _restore_values(tensor, view, values_before)


def _may_count(value: Any) -> bool:
    """Whether a value is a tensor that a forward may count or average with.

    Parameters and data do not. Views do not either, whose memory a sharded strategy may free, nor shared memory, to
    which other processes may write meanwhile.
    """
    if type(value) is not torch.Tensor or value.layout != torch.strided or value.is_nested or value.is_meta:
        return False
    if value.requires_grad or value.numel() > MAX_VALUES or value.untyped_storage().nbytes() != value.nbytes:
        return False
    return value.is_cuda or not value.is_shared()


def _list_attributes(module: nn.Module) -> tuple[dict[str, Any], set[str]]:
    """List the attributes of a module that are values or containers, and the names of others."""
    own = {name: each for name, each in vars(module).items() if name not in OF_MODULES}
    values = {name: each for name, each in own.items() if isinstance(each, VALUES_AND_CONTAINERS)}
    return values, own.keys() - values.keys()


def _list_hooks(module: nn.Module) -> tuple[int, ...]:
    return *module._forward_hooks, *module._forward_pre_hooks


def _list_parts(module: nn.Module) -> tuple[str | int, ...]:
    return *module._parameters, *module._buffers, *map(id, module._modules.values())


def _holds_the_same(container: Any, content: Any) -> bool:
    """Whether a container holds the same objects as its copy: tensors cannot be compared by ``==``."""
    if len(container) != len(content):
        return False
    pairs: Any = zip(container, content, strict=True)
    if isinstance(container, dict):
        pairs = zip(itertools.chain(*container.items()), itertools.chain(*content.items()), strict=True)
    return all(one is other for one, other in pairs)


@contextmanager
def _restored_merged_weights(model: nn.Module) -> Iterator[None]:
    # PEFT's LoRA on nn.MultiheadAttention merges and unmerges in every forward, which leaves rounding errors. It
    # replaces the parameters by new ones, so the old ones can be put back.
    wrapped = [getattr(module, "base_layer", None) for module in model.modules()]
    weights = [
        (owner, name, weight)
        for attention in wrapped
        if isinstance(attention, nn.MultiheadAttention)
        for owner in attention.modules()
        for name, weight in owner.named_parameters(recurse=False)
    ]
    try:
        yield
    finally:
        for owner, name, weight in weights:
            vars(owner).pop(name, None)  # merged weights are plain attributes, which would hide the parameter
            owner.register_parameter(name, weight)


def _require_values(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if _lacks_values(parameter):
            raise ModelError(
                f"the weights of {type(model).__name__} are on the meta device and have no values, {name} among them; "
                "load them first, as with load_state_dict(weights, assign=True)."
            )


def _lacks_values(tensor: torch.Tensor) -> bool:
    return tensor.is_meta


@contextmanager
def _cloned_inference_tensors(model: nn.Module) -> Iterator[None]:
    # Autograd refuses to save an inference tensor for a backward pass, even if it does not differentiate by it.
    tensors: list[tuple[dict[str, Any], str, torch.Tensor]] = [
        (members, name, tensor)
        for module in model.modules()
        for members in (module._parameters, module._buffers)
        for name, tensor in members.items()
        if tensor is not None and tensor.is_inference()
    ]
    try:
        for members, name, tensor in tensors:
            copy = tensor.clone()
            members[name] = nn.Parameter(copy, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copy
        yield
    finally:
        for members, name, tensor in tensors:
            members[name] = tensor


def _list_quantized_layers(model: nn.Module) -> list[nn.Module]:
    # By the module of the class, because importing torch.ao takes time and is deprecated.
    is_quantized = "torch.ao.nn.quantized"
    return [
        module
        for module in model.modules()
        if type(module).__module__.startswith(is_quantized) and type(module).__name__ == "Linear"
    ]


def _dequantize(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Return the forward of a quantized linear layer with dequantized weights: its own kernel has no gradient."""
    layer = forward.__self__  # type: ignore[attr-defined]
    return lambda x: F.linear(x, layer.weight().dequantize(), layer.bias())
