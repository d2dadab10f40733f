"""What comes after the end of a text is not computed, and changes no embedding."""

from collections.abc import Callable
from typing import Any

import open_clip
import pytest
import torch
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn
from torch.testing import assert_close

from clipcam_lightning.cam.finding import find_clip

CONTEXT, WORDS, END = 20, 50, 49
KINDS = [open_clip.CLIP, open_clip.CustomTextCLIP]
POOLS: dict[str, dict[str, Any]] = {"largest id": {}, "end id": {"pool_type": "eos", "eos_id": END}}
VISION = CLIPVisionCfg(layers=1, width=16, head_width=8, patch_size=8, image_size=16)
TEXT: dict[str, Any] = {"context_length": CONTEXT, "vocab_size": WORDS, "width": 16, "heads": 2, "layers": 3}


def make_clip(kind: type[nn.Module] = open_clip.CLIP, **text: Any) -> Any:
    clip = kind(8, vision_cfg=VISION, text_cfg=CLIPTextCfg(**{**TEXT, **text}))
    for parameter in clip.parameters():
        nn.init.normal_(parameter, std=0.5)
    return clip.double().eval()


def make_tokens(*lengths: int) -> Tensor:
    """Texts of random words, with the end of the text at the given positions and zeros after it."""
    tokens = torch.randint(1, END, (len(lengths), CONTEXT))
    for row, length in zip(tokens, lengths, strict=True):
        row[length], row[length + 1 :] = END, 0
    return tokens


def embed(clip: Any, tokens: Tensor) -> Tensor:
    """Embed the whole context, as unit vectors."""
    return nn.functional.normalize(clip.encode_text(tokens).float(), dim=-1)


