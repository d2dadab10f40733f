"""Rules by which relevance passes through the operations of a network.

Under these rules, gradient times activation is the relevance that layer-wise propagation assigns to the activation, for
the cost of one backward pass. The operations are intercepted as torch's own functions, so most towers need not describe
how their library computes them. Parameters must not require a gradient, so that whatever does is an activation.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from typing_extensions import override

from clipcam_lightning.cam.attention import Attention, attend_with_heads, from_sdpa

# Functions f with f(x) = x g(x); the gate g is held constant.
_GATED = (
    *(F.gelu, F.silu, F.mish, F.hardswish, F.elu, F.celu, F.selu, F.leaky_relu, F.relu6, F.hardtanh),
    *(torch.square, Tensor.square),
)
# Functions that are used as gates.
_GATES = (
    *(torch.sigmoid, Tensor.sigmoid, F.sigmoid, torch.special.expit, F.hardsigmoid),
    *(torch.tanh, Tensor.tanh, F.tanh, torch.erf, Tensor.erf),
)
_POWERS = (torch.pow, Tensor.pow, Tensor.__pow__)
_DIVISIONS = (torch.div, Tensor.div, Tensor.__truediv__, torch.true_divide, Tensor.true_divide, torch.divide)
_RECIPROCALS = (
    *(torch.rsqrt, Tensor.rsqrt, torch.reciprocal, Tensor.reciprocal),
    *(Tensor.__rtruediv__, Tensor.__rdiv__),  # a number divided by a tensor
)
_PRODUCTS = (
    *(torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__, torch.multiply, Tensor.multiply),
    *(torch.matmul, Tensor.matmul, Tensor.__matmul__, Tensor.__rmatmul__, torch.linalg.matmul),
    *(torch.mm, Tensor.mm, torch.bmm, Tensor.bmm, torch.mv, Tensor.mv, torch.einsum, torch.tensordot),
    *(torch.inner, Tensor.inner, torch.dot, Tensor.dot, torch.outer, Tensor.outer, F.bilinear),
)
# Sums of the first argument and a product of the others.
_SUMS_WITH_PRODUCT = (
    *(torch.addmm, Tensor.addmm, torch.baddbmm, Tensor.baddbmm, torch.addbmm, Tensor.addbmm),
    *(torch.addmv, Tensor.addmv, torch.addcmul, Tensor.addcmul),
)


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """Return a tensor equal to ``x``, whose gradient reaches ``x`` multiplied by ``factor``."""
    return x.detach() + factor * (x - x.detach()) if x.requires_grad else x


def list_operations(output: Tensor) -> frozenset[str]:
    """List the operations in the autograd graph of a tensor by their names there, such as ``"GeluBackward0"``."""
    visited, waiting = set(), [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in visited:
            visited.add(node)
            waiting.extend(source for source, _ in node.next_functions)
    return frozenset(node.name() for node in visited)


def _layer_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    dims = tuple(range(-len(normalized_shape), 0))
    wide = _widen(x)
    normed = _divide_by_constant_length(wide - wide.mean(dims, keepdim=True), dims, eps)
    normed = normed if weight is None else normed * weight
    return (normed if bias is None else normed + bias).to(x.dtype)


def _group_norm(
    x: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    groups = _widen(x).unflatten(1, (num_groups, -1)).flatten(2)
    normed = _divide_by_constant_length(groups - groups.mean(dim=2, keepdim=True), (2,), eps).view(x.shape)
    per_channel = (-1, *(1,) * (x.ndim - 2))
    normed = normed if weight is None else normed * weight.view(per_channel)
    return (normed if bias is None else normed + bias.view(per_channel)).to(x.dtype)


def _rms_norm(
    x: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    dims = tuple(range(-len(normalized_shape), 0))
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    normed = _divide_by_constant_length(_widen(x), dims, eps)
    return (normed if weight is None else normed * weight).to(x.dtype)


def _widen(x: Tensor) -> Tensor:
    """Convert half precision to float32, in which torch computes the statistics of its norms."""
    return x if x.dtype == torch.float64 else x.float()


def _divide_by_constant_length(x: Tensor, dims: tuple[int, ...], eps: float) -> Tensor:
    """Divide ``x`` by the root of the mean square over ``dims``."""
    return x * (x.detach().square().mean(dims, keepdim=True) + eps).rsqrt()


def _normalize(x: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: Tensor | None = None) -> Tensor:
    length: Tensor = x.detach().norm(p, dim, keepdim=True)
    return x / length.clamp_min(eps)


def _with_constant_divisor(function: Any) -> Callable[..., Any]:
    def apply(x: Any, other: Any, *args: Any, **kwargs: Any) -> Any:
        return function(x, other.detach() if isinstance(other, Tensor) else other, *args, **kwargs)

    return apply


def _with_constant_gate(function: Any) -> Callable[..., Any]:
    def apply(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        own = x.detach()
        # At 0 the gate is the derivative there.
        step = torch.where(own == 0, torch.finfo(own.dtype).eps, own)
        copy = step.clone()
        values: Tensor = function(copy, *args, **kwargs)
        output = x * (values / step)
        return x.copy_(output) if values is copy else output  # the function worked in place

    return apply


def _with_constant_reciprocal(function: Any, positive: Callable[..., Any]) -> Callable[..., Any]:
    """Hold negative powers constant, and let ``positive`` compute the others."""

    def apply(x: Any, exponent: Any) -> Any:
        if not (isinstance(x, Tensor) and isinstance(exponent, int | float)):
            return function(x, exponent)
        return positive(x, exponent) if exponent > 0 else function(x, exponent).detach()

    return apply


def _detached(function: Any) -> Callable[..., Any]:
    return lambda *args, **kwargs: function(*args, **kwargs).detach()


def _with_shared_relevance(function: Any, summands: int = 0) -> Callable[..., Any]:
    """Divide the gradient of a product by the number of its factors that are activations.

    Args:
        function: returns a product of its arguments.
        summands: number of the first arguments that are added to the product.
    """

    def apply(*args: Any, **kwargs: Any) -> Any:
        if len(args) == 2 and isinstance(args[1], list | tuple):  # einsum takes its operands also as a list
            args = (args[0], *args[1])
        factors = (*args[summands:], *kwargs.values())
        share = 1 / max(sum(map(_is_activation, factors)), 1)
        args = (*args[:summands], *(_scale_activation(each, share) for each in args[summands:]))
        return function(*args, **{name: _scale_activation(each, share) for name, each in kwargs.items()})

    return apply


def _is_activation(value: object) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def _scale_activation(value: Any, share: float) -> Any:
    return scale_gradient(value, share) if share != 1 and _is_activation(value) else value


def _in_place(rule: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda x, *args, **kwargs: x.copy_(rule(x, *args, **kwargs))


def _glu(x: Tensor, dim: int = -1) -> Tensor:
    value, gate = x.chunk(2, dim)
    return value * gate.detach().sigmoid()


def _attend(*args: Any, **kwargs: Any) -> Tensor:
    return _share_relevance(from_sdpa(*args, **kwargs)).output()


def _attend_with_heads(*args: Any, **kwargs: Any) -> tuple[Tensor, None]:
    return attend_with_heads(lambda attention: _share_relevance(attention).output(), *args, **kwargs), None


def _share_relevance(attention: Attention) -> Attention:
    # Of the relevance of A V, the values get one half. Of the other half, queries and keys get one half each.
    return replace(
        attention,
        query=scale_gradient(attention.query, 0.25),
        key=scale_gradient(attention.key, 0.25),
        value=scale_gradient(attention.value, 0.5),
    )


class ConstantNormalizers(TorchFunctionMode):
    """Hold the divisors of norms constant: the deviation of a layer norm, and the length of an embedding.

    The derivative of a divisor subtracts from every input the evidence along the input itself. For a cosine that is
    the evidence of the object; for a layer norm it makes the gradient orthogonal to the tokens.

    Constant are the deviations of layer, group and RMS norms, the length in ``normalize``, and every divisor in a
    division, reciprocal or negative power.

    Attributes:
        rules: the replacement of each operation that has one.
        replaced: names, in the autograd graph, of operations that the rules replace. One that is in the graph all the
            same was run where it is not intercepted, such as in TorchScript.
    """

    rules: ClassVar[Mapping[Any, Callable[..., Any]]] = {
        F.layer_norm: _layer_norm,
        F.group_norm: _group_norm,
        F.rms_norm: _rms_norm,
        F.normalize: _normalize,
        **{function: _detached(function) for function in _RECIPROCALS},
        **{function: _with_constant_reciprocal(function, function) for function in _POWERS},
        **{function: _with_constant_divisor(function) for function in _DIVISIONS},
        **{function: _in_place(_with_constant_divisor(torch.div)) for function in (Tensor.div_, Tensor.__itruediv__)},
    }
    replaced: ClassVar[frozenset[str]] = frozenset({
        *("NativeLayerNormBackward0", "NativeGroupNormBackward0", "FusedRmsNormBackward0", "RsqrtBackward0"),
        *("CompiledFunctionBackward", "torch::jit::(anonymous namespace)::DifferentiableGraphBackward"),
    })  # fmt: skip

    @override
    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return self.rules.get(func, func)(*args, **(kwargs or {}))


class AttnLrpRules(ConstantNormalizers):
    r"""The rules of AttnLRP, by which gradient times activation is relevance.

    - Norms: their divisors are constant.
    - Activation functions: :math:`f(x) = x \cdot g(x)`, where :math:`g` is constant (the identity rule).
    - Products of activations, :math:`Q K^\top`, :math:`A V` and gated units such as SwiGLU and GEGLU: each of :math:`n`
      factors gets :math:`1/n` of the relevance (the uniform rule). The learned query of a pool counts as a factor.
    - The softmax is differentiated (its Taylor decomposition).
    - Everything else is linear and differentiated (the epsilon rule with epsilon to 0), the rotations of rotary
      positions, too.

    Sigmoid, tanh and erf count as gates :math:`g` wherever they occur: the other factor gets all of the relevance. The
    identity rule would let them pass on half, divided by inputs close to 0.

    Operations inside autograd functions of other libraries, such as fused kernels, are differentiated without a rule.

    Attributes:
        rules, replaced: as in :class:`ConstantNormalizers`.

    Source: Achtibat et al. 2024, sec. 3.3, https://arxiv.org/abs/2402.05602; gates: Arras et al. 2017,
    https://arxiv.org/abs/1706.07206
    """

    rules: ClassVar[Mapping[Any, Callable[..., Any]]] = {
        **ConstantNormalizers.rules,
        **{function: _with_constant_gate(function) for function in _GATED},
        **{function: _with_constant_reciprocal(function, _with_constant_gate(function)) for function in _POWERS},
        **{function: _detached(function) for function in _GATES},
        **{function: _with_shared_relevance(function) for function in _PRODUCTS},
        **{function: _with_shared_relevance(function, summands=1) for function in _SUMS_WITH_PRODUCT},
        **{function: _in_place(_with_shared_relevance(torch.mul)) for function in (Tensor.mul_, Tensor.__imul__)},
        F.glu: _glu,
        F.scaled_dot_product_attention: _attend,
        F.multi_head_attention_forward: _attend_with_heads,
    }
    replaced: ClassVar[frozenset[str]] = ConstantNormalizers.replaced | {
        *("GeluBackward0", "SiluBackward0", "MishBackward0", "HardswishBackward0", "EluBackward0", "GluBackward0"),
        *("SigmoidBackward0", "TanhBackward0", "ErfBackward0", "HardsigmoidBackward0", "AddcmulBackward0"),
    }
