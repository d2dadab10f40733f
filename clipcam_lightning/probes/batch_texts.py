"""The strings and token ids in a batch."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from jaxtyping import Int
from torch import Tensor

from clipcam_lightning.cam.nearby import CLIP_END, CLIP_START, CLIP_VOCABULARY
from clipcam_lightning.errors import abridge
from clipcam_lightning.probes.leaves import MAX_KEY, Leaf, is_string_lists, is_strings, split_words
from clipcam_lightning.probes.load import is_dense
from clipcam_lightning.probes.probe import TokensLike

Prompts: TypeAlias = list[str | TokensLike]
CAPTION_WORDS = {"caption", "captions", "description", "descriptions", "sentence", "sentences"}
"""A key with one of these words names texts of single images; with the others below also instructions for all."""
PROMPT_WORDS = CAPTION_WORDS | {  # a key with one of these words names prompts
    "prompt",
    "prompts",
    "text",
    "texts",
    "token",
    "tokens",
    "txt",
}
NON_PROMPT_WORDS = {  # a key with one of these words holds something other than prompts
    "mask",
    "id",
    "uid",
    "key",
    "path",
    "file",
    "filename",
    "name",
    "url",
    "index",
    "idx",
    "box",
    "boxes",
    "bbox",
    "type",
    "image",
    "img",
    "pixel",
    "visual",
    "label",
    "labels",
    "target",
    "targets",
    "domain",
}
METADATA_WORDS = {  # strings under these describe how an image came to be, unless the key ends by naming prompts
    "author",
    "camera",
    "city",
    "country",
    "dataset",
    "date",
    "device",
    "hospital",
    "lang",
    "language",
    "license",
    "location",
    "manufacturer",
    "modality",
    "patient",
    "scanner",
    "site",
    "source",
    "split",
    "template",
    "time",
    "view",
}
CLASS_WORDS = {"breed", "category", "class", "classname", "query", "question", "species", "title"}
"""Strings under these may be single words."""
MAX_CAPTIONS = 10  # per sample; more rows are a segmentation
MIN_TOKENS = 5  # rows of four numbers are boxes
FILE_NAME = re.compile(r"\S+\.\w{2,5}")
UNSPACED = re.compile(r"[\u0e00-\u109f\u1780-\u17ff\u3040-\u9fff]{2}")  # from Thai and Khmer to Chinese: no spaces
TEMPLATE = re.compile(r"\{\w*\}")
PATH = re.compile(r"://|[/\\][^/\\\s]+\.\w{2,5}$|^([a-zA-Z]:)?[/\\]")


@dataclass(frozen=True)
class TextInput:
    """What a model takes as texts.

    Attributes:
        vocabulary_size: number of token ids; ``None`` where it is not known.
        has_tokenizer: whether strings can be embedded.
    """

    vocabulary_size: int | None = None
    has_tokenizer: bool = False


def separate_captions(leaf: Leaf, count: int) -> tuple[list[Leaf], str]:
    """Separate lists of strings in a list, such as several captions per image, into lists of one string per image.

    Args:
        leaf: a list per image, of which the first strings are taken; or a list per caption, as torch's default collate
            makes them. Other leaves stay as they are.
        count: number of images.

    Returns:
        Leaves, and a message if ``count`` lists of ``count`` strings do not show which of both they are.
    """
    rows = leaf.value
    if not is_string_lists(rows):
        return [leaf], ""
    is_per_caption = all(len(row) == count for row in rows)
    # Lists in a list are no evidence of another collate: pin_memory of older releases of torch turns tuples into them.
    is_collated = count == 1 or (isinstance(rows, list) and all(isinstance(row, tuple) for row in rows))
    if len(rows) != count or (is_per_caption and is_collated):
        return [Leaf((*leaf.path, i), leaf.keys, row) for i, row in enumerate(rows)], ""
    if not is_per_caption:
        return [Leaf(leaf.path, leaf.keys, [row[0] for row in rows])], ""
    where = f" ({abridge(leaf.key, MAX_KEY)})" if leaf.key else ""
    return [], (
        f"the batch holds {count} lists of {count} strings for {count} images{where}, which may be one list per image "
        "or one per caption. Use another batch size, let the batch hold one caption per image, or give probes=... "
        "with prompts of your own."
    )


def is_prompt_key(leaf: Leaf) -> bool:
    """Whether the key of a leaf names prompts, and not something about them, as ``"caption_source"`` does."""
    *_, last = split_words(leaf.key) or [""]
    is_metadata = last in METADATA_WORDS or last == "model"
    return leaf.key == "input_ids" or not (is_metadata or leaf.words.isdisjoint(PROMPT_WORDS))


def select_strings(leaf: Leaf) -> Prompts | None:
    """Select strings that may be prompts: under a key that names them, or such that look like text."""
    strings = leaf.value
    is_named = is_prompt_key(leaf) or bool(leaf.words & CLASS_WORDS)
    harmless = {"image", "img", "name"} if is_named else set()  # as in image_caption and class_name
    if not is_strings(strings) or leaf.words & (NON_PROMPT_WORDS - harmless) or all(map(TEMPLATE.search, strings)):
        return None
    if is_named:
        return None if all(FILE_NAME.fullmatch(string) for string in strings) else list(strings)
    if not leaf.words and all(map(_is_word, strings)):
        return list(strings)
    return list(strings) if _look_like_text(strings) and leaf.words.isdisjoint(METADATA_WORDS) else None


def _is_word(string: str) -> bool:
    """Whether a string is a word such as the name of a class, and no code such as a view or a sex."""
    return len(string) > 2 and string.replace("-", "").isalpha() and not string.isupper()


def _look_like_text(strings: Sequence[str]) -> bool:
    """Whether at least half of the strings that are not blank are texts."""
    filled = [string for string in strings if string.strip()]
    return 0 < len(filled) <= 2 * sum(map(_is_text, filled))


def _is_text(string: str) -> bool:
    """Whether a string has two words with letters, or is in a script without spaces, and is no path."""
    words = [word for word in string.split() if any(map(str.isalpha, word))]
    return (len(words) > 1 or UNSPACED.search(string) is not None) and PATH.search(string) is None


def select_token_ids(leaf: Leaf, size: tuple[int, int], vocabulary_size: int | None) -> Prompts | None:
    """Select rows of integers that may be token ids.

    Args:
        leaf: holds one row per image, or several per image, of which the first are taken.
        size: height and width of the images; integers of this shape are a segmentation.
        vocabulary_size: as in :class:`TextInput`.
    """
    shape = tuple(leaf.value.shape[1:]) if isinstance(leaf.value, Tensor) and is_dense(leaf.value) else ()
    if leaf.words & NON_PROMPT_WORDS or shape == size or (len(shape) == 2 and shape[0] > MAX_CAPTIONS):
        return None
    rows = select_rows(leaf.value)
    if rows is None or not _may_be_token_ids(rows, vocabulary_size, is_prompt_key(leaf)):
        return None
    return list(rows)


def select_rows(value: Any) -> Int[Tensor, "n l"] | None:
    """Select rows of token ids, or of what goes with them; of several captions per sample the first."""
    if not isinstance(value, Tensor) or not is_dense(value) or value.dtype not in (torch.int32, torch.int64):
        return None
    if value.ndim == 3 and value.numel():
        value = value[:, 0]
    if not value.numel() or value.ndim != 2 or value.shape[1] < MIN_TOKENS:
        return None
    with torch.inference_mode(False):
        rows: Int[Tensor, "n l"] = value.detach().cpu().clone()
        return rows


def _may_be_token_ids(ids: Int[Tensor, "n l"], vocabulary_size: int | None, is_named: bool) -> bool:
    """Whether integers are in the vocabulary, no flags, and begin and end as rows of token ids do."""
    if ids.min() < 0 or ids.max() <= 1 or (vocabulary_size is not None and ids.max() >= vocabulary_size):
        return False
    if vocabulary_size == CLIP_VOCABULARY:
        return bool((ids[:, 0] == CLIP_START).all() and (ids == CLIP_END).any(dim=1).all())
    return is_named or _have_start(ids) or _have_padding(ids)


def _have_start(ids: Int[Tensor, "n l"]) -> bool:
    """Whether several rows begin with one id that is nowhere else in them."""
    start = ids[0, 0]
    return bool(len(ids) > 1 and (ids[:, 0] == start).all() and (ids[:, 1:] != start).all())


def _have_padding(ids: Int[Tensor, "n l"]) -> bool:
    """Whether a row ends with one id twice that is nowhere but at the end of any row."""
    candidates = ids[ids[:, -1] == ids[:, -2], -1].unique()
    return any(bool(((ids == candidate).int().diff(dim=1) >= 0).all()) for candidate in candidates)