@pytest.fixture
def positions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many positions each block of a text tower computes."""
    computed: list[int] = []
    forward = ResidualAttentionBlock.forward

    def record(block: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        computed.append(x.shape[1])
        return forward(block, x, *args, **kwargs)

    monkeypatch.setattr(ResidualAttentionBlock, "forward", record)
    return computed


@pytest.mark.parametrize("lengths", [(3, 6, 1), (CONTEXT - 1, 2), (1,)])
@pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS)
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_embeddings_are_those_of_the_whole_context(
    kind: type[nn.Module], pool: dict[str, Any], lengths: tuple[int, ...], positions: list[int]
) -> None:
    clip, tokens = make_clip(kind, **pool), make_tokens(*lengths)
    expected = embed(clip, tokens)
    positions.clear()

    embedded = find_clip(clip).embed_tokens(tokens)

    assert_close(embedded, expected, atol=1e-7, rtol=0)
    assert positions == [max(lengths) + 1] * TEXT["layers"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "tokens",
    [
        torch.tensor([[5, END, 0, 0, 0, END, 0] + 13 * [0]]),
        torch.tensor([[5, 7, 0, 0, 0, 0, 0] + 13 * [0], [7, 5, 3, END, 0, 0, 0] + 13 * [0]]),
        torch.tensor([[5, END] + 18 * [0]], dtype=torch.int32),
        torch.zeros(1, CONTEXT, dtype=torch.int64),
    ],
    ids=["two ends", "no end", "int32", "padding alone"],
)
@torch.no_grad()
def test_texts_of_any_ids_are_embedded_as_in_the_whole_context(kind: type[nn.Module], tokens: Tensor) -> None:
    for pool in POOLS.values():
        clip = make_clip(kind, **pool)
        assert_close(find_clip(clip).embed_tokens(tokens), embed(clip, tokens), atol=1e-7, rtol=0)


@torch.no_grad()
def test_a_mapping_of_tokens_is_shortened_too(positions: list[int]) -> None:
    clip, tokens = make_clip(), make_tokens(3, 6)
    expected = embed(clip, tokens)
    positions.clear()

    assert_close(find_clip(clip).embed_tokens({"input_ids": tokens}), expected, atol=1e-7, rtol=0)
    assert positions == [7] * TEXT["layers"]


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_whole_context(kind: type[nn.Module]) -> None:
    clip, tokens = make_clip(kind), make_tokens(3, 6)
    weights = dict(clip.named_parameters())
    clip.set_grad_checkpointing(True)

    expected = torch.autograd.grad(clip.encode_text(tokens).square().sum(), weights.values(), allow_unused=True)
    embedded = find_clip(clip).adapter.encode_text(tokens)
    found = torch.autograd.grad(embedded.square().sum(), weights.values(), allow_unused=True)

    assert sum(each is not None for each in found) > 10
    for before, after in zip(expected, found, strict=True):
        assert (before is None) == (after is None)
        if before is not None and after is not None:
            assert_close(after, before, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_is_left_as_it_was(kind: type[nn.Module], positions: list[int]) -> None:
    clip, tokens = make_clip(kind), make_tokens(3, 6)
    before = {name: {key: id(value) for key, value in vars(part).items()} for name, part in clip.named_modules()}
    weights = {name: id(value) for name, value in clip.state_dict(keep_vars=True).items()}

    find_clip(clip).embed_tokens(tokens)
    clip.encode_text(tokens)

    assert positions == [7] * TEXT["layers"] + [CONTEXT] * TEXT["layers"]
    assert {
        name: {key: id(value) for key, value in vars(part).items()} for name, part in clip.named_modules()
    } == before
    assert {name: id(value) for name, value in clip.state_dict(keep_vars=True).items()} == weights


class Mixing(nn.Module):
    """Reads all positions."""

    def forward(self, x: Tensor) -> Tensor:
        return mix(x)


def mix(x: Tensor) -> Tensor:
    return x + x.mean(1, keepdim=True)


def attend_everywhere(_clip: Any, text: Any) -> None:
    text.attn_mask = torch.zeros_like(text.attn_mask)


def add_hook(_clip: Any, text: Any) -> None:
    text.transformer.resblocks[1].mlp.register_forward_hook(lambda _module, _args, output: mix(output))


def add_hook_to_a_part_of_the_norm(_clip: Any, text: Any) -> None:
    text.ln_final = nn.Sequential(text.ln_final)
    text.ln_final[0].register_forward_hook(lambda _module, _args, output: mix(output))


def add_hook_to_the_words(_clip: Any, text: Any) -> None:
    text.token_embedding.register_forward_hook(lambda _module, _args, output: mix(output))


def add_pre_hook(_clip: Any, text: Any) -> None:
    text.transformer.register_forward_pre_hook(lambda _module, args: (args[0].flip(1),))


def add_module(_clip: Any, text: Any) -> None:
    text.transformer.resblocks[0].mlp.append(Mixing())


def add_module_of_torch(_clip: Any, text: Any) -> None:
    text.transformer.resblocks[0].mlp.append(nn.Softmax(dim=1))


def replace_forward(_clip: Any, text: Any) -> None:
    norm = text.transformer.resblocks[0].ln_2
    norm.forward = lambda x: mix(nn.LayerNorm.forward(norm, x))


def replace_attention(_clip: Any, text: Any) -> None:
    text.transformer.resblocks[0].attention = lambda q_x, **_: mix(q_x)


def replace_method(clip: Any, text: Any) -> None:
    clip.encode_text = lambda tokens: text.transformer(text.token_embedding(tokens), attn_mask=text.attn_mask)[:, -1]


def compile_transformer(_clip: Any, text: Any) -> None:
    """Compiled code would be compiled anew for another number of positions, also for the training."""
    text.transformer.compile(backend="eager")


CHANGES = [
    attend_everywhere, add_hook, add_hook_to_a_part_of_the_norm, add_hook_to_the_words, add_pre_hook, add_module,
    add_module_of_torch, replace_forward, replace_attention, replace_method, compile_transformer,
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_what_may_read_the_positions_after_the_end_gets_all(
    change: Callable[[Any, Any], None], kind: type[nn.Module], positions: list[int]
) -> None:
    clip, tokens = make_clip(kind), make_tokens(3, 6)
    change(clip, getattr(clip, "text", clip))
    expected = embed(clip, tokens)
    positions.clear()

    embedded = find_clip(clip).embed_tokens(tokens)

    assert torch.equal(embedded, expected)
    assert positions == [CONTEXT] * TEXT["layers"]


def hook_the_tower(clip: Any) -> None:
    clip.text.register_forward_pre_hook(lambda _module, args: (args[0].flip(1),))


def embed_in_another_way(clip: Any) -> None:
    tower = clip.text
    own = type(tower)._embeds
    tower._embeds = lambda text: (mix(own(tower, text)[0]), tower.attn_mask)


@pytest.mark.parametrize("change", [hook_the_tower, embed_in_another_way])
@torch.no_grad()
def test_a_changed_text_tower_gets_all(change: Callable[[Any], None], positions: list[int]) -> None:
    clip, tokens = make_clip(open_clip.CustomTextCLIP), make_tokens(3, 6)
    change(clip)
    expected = embed(clip, tokens)
    positions.clear()

    assert torch.equal(find_clip(clip).embed_tokens(tokens), expected)
    assert positions == [CONTEXT] * TEXT["layers"]


class DerivedClip(open_clip.CLIP):
    """A CLIP of a user, who reads the last position."""

    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
        x = self.transformer(self.token_embedding(text), attn_mask=self.attn_mask)
        return x[:, -1] @ self.text_projection


@pytest.mark.parametrize(
    "text",
    [
        {"no_causal_mask": True},
        {"no_causal_mask": True, "pool_type": "last"},
        {"embed_cls": True},
        {"pool_type": "last"},
    ],
    ids=["no mask", "SigLIP", "CoCa", "last position"],
)
@torch.no_grad()
def test_a_tower_that_reads_other_positions_gets_all(text: dict[str, Any], positions: list[int]) -> None:
    clip, tokens = make_clip(open_clip.CustomTextCLIP, **text), make_tokens(3, 6)
    expected = embed(clip, tokens)
    positions.clear()

    embedded = find_clip(clip).embed_tokens(tokens)

    assert torch.equal(embedded, expected)
    assert min(positions) >= CONTEXT


@torch.no_grad()
def test_a_derived_class_gets_all(positions: list[int]) -> None:
    clip, tokens = make_clip(DerivedClip), make_tokens(3, 6)
    expected = embed(clip, tokens)
    positions.clear()

    assert torch.equal(find_clip(clip).embed_tokens(tokens), expected)
    assert positions == [CONTEXT] * TEXT["layers"]


def test_what_is_no_table_of_ids_is_passed_on(unchecked: None) -> None:
    adapter = find_clip(make_clip()).adapter
    assert adapter.encode_text(torch.empty(0, CONTEXT, dtype=torch.int64)).shape == (0, 8)
    with pytest.raises(RuntimeError, match="must match the size"):  # of torch, in open_clip
        adapter.encode_text(torch.tensor([1, 2, 1]))
