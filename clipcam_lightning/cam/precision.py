"""Float types of a model: which it has, and operations between different ones."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import reduce
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from typing_extensions import override

Precision: TypeAlias = Literal["float32", "bfloat16"]
"""In which the image tower computes a map: as its weights are, or under autocast to bfloat16."""
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

# Operations that refuse operands of different float types, where a sum or a product converts to the wider type.
_PRODUCTS = frozenset({
    *(F.linear, F.conv1d, F.conv2d, F.bilinear, F.scaled_dot_product_attention, F.multi_head_attention_forward),
    *(torch.matmul, Tensor.matmul, Tensor.__matmul__, Tensor.__rmatmul__, torch.bmm, Tensor.bmm, torch.mm, Tensor.mm),
    *(torch.addmm, torch.baddbmm, torch.einsum),
})  # fmt: skip
_NORMS = frozenset({F.layer_norm, F.group_norm, F.batch_norm, F.rms_norm})


class PromotedTypes(TorchFunctionMode):
    """Let linear layers, convolutions, norms and attention take operands of different float types.

    They compute in the widest of them, as sums and products do. A model whose parts have different types, such as a
    projection in float32 after a tower in bfloat16, otherwise runs under autocast only. Operands of one type stay as
    they are, and so do those of products under autocast, which converts them itself.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> layer = nn.Linear(4, 2, dtype=torch.bfloat16)
        >>> with PromotedTypes():
        ...     layer(torch.ones(1, 4)).dtype
        torch.float32
    """

    @override
    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _NORMS or (func in _PRODUCTS and not _is_autocast(args)):
            float_types = {value.dtype for value in (*args, *kwargs.values()) if _is_float(value)}
            if len(float_types) > 1:
                widest = reduce(torch.promote_types, float_types)
                args = [value.to(widest) if _is_float(value) else value for value in args]
                kwargs = {name: value.to(widest) if _is_float(value) else value for name, value in kwargs.items()}
        return func(*args, **kwargs)


@contextmanager
def autocast_to(precision: Precision, device: torch.device) -> Iterator[None]:
    """Let matrix products, convolutions and attention compute in ``precision``, and norms in float32.

    Args:
        precision: ``"float32"`` changes nothing.
        device: of the model.
    """
    if precision == "float32":
        yield
    else:
        with torch.autocast(device.type, torch.bfloat16), PromotedTypes():
            yield


def list_float_types(module: nn.Module) -> set[torch.dtype]:
    """List the float types of the parameters."""
    return {parameter.dtype for parameter in module.parameters() if parameter.is_floating_point()}


def find_input_type(module: nn.Module) -> torch.dtype:
    """Find the float type in which an image encoder takes pixels: that of its first convolution or linear layer.

    Args:
        module: the image encoder; its first parameter may have another type, such as a class token in float32.

    Returns:
        The type; without such a layer, that of the first float parameter, and float32 without any.
    """
    layers = (part for part in module.modules() if isinstance(part, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear))
    # Not layer.weight: a parametrization, such as spectral norm, computes that anew, and steps forward in train mode.
    weights = itertools.chain(*(layer.parameters() for layer in layers), module.parameters())
    return next((weight.dtype for weight in weights if weight.is_floating_point()), torch.float32)


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _is_autocast(values: Sequence[Any]) -> bool:
    return any(isinstance(value, Tensor) and torch.is_autocast_enabled(value.device.type) for value in values)
