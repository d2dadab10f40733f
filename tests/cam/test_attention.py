"""Every attention is seen and can be replaced, whatever it is written with, and nothing else is touched."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from open_clip.modified_resnet import AttentionPool2d
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from clipcam_lightning.cam.attention import Attention, attending
from clipcam_lightning.errors import TowerError
from tests.oracles.transformer import attended

BATCH, HEADS, QUERIES, KEYS, SIZE = 2, 4, 5, 6, 3
WIDTH = HEADS * SIZE


class Sdpa(nn.Module):
    """Attention as timm and transformers call it: of queries, keys and values that are split into heads."""

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
    """The keys have another width if one is given, so that their matrices are apart from the queries'."""
    module = nn.MultiheadAttention(WIDTH, HEADS, kdim=width, vdim=width, **options).eval()
    for bias in (module.in_proj_bias, module.out_proj.bias):
        nn.init.normal_(bias)
    query, keys = torch.randn(BATCH, QUERIES, WIDTH), torch.randn(BATCH, KEYS, width)
    if not module.batch_first:
        query, keys = query.transpose(0, 1), keys.transpose(0, 1)
    return module, lambda: module(query, keys, keys, attn_mask=mask, need_weights=False)[0]


def self_attention() -> tuple[nn.Module, Callable[[], Tensor]]:
    """The one call that torch would take on a fast path of its own in eval mode."""
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
    "matrices apart": lambda: multi_head(width=7, batch_first=True),
    "mask of numbers": lambda: multi_head(mask=torch.randn(QUERIES, KEYS)),
    "mask of booleans": lambda: multi_head(mask=~ALLOWED),
    "self-attention": self_attention,
    "resnet pool": resnet_pool,
}


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_an_attention_that_is_only_seen_gives_what_it_gives(kind: str, grad: bool) -> None:
    module, call = KINDS[kind]()
    seen: list[Attention] = []

    def see(_i: int, attention: Attention) -> Tensor:
        seen.append(attention)
        return attention.output()

    with torch.set_grad_enabled(grad):
        expected = call()
        with attending([module], see):
            found = call()

    assert_close(found, expected)
    (attention,) = seen
    assert_close(attention.weights() @ attention.value, attention.output())
    assert_close(attention.weights().sum(-1), torch.ones(attention.query.shape[:3]))


@pytest.mark.parametrize("kind", ["batch first", "sequence first", "matrices apart", "mask of numbers"])
def test_its_weights_are_those_that_torch_returns_on_request(kind: str) -> None:
    module, call = KINDS[kind]()
    wanted: list[Tensor] = []

    def ask(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, "need_weights": True}

    module.register_forward_pre_hook(ask, with_kwargs=True)
    module.register_forward_hook(lambda _m, _args, output: wanted.append(output[1]))
    call()
    seen: list[Attention] = []

    with attending([module], lambda _i, attention: (seen.append(attention), attention.output())[1]):
        call()

    assert_close(seen[0].weights().mean(dim=1), wanted[0])


def test_weights_and_output_are_those_of_loops() -> None:
    query, key, value = queries_and_keys()

    attention = Attention(query, key, value, scale=SIZE**-0.5)

    for i in range(BATCH):
        merged = (x[i].transpose(0, 1).flatten(1) for x in (query, key, value))
        expected = attended(*merged, heads=HEADS)
        assert_close(attention.weights()[i], expected.weights)
        assert_close(attention.output()[i].transpose(0, 1).flatten(1), expected.merged)


@pytest.mark.parametrize(
    "mask", [None, torch.randn(QUERIES, KEYS), torch.randn(1, KEYS), torch.randn(2, 1, QUERIES, KEYS)]
)
def test_the_first_query_alone_is_the_first_row(mask: Tensor | None) -> None:
    attention = Attention(*queries_and_keys(), scale=0.3, mask=mask)

    assert_close(attention.first().weights(), attention.weights()[:, :, :1])
    assert_close(attention.first().output(), attention.output()[:, :, :1])


def test_what_is_detached_is_out_of_the_graph() -> None:
    query, key, value = (x.requires_grad_() for x in queries_and_keys())

    attention = Attention(query, key, value, scale=0.3).detached()

    assert not attention.weights().requires_grad
    assert not attention.output().requires_grad


@pytest.mark.parametrize("kind", ["sdpa", "batch first", "sequence first", "matrices apart", "resnet pool"])
def test_what_is_given_in_its_place_goes_on(kind: str) -> None:
    """Values instead of mixtures: each key is the one that a query takes."""
    module, call = KINDS[kind]()
    key = 4

    def take(_i: int, attention: Attention) -> Tensor:
        return attention.value[:, :, key : key + 1].expand_as(attention.query).clone()

    with attending([module], take):
        found = call()

    def weigh(_i: int, attention: Attention) -> Tensor:
        only = torch.zeros_like(attention.weights())
        only[..., key] = 1
        return only @ attention.value

    with attending([module], weigh):
        assert_close(found, call())
    assert not torch.allclose(found, call())


def test_only_the_modules_that_are_named_are_handed_over_under_their_index() -> None:
    modules = [Sdpa(), Sdpa(), Sdpa()]
    inputs, calls = queries_and_keys(), []

    def attend(i: int, attention: Attention) -> Tensor:
        calls.append(i)
        return attention.output()

    with attending([modules[2], modules[0]], attend):
        for module in modules:
            module(*inputs)
        F.scaled_dot_product_attention(*inputs)

    assert calls == [1, 0]


def test_a_module_that_failed_is_left_all_the_same() -> None:
    inputs, calls = queries_and_keys(), []
    module, other = Sdpa(), Sdpa()

    def attend(i: int, attention: Attention) -> Tensor:
        calls.append(i)
        return attention.output()

    with attending([module], attend):
        with pytest.raises(RuntimeError):
            module(*inputs, attn_mask=torch.randn(7, 7))
        other(*inputs)

    assert calls == [0]


def test_nothing_is_left_behind_even_by_a_failure() -> None:
    module, call = KINDS["batch first"]()
    expected = call()

    def fail(_i: int, _attention: Attention) -> Tensor:
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"), attending([module], fail):
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
def test_attention_of_an_unknown_kind_is_refused(kind: Any, message: str) -> None:
    module, call = kind()
    with pytest.raises(TowerError, match=message), attending([module], lambda _i, attention: attention.output()):
        call()


def test_a_scale_is_the_factor_of_the_products() -> None:
    query, key = torch.eye(2).expand(1, 1, 2, 2), torch.eye(2).expand(1, 1, 2, 2)

    weights = Attention(query, key, key, scale=math.log(3)).weights()

    assert_close(weights[0, 0], torch.tensor([[0.75, 0.25], [0.25, 0.75]]))
