"""Embed texts that are shorter than the context without computing what comes after them.

With causal attention no token depends on a later one, and the embedding is that of one token, where the text ends. So
the positions after the longest text can be left out: of a short prompt about 70 of CLIP's 77.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Int
from open_clip import CLIP, CustomTextCLIP
from open_clip.transformer import TextTransformer, Transformer
from torch import Tensor, nn

from clipcam_lightning.cam.model_state import replaced_forwards

LIBRARIES = ("torch.nn", "open_clip")  # whose layers treat all tokens alike, or attend as the mask says


@contextmanager
def skipping_padding(clip: nn.Module, tokens: Int[Tensor, "n l"]) -> Iterator[None]:
    """Let the text tower skip the positions after the longest of some texts, if it is sure to ignore them.

    That is known of the text towers of open_clip that attend causally and read the token at which a text ends, unless
    they are compiled, have hooks, or hold modules of other libraries.

    Args:
        clip: a CLIP with ``encode_text``.
        tokens: ids of the texts that are embedded while this lasts.
    """
    ends = _find_ends(clip, tokens)
    length = tokens.shape[1] if ends is None else int(ends.max()) + 1
    if length == tokens.shape[1]:
        yield
        return
    text: Any = getattr(clip, "text", clip)
    with replaced_forwards([text.transformer], partial(_shorten, length)):
        yield


def _shorten(length: int, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return the forward of a transformer for the first positions alone."""
    return lambda x, attn_mask: forward(x[:, :length], attn_mask=attn_mask[:length, :length])


def _find_ends(clip: Any, tokens: Int[Tensor, "n l"]) -> Int[Tensor, "n"] | None:
    """Find the position that the embedding of each text is read from; ``None`` if later ones may change it."""
    if "encode_text" in vars(clip):  # a user's own, or compiled
        return None
    if type(clip) is CLIP:
        text, pool, end = clip, clip.text_pool_type, getattr(clip, "text_eos_id", None)
    elif type(clip) is CustomTextCLIP and type(clip.text) is TextTransformer:
        text, pool, end = clip.text, clip.text.pool_type, getattr(clip.text, "eos_id", None)
    else:
        return None
    modules = [text, text.ln_final, *text.transformer.modules()]
    if type(text.transformer) is not Transformer or not all(map(_is_plain, modules)):
        return None
    if not _is_causal(text.attn_mask, tokens.shape[1]):
        return None
    if pool == "argmax":
        return tokens.argmax(dim=1)
    return (tokens == end).int().argmax(dim=1) if pool == "eos" and end is not None else None


def _is_plain(module: nn.Module) -> bool:
    """Whether a module is what its library made it."""
    hooks = module._forward_hooks or module._forward_pre_hooks
    changed = hooks or module._compiled_call_impl is not None or "forward" in vars(module)
    return type(module).__module__.startswith(LIBRARIES) and not changed


def _is_causal(mask: Tensor | None, length: int) -> bool:
    """Whether a mask that is added to the scores lets no position attend to a later one."""
    if mask is None or mask.shape != (length, length):  # it is larger if a token that reads the text follows it
        return False
    later = torch.ones_like(mask, dtype=torch.bool).triu(1)
    return bool(mask[later].isneginf().all())
