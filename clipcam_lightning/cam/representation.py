"""Short reprs for dataclasses that hold tensors, arrays or modules."""

import reprlib
from dataclasses import fields
from typing import Any

import numpy as np
from torch import Tensor, nn


def short_repr(value: Any) -> str:
    """Return one line with the fields of a dataclass, where tensors and arrays are shown by dtype and shape.

    Assign the function as ``__repr__`` of a class that is declared with ``@dataclass(eq=False, repr=False)``: the
    generated ``__repr__`` prints every number, and the generated ``__eq__`` fails on tensors of more than one element.
    Long texts and collections are abridged.

    Args:
        value: an instance of a dataclass.

    Returns:
        The class with its fields, such as ``Explanation(maps=float32[2, 1, 7, 7], method='gradcam')``; fields that
        are declared with ``repr=False`` are left out.
    """
    shown = (f"{field.name}={_ABRIDGE.repr(getattr(value, field.name))}" for field in fields(value) if field.repr)
    return f"{type(value).__name__}({', '.join(shown)})"


class _Abridge(reprlib.Repr):
    """Abridges the repr of any value, also of one inside collections, to one short line."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 60
        self.maxtuple = self.maxlist = 4

    def repr_bytes(self, value: bytes, _level: int) -> str:
        return f"<{len(value)} bytes>"

    def repr_instance(self, value: Any, level: int) -> str:
        """Represent a value of any type that is not built in."""
        if isinstance(value, Tensor | np.ndarray):
            return f"{value.dtype}{list(value.shape)}".removeprefix("torch.")
        if isinstance(value, nn.Module):
            return type(value).__name__
        return " ".join(super().repr_instance(value, level).split())


_ABRIDGE = _Abridge()
