"""Float types of a model: which it has, and operations between different ones."""

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from typing_extensions import override

# Operations that refuse operands of different float types, where a sum or a product converts to the wider type.
_WITHOUT_PROMOTION = frozenset({
    *(F.linear, F.conv1d, F.conv2d, F.layer_norm, F.group_norm, F.batch_norm, F.rms_norm, F.bilinear),
    *(F.scaled_dot_product_attention, F.multi_head_attention_forward),
    *(torch.matmul, Tensor.matmul, Tensor.__matmul__, Tensor.__rmatmul__, torch.bmm, Tensor.bmm, torch.mm, Tensor.mm),
    *(torch.addmm, torch.baddbmm, torch.einsum),
})  # fmt: skip


class PromotedTypes(TorchFunctionMode):
    """Let linear layers, convolutions, norms and attention take operands of different float types.

    They compute in the widest of them, as sums and products do. A model whose parts have different types, such as a
    projection in float32 after a tower in bfloat16, otherwise runs under autocast only. Operands of one type stay as
    they are.

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
        if func in _WITHOUT_PROMOTION:
            float_types = {value.dtype for value in (*args, *kwargs.values()) if _is_float(value)}
            if len(float_types) > 1:
                widest = reduce(torch.promote_types, float_types)
                args = [value.to(widest) if _is_float(value) else value for value in args]
                kwargs = {name: value.to(widest) if _is_float(value) else value for name, value in kwargs.items()}
        return func(*args, **kwargs)


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
    weights = (*(layer.weight for layer in layers), *module.parameters())
    return next((weight.dtype for weight in weights if weight.is_floating_point()), torch.float32)


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()
