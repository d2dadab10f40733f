"""Every attention of a tower passes through here: seen, and if wanted replaced, whatever library it comes from.

All of them end in torch's ``scaled_dot_product_attention`` or ``multi_head_attention_forward``: open_clip, timm with
its rotary positions, transformers, the OpenAI layout, LoRA around any of them. So that is where it is intercepted, and
no tower needs to say how its library computes queries, keys and values.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from typing_extensions import override

from clipcam_lightning.errors import TowerError


@dataclass(frozen=True)
class Attention:
    """One call of attention over ``h`` heads: ``t`` queries look at ``s`` keys.

    Attributes:
        query, key, value: per head, positions and norms already applied.
        scale: factor of the products of query and key.
        mask: added to the scaled products; ``None`` where everything is seen.
    """

    query: Float[Tensor, "b h t k"]
    key: Float[Tensor, "b h s k"]
    value: Float[Tensor, "b h s v"]
    scale: float
    mask: Tensor | None = None

    def weights(self) -> Float[Tensor, "b h t s"]:
        """How much each query takes from each key: rows that sum to 1."""
        scores = self.scale * self.query @ self.key.transpose(-2, -1)
        return (scores if self.mask is None else scores + self.mask).softmax(dim=-1)

    def first(self) -> "Attention":
        """The same for the first query alone."""
        mask = self.mask if self.mask is None or self.mask.shape[-2] == 1 else self.mask[..., :1, :]
        return replace(self, query=self.query[:, :, :1], mask=mask)

    def detached(self) -> "Attention":
        """The same outside any graph."""
        return replace(self, query=self.query.detach(), key=self.key.detach(), value=self.value.detach())

    def output(self) -> Float[Tensor, "b h t v"]:
        """What the queries take along, computed as the model itself does."""
        return F.scaled_dot_product_attention(self.query, self.key, self.value, attn_mask=self.mask, scale=self.scale)


Attend: TypeAlias = Callable[[int, Attention], Float[Tensor, "b h t v"]]
"""Gives the output of the attention in the ``i``-th of the modules; may record what it likes."""


@contextmanager
def attending(modules: Sequence[nn.Module], attend: Attend) -> Iterator[None]:
    """Hand the attention inside each of ``modules`` to ``attend``, for the passes made in the ``with`` block.

    Raises:
        TowerError: (from the pass) an attention has biases of its own for keys or drops keys.
    """
    inside: list[int] = []

    def enter(i: int) -> Callable[..., None]:
        return lambda *_: inside.append(i)

    handles = []
    for i, module in enumerate(modules):
        handles.append(module.register_forward_pre_hook(enter(i)))
        handles.append(module.register_forward_hook(lambda *_: inside.clear(), always_call=True))
    try:
        with _Interception(lambda attention: attend(inside[-1], attention) if inside else attention.output()):
            yield
    finally:
        for handle in handles:
            handle.remove()


class _Interception(TorchFunctionMode):
    def __init__(self, attend: Callable[[Attention], Tensor]) -> None:
        self.attend = attend

    @override
    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            return self.attend(_of_sdpa(*args, **(kwargs or {})))
        if func is F.multi_head_attention_forward:
            return self._multi_head(*args, **(kwargs or {})), None
        return func(*args, **(kwargs or {}))

    def _multi_head(self, *args: Any, **kwargs: Any) -> Tensor:
        """The same as torch's own, with ``attend`` in its middle; sequence first, as torch hands it on."""
        call = _MULTI_HEAD.bind(*args, **kwargs)
        call.apply_defaults()
        given = call.arguments
        if given["bias_k"] is not None or given["add_zero_attn"] or given["key_padding_mask"] is not None:
            raise TowerError(
                "attention with a key bias, a zero key or key padding in nn.MultiheadAttention is unknown."
            )
        inputs = (given["query"], given["key"], given["value"])
        biases = given["in_proj_bias"].chunk(3) if given["in_proj_bias"] is not None else (None,) * 3
        matrices = (
            (given["q_proj_weight"], given["k_proj_weight"], given["v_proj_weight"])
            if given["use_separate_proj_weight"]
            else given["in_proj_weight"].chunk(3)
        )
        query, key, value = (
            # [s, b, d] -> [b, h, s, d / h]
            F.linear(x, matrix, bias).unflatten(2, (given["num_heads"], -1)).permute(1, 2, 0, 3)
            for x, matrix, bias in zip(inputs, matrices, biases, strict=True)
        )
        mask = given["attn_mask"]
        if mask is not None and mask.dtype == torch.bool:
            mask = ~mask  # here True is what must not be seen, there what may
        if mask is not None and mask.ndim == 3:
            mask = mask.unflatten(0, (-1, given["num_heads"]))
        heads = self.attend(_of_sdpa(query, key, value, mask))
        merged = heads.permute(2, 0, 1, 3).flatten(2)
        return F.linear(merged, given["out_proj_weight"], given["out_proj_bias"])


_MULTI_HEAD = inspect.signature(F.multi_head_attention_forward)


def _of_sdpa(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Attention:
    """The arguments of ``scaled_dot_product_attention`` as an :class:`Attention`; in eval mode nothing is dropped."""
    if is_causal:
        raise TowerError("causal attention between patches is unknown.")
    if enable_gqa:
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(~attn_mask, float("-inf"))
    return Attention(query, key, value, scale or query.shape[-1] ** -0.5, attn_mask)
