"""Attention of every implementation is intercepted and can be replaced, and nothing else changes."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from open_clip.modified_resnet import AttentionPool2d
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from clipcam_lightning.cam.attention import Attention, intercepted_attention
from clipcam_lightning.errors import TowerError
from tests.oracles.transformer import compute_attention

BATCH, HEADS, QUERIES, KEYS, SIZE = 2, 4, 5, 6, 3
WIDTH = HEADS * SIZE


class Sdpa(nn.Module):
    """Attention as timm and transformers call it, with queries, keys and values split into heads."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, **options)


def queries_and_keys(key_heads: int = HEADS) -> tuple[Tensor, Tensor, Tensor]:
    query = torch.randn(BATCH, HEADS, QUERIES, SIZE)
    return query, torch.randn(BATCH, key_heads, KEYS, SIZE), torch.randn(BATCH, key_heads, KEYS, SIZE)


def sdpa(key_heads: int = HEADS, **options: Any) -> tuple[nn.Module, Callable[[], Tensor]]:
    module, inputs = Sdpa(), queries_and_keys(key_heads)
    return module, lambda: module(*inputs, **options)


def multi_head(
    width: int = WIDTH, mask: Tensor | None = None, **options: Any
) -> tuple[nn.Module, Callable[[], Tensor]]:
    """Keys of another ``width`` than the queries' have separate projection matrices."""
    module = nn.MultiheadAttention(WIDTH, HEADS, kdim=width, vdim=width, **options).eval()
    for bias in (module.in_proj_bias, module.out_proj.bias):
        nn.init.normal_(bias)
    query, keys = torch.randn(BATCH, QUERIES, WIDTH), torch.randn(BATCH, KEYS, width)
    if not module.batch_first:
        query, keys = query.transpose(0, 1), keys.transpose(0, 1)
    return module, lambda: module(query, keys, keys, attn_mask=mask, need_weights=False)[0]


def self_attention() -> tuple[nn.Module, Callable[[], Tensor]]:
    """The one call for which torch has a fast path in eval mode."""
    module, tokens = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True).eval(), torch.randn(BATCH, KEYS, WIDTH)
    return module, lambda: module(tokens, tokens, tokens, need_weights=False)[0]


def resnet_pool() -> tuple[nn.Module, Callable[[], Tensor]]:
    module, cells = AttentionPool2d(2, WIDTH, HEADS, 7).eval(), torch.randn(BATCH, WIDTH, 2, 2)
    return module, lambda: module(cells)


ALLOWED = torch.rand(QUERIES, KEYS, generator=torch.Generator().manual_seed(0)) > 0.3
KINDS: dict[str, Callable[[], tuple[nn.Module, Callable[[], Tensor]]]] = {
    "sdpa": sdpa,
    "sdpa with a scale": lambda: sdpa(scale=0.1),
    "sdpa with a mask of numbers": lambda: sdpa(attn_mask=torch.randn(QUERIES, KEYS)),
    "sdpa with a mask of booleans": lambda: sdpa(attn_mask=ALLOWED),
    "sdpa with shared keys": lambda: sdpa(key_heads=2, enable_gqa=True),
    "batch first": lambda: multi_head(batch_first=True),
    "sequence first": multi_head,
    "separate matrices": lambda: multi_head(width=7, batch_first=True),
    "mask of numbers": lambda: multi_head(mask=torch.randn(QUERIES, KEYS)),
    "mask of booleans": lambda: multi_head(mask=~ALLOWED),
    "self-attention": self_attention,
    "resnet pool": resnet_pool,
}


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_hook_that_only_records_does_not_change_the_output(kind: str, grad: bool) -> None:
    module, call = KINDS[kind]()
    recorded: list[Attention] = []

    def record(_i: int, attention: Attention) -> Tensor:
        recorded.append(attention)
        return attention.output()

    with torch.set_grad_enabled(grad):
        expected = call()
        with intercepted_attention([module], record):
            output = call()

    assert_close(output, expected)
    (attention,) = recorded
    assert_close(attention.weights() @ attention.value, attention.output())
    assert_close(attention.weights().sum(-1), torch.ones(attention.query.shape[:3]))


@pytest.mark.parametrize("kind", ["batch first", "sequence first", "separate matrices", "mask of numbers"])
def test_the_weights_are_those_that_torch_returns_on_request(kind: str) -> None:
    module, call = KINDS[kind]()
    expected: list[Tensor] = []

    def request_weights(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, "need_weights": True}

    module.register_forward_pre_hook(request_weights, with_kwargs=True)
    module.register_forward_hook(lambda _m, _args, output: expected.append(output[1]))
    call()
    recorded: list[Attention] = []

    with intercepted_attention([module], lambda _i, attention: (recorded.append(attention), attention.output())[1]):
        call()

    assert_close(recorded[0].weights().mean(dim=1), expected[0])


