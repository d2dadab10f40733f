"""Short reprs for dataclasses that hold tensors, arrays or modules."""

import reprlib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
from torch import Tensor, nn

_abridge = reprlib.Repr()
_abridge.maxstring = _abridge.maxother = 60
_abridge.maxtuple = _abridge.maxlist = 4


def short_repr(value: Any) -> str:
    """Name the fields of a dataclass, with tensors and arrays by dtype and shape.

    Assign it as ``__repr__`` of a class that is declared with ``@dataclass(eq=False, repr=False)``: the generated
    ``__repr__`` prints every number, and the generated ``__eq__`` fails on tensors of more than one element.

    Args:
        value: an instance of a dataclass.

    Returns:
        One line, such as ``Explanation(maps=float32[2, 1, 7, 7], method='gradcam')``.
    """
    shown = ", ".join(f"{field.name}={_short(getattr(value, field.name))}" for field in fields(value) if field.repr)
    return f"{type(value).__name__}({shown})"


def _short(value: Any) -> str:
    if isinstance(value, Tensor | np.ndarray):
        return f"{value.dtype}{list(value.shape)}".removeprefix("torch.")
    if isinstance(value, nn.Module):
        return type(value).__name__
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    if isinstance(value, tuple | list) and any(isinstance(each, Tensor | np.ndarray | bytes) for each in value):
        return f"[{len(value)} x {_short(value[0])}]"
    if isinstance(value, Mapping) and len(value) > 4:
        return f"{{{len(value)} entries}}"
    return _abridge.repr(value)
