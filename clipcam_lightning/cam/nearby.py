"""What stands near a CLIP in a module: its tokenizer and its image processor."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import open_clip
from torch import nn

from clipcam_lightning.cam.adapters import Adapter, Tokenizer, find_adapter
from clipcam_lightning.errors import ClipCamWarning

CLIP_VOCABULARY = 49408
CLIP_START, CLIP_END = CLIP_VOCABULARY - 2, CLIP_VOCABULARY - 1


def _owners(module: nn.Module, path: str) -> Iterator[Any]:
    """Iterate over the CLIP and the modules around it, the nearest first."""
    parts = path.split(".") if path else []
    return (module.get_submodule(".".join(parts[:depth])) for depth in range(len(parts), -1, -1))


def find_tokenizer(module: nn.Module, path: str, fits: Callable[[Tokenizer], bool]) -> Tokenizer | None:
    """Find the attribute ``tokenizer``, or the tokenizer of ``processor``, of the nearest module with one that fits.

    Args:
        module: the module that was searched.
        path: dotted name of the CLIP below it.
        fits: whether a tokenizer is that of the CLIP, and not that of another network beside it, such as a decoder.
    """
    for owner in _owners(module, path):
        tokenizer, processor = getattr(owner, "tokenizer", None), getattr(owner, "processor", None)
        for found in (tokenizer, getattr(processor, "tokenizer", None)):
            if callable(found) and not isinstance(found, nn.Module) and fits(found):
                nearest: Tokenizer = found
                return nearest
    return None


def makes_ids(adapter: Adapter, vocabulary_size: int | None, tokenizer: Tokenizer) -> bool:
    """Whether a tokenizer makes ids of a vocabulary; of CLIP's, with its start and its end."""
    if not vocabulary_size:  # not known
        return True
    try:
        tokens = adapter.tokenize(tokenizer, ["a photo"])
        row = (tokens["input_ids"] if isinstance(tokens, Mapping) else tokens)[0].tolist()
    except Exception:  # of any kind: that of another network may have no padding, or take one string at a time
        return False
    if vocabulary_size == CLIP_VOCABULARY:
        return row[0] == CLIP_START and CLIP_END in row
    return all(0 <= token < vocabulary_size for token in row)


def find_image_processor(module: nn.Module, path: str) -> Any:
    """Find the attribute ``image_processor``, or that of ``processor``, of the nearest module with one."""
    for owner in _owners(module, path):
        processor = getattr(owner, "processor", None)
        for found in (getattr(owner, "image_processor", None), getattr(processor, "image_processor", None), processor):
            if hasattr(found, "image_mean"):
                return found
    return None


def make_default_tokenizer(module: nn.Module, path: str, clip: nn.Module) -> Tokenizer | None:
    """Make CLIP's byte-pair tokenizer for a model with CLIP's vocabulary, and warn if one near it is passed over.

    Args:
        module: the module that was searched.
        path: dotted name below it of what embeds texts.
        clip: the CLIP itself.
    """
    adapter = find_adapter(clip)
    if adapter is None or adapter.vocabulary_size != CLIP_VOCABULARY:
        return None
    nearby = find_tokenizer(module, path, lambda _tokenizer: True)
    if nearby is not None:
        name = getattr(nearby, "__name__", type(nearby).__name__)
        text = (
            f"the tokenizer {name} beside the CLIP makes no token ids of its vocabulary, so that CLIP's own is used; "
            "if that is wrong, give tokenizer=..."
        )
        warnings.warn(text, ClipCamWarning, stacklevel=2)
    tokenizer: Tokenizer = open_clip.SimpleTokenizer(context_length=adapter.context_length)
    return tokenizer


def choose_tokenizer(module: nn.Module, path: str, clip: nn.Module) -> Tokenizer | None:
    """Find the tokenizer of a CLIP near it, or make CLIP's own.

    Args:
        module, path, clip: as in :func:`make_default_tokenizer`.
    """
    adapter = find_adapter(clip)
    assert adapter is not None  # or it would be no CLIP
    fits = partial(makes_ids, adapter, adapter.vocabulary_size)
    return find_tokenizer(module, path, fits) or make_default_tokenizer(module, path, clip)
