"""The values in a batch, however they are nested."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from clipcam_lightning.errors import abridge
from clipcam_lightning.probes.load import is_dense

NEGATIVE_WORDS = {  # a key with one of these words holds images or texts that do not go with the others
    "corrupted",
    "counterfactual",
    "distractor",
    "distractors",
    "false",
    "foil",
    "foils",
    "hard",
    "incorrect",
    "mismatched",
    "neg",
    "negative",
    "negatives",
    "negs",
    "shuffled",
    "swapped",
    "wrong",
}
MAX_KEY = 40  # characters of a key in a message
LEAF_SEQUENCES = (str, bytes, bytearray, memoryview, range)  # sequences that hold no images


@dataclass(frozen=True, eq=False)
class Leaf:
    """A value of a batch.

    Attributes:
        path: where it is: the position in each container from the outside in.
        keys: the keys above it, from the outside in.
        value: no container, or lists of strings in a list.
    """

    path: tuple[int, ...]
    keys: tuple[str, ...]
    value: Any

    @property
    def key(self) -> str:
        """The nearest key; ``""`` if there is none."""
        return self.keys[-1] if self.keys else ""

    @cached_property
    def words(self) -> set[str]:
        """Words of the nearest key."""
        return set(split_words(self.key))

    @property
    def is_negative(self) -> bool:
        """Whether a key says that this does not go with the other parts of the batch."""
        return any(not NEGATIVE_WORDS.isdisjoint(split_words(key)) for key in self.keys)


def split_words(key: str) -> list[str]:
    """Split a key such as ``"neg_image2"`` or ``"negImage"`` into words in lower case."""
    return [word.lower() for word in re.findall(r"[^\W\d_a-z]+(?![a-z])|[^\W\d_a-z]?[a-z]+", key)]


def walk(batch: object) -> Iterator[Leaf]:
    """Yield the leaves of nested mappings, sequences and dataclasses in order."""
    stack: list[Leaf] = [Leaf((), (), batch)]
    visited: dict[int, Any] = {}  # a nest may hold itself; the reference keeps a value's id from being used again
    while stack:
        leaf = stack.pop()
        if _is_array_of_strings(leaf.value):
            leaf = replace(leaf, value=leaf.value.tolist())
        children = _list_children(leaf.value)
        if children is None:
            yield leaf
        elif id(leaf.value) not in visited:
            visited[id(leaf.value)] = leaf.value
            stack.extend(
                Leaf((*leaf.path, i), leaf.keys if name is None else (*leaf.keys, name), child)
                for i, (name, child) in reversed(list(enumerate(children)))
            )


def _list_children(value: Any) -> Sequence[tuple[str | None, Any]] | None:
    """Return what a container holds, by its own keys if it has such; ``None`` for a leaf."""
    if isinstance(value, Mapping):
        return [(str(name), child) for name, child in value.items()]
    if is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name)) for field in fields(value)]
    if isinstance(value, tuple) and hasattr(value, "_asdict"):  # a named tuple
        return list(value._asdict().items())
    if isinstance(value, Sequence) and not isinstance(value, LEAF_SEQUENCES) and not _is_leaf_list(value):
        samples = [sample for sample in value if sample is not None]
        return _transpose(samples) if _are_samples(samples) else [(None, child) for child in value]
    return None


def _is_leaf_list(value: Any) -> bool:
    """Whether a list holds one string, list of strings, number or image per sample."""
    return (
        is_strings(value)
        or is_string_lists(value)
        or is_images(value)
        or (len(value) > 0 and all(type(item) is int for item in value))
    )


def _is_array_of_strings(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.size > 0 and all(isinstance(item, str) for item in value.flat)


def is_images(value: Any) -> bool:
    """Whether a list holds one image per sample, or ``None``."""
    present = [item for item in value if item is not None] if isinstance(value, list | tuple) else []
    return bool(present) and all(map(_is_image, present))


def _is_image(item: Any) -> bool:
    if isinstance(item, np.ndarray):
        return item.dtype == np.uint8 and item.ndim == 3 and item.shape[2] == 3
    return isinstance(item, Image.Image) or (isinstance(item, Tensor) and item.ndim == 3 and item.shape[0] == 3)


def _are_samples(items: Sequence[Any]) -> bool:
    """Whether a list holds samples that nothing collated: mappings or tuples of one form, with images."""
    if not items or not all(isinstance(item, Mapping | tuple | list) and len(item) == len(items[0]) for item in items):
        return False
    parts = [list(item.values()) if isinstance(item, Mapping) else list(item) for item in items]
    # Two lists of four samples' images and texts would look like two samples of which one has images.
    enough = any if isinstance(items[0], Mapping) else all
    return enough(any(map(_is_image, part)) for part in parts) and len({type(item) for item in items}) == 1


def _transpose(samples: Sequence[Any]) -> list[tuple[str | None, Any]]:
    """Collate samples into one list per part, with the first of several captions."""
    if isinstance(samples[0], Mapping):
        parts: list[tuple[str | None, list[Any]]] = [
            (str(name), [sample.get(name) for sample in samples]) for name in samples[0]
        ]
    else:
        parts = [(None, list(part)) for part in zip(*samples, strict=True)]
    return [(name, [row[0] for row in part] if is_string_lists(part) else part) for name, part in parts]


def is_strings(value: Any) -> bool:
    """Whether a list holds strings, and at least one."""
    return isinstance(value, list | tuple) and len(value) > 0 and all(isinstance(item, str) for item in value)


def is_string_lists(value: Any) -> bool:
    """Whether a list holds lists of strings, such as several captions per image, and at least one."""
    return isinstance(value, list | tuple) and len(value) > 0 and all(map(is_strings, value))


def name_leaf(leaf: Leaf) -> str:
    """Name a leaf in a message: by its key, or by its place."""
    return repr(abridge(leaf.key, MAX_KEY)) if leaf.key else f"part {leaf.path[-1] + 1}"


def describe_leaves(leaves: Sequence[Leaf]) -> str:
    """List the first leaves by key, and by dtype and shape or by type; equal ones once, with their number."""
    counts = list(Counter(map(_describe, leaves)).items())
    return ", ".join(text if count == 1 else f"{text} ({count} times)" for text, count in counts[:8]) or "nothing"


def _describe(leaf: Leaf) -> str:
    value = leaf.value
    key = f"{abridge(leaf.key, MAX_KEY)}: " if leaf.key else ""
    if isinstance(value, Tensor) and is_dense(value):
        return f"{key}{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    if isinstance(value, np.ndarray):
        return f"{key}{value.dtype} array {value.shape}"
    return f"{key}{type(value).__name__}"
