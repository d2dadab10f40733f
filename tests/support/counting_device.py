"""A simulated device that counts how often the host waits for it.

Tensors on it report the device ``meta``, so that the host cannot read them, and hold their values in the memory of the
CPU. As on a GPU, operations on them return at once, while reading a value, finding where a mask is true, and copying
from memory that is not page-locked wait for the device.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only
from typing_extensions import override

aten = torch.ops.aten
DEVICE = torch.device("meta")
_READS = {
    *(aten._local_scalar_dense.default, aten.equal.default, aten.nonzero.default, aten.masked_select.default),
    *(aten.linalg_eigh.default, aten._linalg_eigh.default, aten.allclose.default),
}


class DeviceTensor(Tensor):
    """A tensor on the simulated device.

    Attributes:
        values: on the CPU.
    """

    values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor, requires_grad: bool = False) -> "DeviceTensor":
        tensor: DeviceTensor = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            values.shape,
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=DEVICE,
            requires_grad=requires_grad,
        )
        tensor.values = values
        return tensor

    def __init__(self, values: Tensor, requires_grad: bool = False) -> None:
        pass

    @override
    def __repr__(self) -> str:  # type: ignore[override]
        return f"DeviceTensor({tuple(self.shape)})"

    @override
    def tolist(self) -> Any:  # torch's own refuses subclasses
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {}, Counter())


class CountingDevice(TorchDispatchMode):
    """Runs operations on the simulated device, and counts those for which the host waits.

    Attributes:
        waits: by ``"read"``, from the device, and ``"write"``, to the device.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()

    @override
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {}, self.waits)


@contextmanager
def counting_device() -> Iterator[Counter[str]]:
    """Count how often the host waits while the context lasts.

    Yields:
        The counts, by ``"read"`` and ``"write"``.
    """
    with CountingDevice() as device:
        yield device.waits


def move_to_device(model: nn.Module) -> nn.Module:
    """Move parameters and buffers to the simulated device, in place."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(DeviceTensor(parameter.data), parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = DeviceTensor(buffer)
    return model


def _run(func: Any, args: Any, kwargs: dict[str, Any], waits: Counter[str]) -> Any:
    tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
    own = [each for each in tensors if isinstance(each, DeviceTensor)]
    assert not any(each.is_meta for each in tensors if not isinstance(each, DeviceTensor)), f"{func} of a meta tensor"
    target = kwargs.get("device")
    is_created = not own and target is not None and torch.device(target) == DEVICE
    if not own and not is_created:
        return func(*args, **kwargs)

    to_host = target is not None and torch.device(target).type == "cpu"
    if func in _READS or to_host or (func is aten.copy_.default and not isinstance(args[0], DeviceTensor)):
        waits["read"] += 1
    elif func in (aten.index.Tensor, aten.index_put.default, aten.index_put_.default):
        indices = [each for each in args[1] if each is not None]
        waits["read"] += any(each.dtype in (torch.bool, torch.uint8) for each in indices)
        waits["write"] += any(not isinstance(each, DeviceTensor) for each in indices)
    elif func is aten._to_copy.default and not own:
        waits["write"] += 1
    elif func is aten.copy_.default and not isinstance(args[1], DeviceTensor):
        waits["write"] += args[1].ndim > 0
    else:
        strays = [each for each in tensors if not isinstance(each, DeviceTensor) and each.ndim]
        assert not strays, f"{func} of tensors on two devices"

    if "device" in kwargs:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    inner_args, inner_kwargs = tree_map_only(DeviceTensor, lambda each: each.values, (args, kwargs))
    result = func(*inner_args, **inner_kwargs)
    if to_host:
        return result
    wrapped = tree_map_only(Tensor, DeviceTensor, result)
    return return_and_correct_aliasing(func, args, kwargs, wrapped) if own else wrapped
