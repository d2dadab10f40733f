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
_GATED = (F.gelu, F.silu, F.mish, F.hardswish, F.elu, F.celu, F.selu, F.leaky_relu)
# Functions that are used as gates.
_GATES = (torch.sigmoid, Tensor.sigmoid, F.sigmoid, torch.tanh, Tensor.tanh, F.tanh, torch.erf, Tensor.erf)
_DIVISIONS = (torch.div, Tensor.div, Tensor.__truediv__, torch.true_divide, Tensor.true_divide, torch.divide)
_PRODUCTS = (
    *(torch.mul, Tensor.mul, Tensor.mul_, Tensor.__mul__, Tensor.__rmul__, Tensor.__imul__),
    *(torch.multiply, Tensor.multiply, torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm),
)


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """Return a tensor equal to ``x``, whose gradient reaches ``x`` multiplied by ``factor``."""
    return x.detach() + factor * (x - x.detach()) if x.requires_grad else x


def _layer_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    dims = tuple(range(-len(normalized_shape), 0))
    wide = _widen(x)
    centred = wide - wide.mean(dims, keepdim=True)
    normed = centred * (centred.detach().square().mean(dims, keepdim=True) + eps).rsqrt()
    normed = normed if weight is None else normed * weight
    return (normed if bias is None else normed + bias).to(x.dtype)


def _rms_norm(
    x: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    dims = tuple(range(-len(normalized_shape), 0))
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    wide = _widen(x)
    normed = wide * (wide.detach().square().mean(dims, keepdim=True) + eps).rsqrt()
    return (normed if weight is None else normed * weight).to(x.dtype)


def _widen(x: Tensor) -> Tensor:
    """Convert half precision to float32, in which torch computes the statistics of its norms."""
    return x if x.dtype == torch.float64 else x.float()


def _normalize(x: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: Tensor | None = None) -> Tensor:
    length: Tensor = x.detach().norm(p, dim, keepdim=True)
    return x / length.clamp_min(eps)


def _with_constant_divisor(function: Any) -> Callable[..., Any]:
    def apply(x: Any, divisor: Any, *args: Any, **kwargs: Any) -> Any:
        return function(x, divisor.detach() if isinstance(divisor, Tensor) else divisor, *args, **kwargs)

    return apply


def _with_constant_gate(function: Any) -> Callable[..., Any]:
    def apply(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        own = x.detach()
        # At 0 the gate is the derivative there.
        step = torch.where(own == 0, torch.finfo(own.dtype).eps, own)
        kwargs.pop("inplace", None)
        gate: Tensor = function(step, *args, **kwargs) / step
        return x * gate

    return apply


def _detached(function: Any) -> Callable[..., Any]:
    return lambda *args, **kwargs: function(*args, **kwargs).detach()


def _with_halved_gradients(function: Any) -> Callable[..., Any]:
    def apply(*args: Any, **kwargs: Any) -> Any:
        factors = args[:2]
        if len(factors) == 2 and all(isinstance(each, Tensor) and each.requires_grad for each in factors):
            args = (*(scale_gradient(each, 0.5) for each in factors), *args[2:])
        return function(*args, **kwargs)

    return apply


def _glu(x: Tensor, dim: int = -1) -> Tensor:
    value, gate = x.chunk(2, dim)
    return scale_gradient(value, 0.5) * gate.detach().sigmoid()


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

    Attributes:
        rules: the replacement of each operation that has one.
    """

    rules: ClassVar[Mapping[Any, Callable[..., Any]]] = {
        F.layer_norm: _layer_norm,
        F.rms_norm: _rms_norm,
        F.normalize: _normalize,
        torch.rsqrt: _detached(torch.rsqrt),
        Tensor.rsqrt: _detached(Tensor.rsqrt),
        **{function: _with_constant_divisor(function) for function in _DIVISIONS},
    }

    @override
    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return self.rules.get(func, func)(*args, **(kwargs or {}))


class AttnLrpRules(ConstantNormalizers):
    r"""The rules of AttnLRP, by which gradient times activation is relevance.

    - Norms: their divisors are constant.
    - Activation functions: :math:`f(x) = x \cdot g(x)`, where :math:`g` is constant (the identity rule). Sigmoid, tanh
      and erf count as gates :math:`g` wherever they occur, and pass on no relevance themselves.
    - Products of two activations, :math:`Q K^\top`, :math:`A V` and gated units: each factor gets half of the relevance
      (the uniform rule). The learned query of a pool counts as a factor.
    - The softmax is differentiated (its Taylor decomposition).
    - Everything else is linear and differentiated (the epsilon rule with epsilon to 0).

    Products inside ``einsum``, ``addcmul`` and fused operations of other libraries are differentiated without a rule.

    Attributes:
        rules: the replacement of each operation that has one.

    Source: Achtibat et al. 2024, sec. 3.3, https://arxiv.org/abs/2402.05602
    """

    rules: ClassVar[Mapping[Any, Callable[..., Any]]] = {
        **ConstantNormalizers.rules,
        **{function: _with_constant_gate(function) for function in _GATED},
        **{function: _detached(function) for function in _GATES},
        **{function: _with_halved_gradients(function) for function in _PRODUCTS},
        F.glu: _glu,
        F.scaled_dot_product_attention: _attend,
        F.multi_head_attention_forward: _attend_with_heads,
    }
