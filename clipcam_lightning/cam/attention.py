"""Record or replace the attention of any tower, whatever library it comes from.

open_clip, timm (rotary positions included), transformers, the OpenAI layout and LoRA around any of them all end in
torch's ``scaled_dot_product_attention`` or ``multi_head_attention_forward``. Since these two functions are intercepted,
no tower has to describe how its library computes queries, keys and values.
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

from clipcam_lightning.cam.representation import short_repr
from clipcam_lightning.errors import TowerError


@dataclass(frozen=True, eq=False, repr=False)
class Attention:
    """The inputs of one call of attention with ``h`` heads, ``t`` queries and ``s`` keys.

    Attributes:
        query, key, value: per head, with positions and norms applied.
        scale: factor of the products of query and key.
        mask: added to the scaled products; ``None`` if every query attends to every key.
    """

    query: Float[Tensor, "b h t k"]
    key: Float[Tensor, "b h s k"]
    value: Float[Tensor, "b h s v"]
    scale: float
    mask: Tensor | None = None

    __repr__ = short_repr

    def weights(self) -> Float[Tensor, "b h t s"]:
        """Compute the attention weights. They are at least 0 and sum to 1 over the keys."""
        scores = self.scale * self.query @ self.key.transpose(-2, -1)
        return (scores if self.mask is None else scores + self.mask).softmax(dim=-1)

    def first_query(self) -> "Attention":
        """Return the attention of the first query alone."""
        mask = self.mask if self.mask is None or self.mask.shape[-2] == 1 else self.mask[..., :1, :]
        return replace(self, query=self.query[:, :, :1], mask=mask)

    def detach(self) -> "Attention":
        """Return a copy whose query, key and value are detached from the graph."""
        return replace(self, query=self.query.detach(), key=self.key.detach(), value=self.value.detach())

    def output(self) -> Float[Tensor, "b h t v"]:
        """Compute the output of the heads with torch's own kernel, as the model does."""
        return F.scaled_dot_product_attention(self.query, self.key, self.value, attn_mask=self.mask, scale=self.scale)


AttentionHook: TypeAlias = Callable[[int, Attention], Float[Tensor, "b h t v"]]
"""Returns the output of the heads for the attention in the ``i``-th module; may record what it is called with."""


@contextmanager
def intercepted_attention(modules: Sequence[nn.Module], hook: AttentionHook) -> Iterator[None]:
    """Let ``hook`` compute the attention inside each of ``modules``.

    Args:
        modules: modules that compute attention in their forward.
        hook: called with the index of the module and its attention; returns the output of the heads.

    Raises:
        TowerError: (from the forward) an attention uses key biases, key padding or causality.
    """
    entered: list[int] = []

    def enter(i: int) -> Callable[..., None]:
        return lambda *_: entered.append(i)

    handles = []
    for i, module in enumerate(modules):
        handles.append(module.register_forward_pre_hook(enter(i)))
        handles.append(module.register_forward_hook(lambda *_: entered.clear(), always_call=True))
    try:
        with _Interception(lambda attention: hook(entered[-1], attention) if entered else attention.output()):
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
            return self.attend(from_sdpa(*args, **(kwargs or {})))
        if func is F.multi_head_attention_forward:
            return attend_with_heads(self.attend, *args, **(kwargs or {})), None
        return func(*args, **(kwargs or {}))


_MULTI_HEAD = inspect.signature(F.multi_head_attention_forward)


def attend_with_heads(attend: Callable[[Attention], Tensor], *args: Any, **kwargs: Any) -> Float[Tensor, "t b d"]:
    """Compute ``multi_head_attention_forward`` (sequence first) with ``attend`` in place of its attention.

    Args:
        attend: returns the output of the heads.
        *args, **kwargs: of ``multi_head_attention_forward``.

    Returns:
        The output of the attention, sequence first.

    Raises:
        TowerError: the attention uses a key bias, a zero key or key padding.
    """
    call = _MULTI_HEAD.bind(*args, **kwargs)
    call.apply_defaults()
    arguments = call.arguments
    if arguments["bias_k"] is not None or arguments["add_zero_attn"] or arguments["key_padding_mask"] is not None:
        raise TowerError(
            "nn.MultiheadAttention with a key bias, a zero key or key padding is not supported; "
            "use a method that does not read attention, such as hirescam."
        )
    inputs = (arguments["query"], arguments["key"], arguments["value"])
    biases = arguments["in_proj_bias"].chunk(3) if arguments["in_proj_bias"] is not None else (None,) * 3
    matrices = (
        (arguments["q_proj_weight"], arguments["k_proj_weight"], arguments["v_proj_weight"])
        if arguments["use_separate_proj_weight"]
        else arguments["in_proj_weight"].chunk(3)
    )
    query, key, value = (
        # [s, b, d] -> [b, h, s, d / h]
        F.linear(x, matrix, bias).unflatten(2, (arguments["num_heads"], -1)).permute(1, 2, 0, 3)
        for x, matrix, bias in zip(inputs, matrices, biases, strict=True)
    )
    mask = arguments["attn_mask"]
    if mask is not None and mask.dtype == torch.bool:
        mask = ~mask  # True means "hidden" in multi_head_attention_forward, "visible" in SDPA
    if mask is not None and mask.ndim == 3:
        mask = mask.unflatten(0, (-1, arguments["num_heads"]))
    merged = attend(from_sdpa(query, key, value, mask)).permute(2, 0, 1, 3).flatten(2)
    return F.linear(merged, arguments["out_proj_weight"], arguments["out_proj_bias"])


def from_sdpa(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Attention:
    """Convert the arguments of ``scaled_dot_product_attention``; ``dropout_p`` is ignored, passes run in eval mode."""
    if is_causal:
        raise TowerError("causal attention between patches is not supported.")
    if enable_gqa:
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(~attn_mask, float("-inf"))
    return Attention(query, key, value, scale or query.shape[-1] ** -0.5, attn_mask)
