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
@pytest.mark.parametrize("pool", [{}, {"pool_type": "eos", "eos_id": END}], ids=["largest id", "end id"])
@pytest.mark.parametrize("kind", [open_clip.CLIP, open_clip.CustomTextCLIP])
@torch.no_grad()
def test_embeddings_are_those_of_the_whole_context(
    kind: type[nn.Module], pool: dict[str, Any], lengths: tuple[int, ...], positions: list[int]
) -> None:
    clip, tokens = make_clip(kind, **pool), make_tokens(*lengths)
    expected = nn.functional.normalize(clip.encode_text(tokens).float(), dim=-1)
    positions.clear()

    embedded = find_clip(clip).embed_tokens(tokens)

    assert_close(embedded, expected, atol=1e-7, rtol=0)
    assert positions == [max(lengths) + 1] * TEXT["layers"]


@torch.no_grad()
def test_a_mapping_of_tokens_is_shortened_too(positions: list[int]) -> None:
    find_clip(make_clip()).embed_tokens({"input_ids": make_tokens(3, 6)})
    assert positions == [7] * TEXT["layers"]


def attend_everywhere(clip: Any) -> None:
    clip.attn_mask = torch.zeros_like(clip.attn_mask)


def add_hook(clip: Any) -> None:
    clip.transformer.resblocks[1].mlp.register_forward_hook(
        lambda _module, _args, output: output + output.mean(1, True)
    )


def add_hook_to_the_norm(clip: Any) -> None:
    clip.ln_final.register_forward_hook(lambda _module, _args, output: output - output.mean(1, keepdim=True))


def add_pre_hook(clip: Any) -> None:
    clip.transformer.register_forward_pre_hook(lambda _module, args: (args[0].flip(1),))


def replace_module(clip: Any) -> None:
    class Mixing(nn.Module):
        """Reads all positions."""

        def forward(self, x: Tensor) -> Tensor:
            return x + x.mean(1, keepdim=True)

    clip.transformer.resblocks[0].mlp.append(Mixing())


def replace_forward(clip: Any) -> None:
    norm = clip.transformer.resblocks[0].ln_2
    norm.forward = lambda x: x + x.mean(1, keepdim=True)


def replace_method(clip: Any) -> None:
    clip.encode_text = lambda tokens: clip.transformer(clip.token_embedding(tokens), attn_mask=clip.attn_mask)[:, -1]


@pytest.mark.parametrize(
    "change",
    [attend_everywhere, add_hook, add_hook_to_the_norm, add_pre_hook, replace_module, replace_forward, replace_method],
)
@torch.no_grad()
def test_what_may_read_the_positions_after_the_end_gets_all(
    change: Callable[[Any], None], positions: list[int]
) -> None:
    clip, tokens = make_clip(), make_tokens(3, 6)
    change(clip)
    expected = nn.functional.normalize(clip.encode_text(tokens).float(), dim=-1)
    positions.clear()

    embedded = find_clip(clip).embed_tokens(tokens)

    assert torch.equal(embedded, expected)
    assert positions == [CONTEXT] * TEXT["layers"]


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
    expected = nn.functional.normalize(clip.encode_text(tokens).float(), dim=-1)
    positions.clear()

    embedded = find_clip(clip).embed_tokens(tokens)

    assert torch.equal(embedded, expected)
    assert min(positions) >= CONTEXT


@torch.no_grad()
def test_a_compiled_tower_gets_all(positions: list[int]) -> None:
    """Compiled code would be compiled anew for another number of positions, also for the training."""
    clip, tokens = make_clip(), make_tokens(3, 6)
    clip.transformer.compile(backend="eager")

    find_clip(clip).embed_tokens(tokens)

    assert positions == [CONTEXT] * TEXT["layers"]


def test_the_tower_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    clip = make_clip()

    def fail(*_args: Any) -> Tensor:
        raise RuntimeError("a failed layer")

    monkeypatch.setattr(nn.GELU, "forward", fail)
    with pytest.raises(RuntimeError, match="a failed layer"):
        find_clip(clip).embed_tokens(make_tokens(3))

    assert not any("forward" in vars(module) for module in clip.modules())
