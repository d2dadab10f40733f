"""The short repr is one line that shows shapes instead of numbers."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from clipcam_lightning.cam.representation import short_repr


@dataclass(frozen=True, eq=False, repr=False)
class Holder:
    value: Any
    hidden: Any = field(default=None, repr=False)

    __repr__ = short_repr


class MultiLine:
    def __repr__(self) -> str:
        return "first\n  second"


class Failing:
    def __repr__(self) -> str:
        raise RuntimeError("on purpose")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3, "3"),
        ("a fox", "'a fox'"),
        (None, "None"),
        (torch.zeros(2, 3), "float32[2, 3]"),
        (torch.zeros(2, 3, dtype=torch.bfloat16, device="meta"), "bfloat16[2, 3]"),
        (nn.Parameter(torch.zeros(2)), "float32[2]"),
        (torch.tensor(1), "int64[]"),
        (np.zeros((4, 5, 3), np.uint8), "uint8[4, 5, 3]"),
        (nn.Sequential(nn.Linear(2, 2), nn.ReLU()), "Sequential"),
        (b"\xff\xd8" * 500, "<1000 bytes>"),
        ((torch.zeros(2), "a"), "(float32[2], 'a')"),
        ([np.zeros(2), None], "[float64[2], None]"),
        ({"maps": torch.zeros(2)}, "{'maps': float32[2]}"),
        (((torch.zeros(1),),), "((float32[1],),)"),
        ((b"ab", b"c", b"", b"d", b"e"), "(<2 bytes>, <1 bytes>, <0 bytes>, <1 bytes>, ...)"),
        (list(range(100)), "[0, 1, 2, 3, ...]"),
        (Holder(torch.zeros(2)), "Holder(value=float32[2])"),
        (MultiLine(), "first second"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_value_is_shown_as(value: Any, text: str) -> None:
    assert repr(Holder(value, hidden="secret")) == f"Holder(value={text})"


@pytest.mark.parametrize(
    "value",
    ["x" * 10_000, ["x" * 10_000] * 10_000, {str(i): "x" * 1000 for i in range(1000)}, object(), Failing(), 10**4000],
    ids=lambda value: type(value).__name__,
)
def test_a_long_or_unusual_value_is_shown_on_one_short_line(value: Any) -> None:
    assert len(repr(Holder(value))) < 600
    assert "\n" not in repr(Holder(value))


def test_values_with_tensors_can_be_compared_and_hashed() -> None:
    first, second = Holder(torch.zeros(2)), Holder(torch.zeros(2))
    assert first != second
    assert len({first, second, first}) == 2