def test_weights_and_output_equal_those_of_loops() -> None:
    query, key, value = queries_and_keys()

    attention = Attention(query, key, value, scale=SIZE**-0.5)

    for i in range(BATCH):
        merged = (x[i].transpose(0, 1).flatten(1) for x in (query, key, value))
        expected = compute_attention(*merged, heads=HEADS)
        assert_close(attention.weights()[i], expected.weights)
        assert_close(attention.output()[i].transpose(0, 1).flatten(1), expected.merged)


@pytest.mark.parametrize(
    "mask", [None, torch.randn(QUERIES, KEYS), torch.randn(1, KEYS), torch.randn(2, 1, QUERIES, KEYS)]
)
def test_the_first_query_gives_the_first_row(mask: Tensor | None) -> None:
    attention = Attention(*queries_and_keys(), scale=0.3, mask=mask)

    assert_close(attention.first_query().weights(), attention.weights()[:, :, :1])
    assert_close(attention.first_query().output(), attention.output()[:, :, :1])


def test_a_detached_attention_has_no_graph() -> None:
    query, key, value = (x.requires_grad_() for x in queries_and_keys())

    attention = Attention(query, key, value, scale=0.3).detach()

    assert not attention.weights().requires_grad
    assert not attention.output().requires_grad


@pytest.mark.parametrize("kind", ["sdpa", "batch first", "sequence first", "separate matrices", "resnet pool"])
def test_the_output_of_the_hook_replaces_that_of_the_attention(kind: str) -> None:
    """Returning one key's value for every query equals attention weights of 1 for that key."""
    module, call = KINDS[kind]()
    key = 4

    def select_value(_i: int, attention: Attention) -> Tensor:
        return attention.value[:, :, key : key + 1].expand_as(attention.query).clone()

    with intercepted_attention([module], select_value):
        selected = call()

    def weight_one_key(_i: int, attention: Attention) -> Tensor:
        weights = torch.zeros_like(attention.weights())
        weights[..., key] = 1
        return weights @ attention.value

    with intercepted_attention([module], weight_one_key):
        assert_close(selected, call())
    assert not torch.allclose(selected, call())


def test_only_attention_inside_the_listed_modules_is_intercepted_with_their_index() -> None:
    modules = [Sdpa(), Sdpa(), Sdpa()]
    inputs, calls = queries_and_keys(), []

    def attend(i: int, attention: Attention) -> Tensor:
        calls.append(i)
        return attention.output()

    with intercepted_attention([modules[2], modules[0]], attend):
        for module in modules:
            module(*inputs)
        F.scaled_dot_product_attention(*inputs)

    assert calls == [1, 0]


def test_attention_after_a_failed_module_is_not_counted_to_it() -> None:
    inputs, calls = queries_and_keys(), []
    module, other = Sdpa(), Sdpa()

    def attend(i: int, attention: Attention) -> Tensor:
        calls.append(i)
        return attention.output()

    with intercepted_attention([module], attend):
        with pytest.raises(RuntimeError):
            module(*inputs, attn_mask=torch.randn(7, 7))
        other(*inputs)

    assert calls == [0]


def test_hooks_are_removed_after_a_failure() -> None:
    module, call = KINDS["batch first"]()
    expected = call()

    def fail(_i: int, _attention: Attention) -> Tensor:
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"), intercepted_attention([module], fail):
        call()

    assert not module._forward_hooks
    assert not module._forward_pre_hooks
    assert torch.equal(call(), expected)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (lambda: sdpa(is_causal=True), "causal attention"),
        (lambda: multi_head(add_bias_kv=True), "key bias"),
        (lambda: multi_head(add_zero_attn=True), "zero key"),
    ],
)
def test_unsupported_attention_is_rejected(kind: Any, message: str) -> None:
    module, call = kind()
    with (
        pytest.raises(TowerError, match=message),
        intercepted_attention([module], lambda _i, attention: attention.output()),
    ):
        call()


def test_the_scale_is_a_factor_of_the_products_of_query_and_key() -> None:
    query, key = torch.eye(2).expand(1, 1, 2, 2), torch.eye(2).expand(1, 1, 2, 2)

    weights = Attention(query, key, key, scale=math.log(3)).weights()

    assert_close(weights[0, 0], torch.tensor([[0.75, 0.25], [0.25, 0.75]]))
