"""Leave out the positions after the end of texts, which a causal text tower computes for nothing.

With causal attention no token depends on a later one, and the embedding is that of one token, where the text ends. Of a
short prompt about 70 of CLIP's 77 positions come after it.
"""

from copy import copy
from typing import Any

import torch
from jaxtyping import Int
from open_clip import CLIP, CustomTextCLIP
from open_clip.transformer import (
    LayerNorm,
    LayerNormFp32,
    LayerScale,
    QuickGELU,
    ResidualAttentionBlock,
    TextTransformer,
    Transformer,
)
from torch import Tensor, nn

KNOWN = {  # treat all positions alike, or attend as the mask says
    Transformer, ResidualAttentionBlock, nn.MultiheadAttention, nn.modules.linear.NonDynamicallyQuantizableLinear,
    nn.ModuleList, nn.Sequential, nn.Linear, nn.Embedding, nn.Identity, nn.Dropout, nn.GELU, QuickGELU, LayerScale,
    nn.LayerNorm, LayerNorm, LayerNormFp32,
}  # fmt: skip


def leave_out_padding(clip: Any, tokens: Int[Tensor, "n l"]) -> tuple[Any, Int[Tensor, "n k"]]:
    """Shorten texts, and the context of the model that is to embed them, to the longest of these texts.

    That is done where it cannot change an embedding: in a CLIP of open_clip that attends causally and reads the token
    at which a text ends, and whose text tower is as open_clip makes it, without hooks and not compiled.

    Args:
        clip: a CLIP with ``encode_text``. It is not changed.
        tokens: ids of the texts.

    Returns:
        A CLIP with the same weights, and the ids to call its ``encode_text`` with; or both as they were given.
    """
    text = _find_causal_tower(clip, tokens)
    if text is None:
        return clip, tokens
    length = int(_find_ends(text, tokens).max()) + 1
    short = _copy_outside(text)
    vars(short)["_parameters"]["positional_embedding"] = text.positional_embedding[:length]
    vars(short)["_buffers"]["attn_mask"] = text.attn_mask[:length, :length]
    if text is not clip:
        tower, short = short, _copy_outside(clip)
        vars(short)["_modules"]["text"] = tower
    return short, tokens[:, :length]


def _find_causal_tower(clip: Any, tokens: Tensor) -> Any:
    """Find the module that holds the text tower; ``None`` if positions after the end of a text may matter to it."""
    if "encode_text" in vars(clip) or tokens.ndim != 2 or not tokens.numel():  # a method of the user, or compiled
        return None
    text: Any = clip if type(clip) is CLIP else clip.text if type(clip) is CustomTextCLIP else None
    if type(text) not in (CLIP, TextTransformer) or _get_pool(text) not in ("argmax", "eos"):
        return None
    parts = [part for name in ("token_embedding", "transformer", "ln_final") for part in getattr(text, name).modules()]
    if not all(type(part) in KNOWN and _is_unchanged(part) for part in parts):
        return None
    if text is not clip and not _is_unchanged(text):  # which is called, so that hooks see what it gets
        return None
    return text if _is_causal(text.attn_mask, tokens.shape[1]) else None


def _get_pool(text: Any) -> str:
    pool: str = text.text_pool_type if type(text) is CLIP else text.pool_type
    return pool


def _find_ends(text: Any, tokens: Int[Tensor, "n l"]) -> Int[Tensor, "n"]:
    """Find the positions that the embeddings are read from, as open_clip does."""
    if _get_pool(text) == "argmax":
        return tokens.argmax(dim=1)
    end: int = text.text_eos_id if type(text) is CLIP else text.eos_id
    return tokens.eq(end).int().argmax(dim=1)


def _is_unchanged(module: nn.Module) -> bool:
    """Whether a module has no hooks, no methods of its own, is not compiled, and has ordinary weights."""
    hooks = module._forward_hooks or module._forward_pre_hooks
    replaced = any(callable(value) and hasattr(type(module), name) for name, value in vars(module).items())
    return not hooks and not replaced and all(type(each) is nn.Parameter for each in module.parameters(recurse=False))


def _is_causal(mask: Tensor | None, length: int) -> bool:
    """Whether a mask that is added to the scores lets no position attend to a later one."""
    if mask is None or mask.shape != (length, length):  # the class token of a CoCa makes it larger
        return False
    return bool((mask.isneginf() | torch.ones_like(mask, dtype=torch.bool).tril()).all())


def _copy_outside(module: nn.Module) -> nn.Module:
    """Copy a module, but not the weights and modules that it holds."""
    twin = copy(module)
    for name in ("_parameters", "_buffers", "_modules"):
        vars(twin)[name] = dict(vars(module)[name])
    return twin
