"""The values in a batch, however they are nested."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from PIL import Image
from torch import Tensor

from clipcam_lightning.probes.load import is_dense

LEAF_SEQUENCES = (str, bytes, bytearray, memoryview, range)  # sequences that hold no images


@dataclass(frozen=True, eq=False)
class Leaf:
    """A value of a batch.

    Attributes:
        path: where it is: the position in each container from the outside in.
        key: the nearest key above it.
        value: no container.
    """

    path: tuple[int, ...]
    key: str
    value: Any


def walk(batch: object) -> Iterator[Leaf]:
    """Yield the leaves of nested mappings, sequences and dataclasses in order."""
    stack: list[tuple[tuple[int, ...], str, Any]] = [((), "", batch)]
    visited: dict[int, Any] = {}  # a nest may hold itself; the reference keeps a value's id from being used again
    while stack:
        path, key, value = stack.pop()
        children = _list_children(key, value)
        if children is None:
            yield Leaf(path, key, value)
        elif id(value) not in visited:
            visited[id(value)] = value
            stack.extend(reversed([((*path, i), name, child) for i, (name, child) in enumerate(children)]))


def _list_children(key: str, value: Any) -> list[tuple[str, Any]] | None:
    """Return what a container holds, by its own keys or else under ``key``; ``None`` for a leaf."""
    if isinstance(value, Mapping):
        return [(str(name), child) for name, child in value.items()]
    if is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name)) for field in fields(value)]
    if isinstance(value, tuple) and hasattr(value, "_asdict"):  # a named tuple
        return list(value._asdict().items())
    if isinstance(value, Sequence) and not isinstance(value, LEAF_SEQUENCES) and not _is_leaf_list(value):
        samples = [sample for sample in value if sample is not None]
        if _are_samples(samples):
            return _transpose(key, samples)
        return [(key, child) for child in value]
    return None


def _is_leaf_list(value: Any) -> bool:
    """Whether a list holds one string, number or image per sample."""
    return is_strings(value) or is_images(value) or (len(value) > 0 and all(type(item) is int for item in value))


def is_images(value: Any) -> bool:
    """Whether a list holds one image per sample, or ``None``."""
    present = [item for item in value if item is not None] if isinstance(value, list | tuple) else []
    return bool(present) and all(map(_is_image, present))


def _is_image(item: Any) -> bool:
    return isinstance(item, Image.Image) or (isinstance(item, Tensor) and item.ndim == 3 and item.shape[0] == 3)


def _are_samples(items: Sequence[Any]) -> bool:
    """Whether a list holds samples that nothing collated: mappings or tuples of one form, with images."""
    if not items or not all(isinstance(item, Mapping | tuple | list) and len(item) == len(items[0]) for item in items):
        return False
    parts = [list(item.values()) if isinstance(item, Mapping) else list(item) for item in items]
    # Two lists of four samples' images and texts would look like two samples of which one has images.
    enough = any if isinstance(items[0], Mapping) else all
    return enough(any(map(_is_image, part)) for part in parts) and len({type(item) for item in items}) == 1


def _transpose(key: str, samples: Sequence[Any]) -> list[tuple[str, Any]]:
    """Collate samples into one list per part."""
    if isinstance(samples[0], Mapping):
        return [(str(name), [sample.get(name) for sample in samples]) for name in samples[0]]
    return [(key, list(part)) for part in zip(*samples, strict=True)]


def is_strings(value: Any) -> bool:
    """Whether a list holds strings, and at least one."""
    return isinstance(value, list | tuple) and len(value) > 0 and all(isinstance(item, str) for item in value)


def describe_leaves(leaves: Sequence[Leaf]) -> str:
    """List the first leaves by dtype and shape, or by type."""
    kinds = [
        f"{leaf.value.dtype} {tuple(leaf.value.shape)}".removeprefix("torch.")
        if isinstance(leaf.value, Tensor) and is_dense(leaf.value)
        else type(leaf.value).__name__
        for leaf in leaves[:8]
    ]
    return ", ".join(kinds) or "nothing"
