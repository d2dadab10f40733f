"""Find images and prompts in a training batch, however it is nested."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from clipcam_lightning.errors import ProbeError
from clipcam_lightning.probes.load import is_dense

Prompts: TypeAlias = list[str | Int[Tensor, "l"]]
SizeFilter: TypeAlias = Callable[[tuple[int, int]], bool]
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
}
MIN_TOKENS = 5  # rows of four numbers are boxes
LEAF_SEQUENCES = (str, bytes, bytearray, memoryview, range)  # sequences that hold no images


def find_images_and_prompts(
    batch: object, size: tuple[int, int], other_sizes: SizeFilter | None = None
) -> tuple[Float[Tensor, "n 3 y x"], Prompts]:
    """Find the first images of one size in a batch, and the strings or token ids that go with them.

    Candidates for the prompts have as many entries as there are images. Those under a key such as "caption" or
    "input_ids" take precedence, then token ids, then strings that are not file names.

    Args:
        batch: mappings, sequences, dataclasses and named tuples, nested in any way.
        size: height and width of the images, in pixels.
        other_sizes: predicate of the images to take if there are none of ``size``.

    Returns:
        Float32 pixels on the CPU, and one string or row of token ids per image; both are copies.

    Raises:
        ProbeError: the batch holds no images of such a size, or no prompts to go with them; the message lists what it
            holds.
    """
    leaves = list(_walk(batch))
    candidates = [images for _, leaf in leaves if (images := _select_images(leaf)) is not None]
    fitting = [images for images in candidates if tuple(images.shape[-2:]) == size]
    if not fitting and other_sizes is not None:
        fitting = [images for images in candidates if other_sizes((images.shape[-2], images.shape[-1]))]
    if not fitting:
        sizes = ", ".join(f"{images.shape[-2]}x{images.shape[-1]}" for images in candidates)
        raise ProbeError(
            f"the batch holds no float images [n, 3, {size[0]}, {size[1]}]"
            + (f"; it has images of {sizes}" if candidates else f"; it has {_describe(leaves)}")
            + ". Give probes=... instead."
        )
    images = fitting[0]
    size = (images.shape[-2], images.shape[-1])
    for select in (_select_named_prompts, _select_tokens, _select_strings):
        for key, leaf in leaves:
            prompts = select(key, leaf, size)
            if prompts is not None and len(prompts) == len(images):
                with torch.inference_mode(False):
                    return images.detach().float().cpu().clone(), prompts
    raise ProbeError(
        f"the batch holds {len(images)} images but no {len(images)} strings or token ids to go with them "
        f"(it has {_describe(leaves)}). Give probes=... with prompts of your own."
    )


def decode_prompt(prompt: str | Int[Tensor, "l"], tokenizer: object) -> str:
    """Return a prompt as text, for display and for the name of its probe.

    Args:
        prompt: text or token ids.
        tokenizer: its ``decode``, or that of its own ``tokenizer``, turns token ids into text.

    Returns:
        The text without special tokens; the first token ids where the tokenizer cannot decode them. Never blank.
    """
    if isinstance(prompt, str):
        return prompt if prompt.strip() else "(empty prompt)"
    ids = [int(token) for token in prompt if int(token)]
    decode: Callable[[list[int]], str] | None = getattr(tokenizer, "decode", None) or getattr(
        getattr(tokenizer, "tokenizer", None), "decode", None
    )
    try:
        text = re.sub(r"<[^<>]*>|\[(?:CLS|SEP|PAD)\]", " ", decode(ids)) if decode else ""
    except Exception:  # the text is only for people, so a tokenizer that fails to decode must not cost the evaluation
        text = ""
    return " ".join(text.split()) or f"tokens {' '.join(map(str, ids[:8]))}"


def _walk(batch: object) -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested mappings, sequences and dataclasses in order, each with the nearest key above it."""
    stack: list[tuple[str, Any]] = [("", batch)]
    visited: dict[int, Any] = {}  # a nest may hold itself; the reference keeps a value's id from being used again
    while stack:
        key, value = stack.pop()
        children = _list_children(key, value)
        if children is None:
            yield key, value
        elif id(value) not in visited:
            visited[id(value)] = value
            stack.extend(reversed(children))


def _list_children(key: str, value: Any) -> list[tuple[str, Any]] | None:
    """Return what a container holds, by its own keys or else under ``key``; ``None`` for a leaf."""
    if isinstance(value, Mapping):
        return [(str(name), child) for name, child in value.items()]
    if is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name)) for field in fields(value)]
    if isinstance(value, tuple) and hasattr(value, "_asdict"):  # a named tuple
        return list(value._asdict().items())
    if isinstance(value, Sequence) and not isinstance(value, LEAF_SEQUENCES) and not _is_strings(value):
        return [(key, child) for child in value]
    return None


def _is_strings(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) > 0 and all(isinstance(item, str) for item in value)


def _select_images(leaf: Any) -> Float[Tensor, "n 3 y x"] | None:
    if not isinstance(leaf, Tensor) or not is_dense(leaf) or not leaf.is_floating_point() or not leaf.numel():
        return None
    if leaf.ndim == 5:  # several images per sample: take the first
        leaf = leaf[:, 0]
    return leaf if leaf.ndim == 4 and leaf.shape[1] == 3 else None


def _select_named_prompts(key: str, leaf: Any, size: tuple[int, int]) -> Prompts | None:
    """Select strings or token ids whose key names them as such."""
    if not re.search("caption|prompt|text|sentence|token|input_ids", key.lower()):
        return None
    return _select_strings(key, leaf, size) or _select_tokens(key, leaf, size)


def _select_strings(key: str, leaf: Any, _size: tuple[int, int]) -> Prompts | None:
    if not _is_strings(leaf) or NON_PROMPT_WORDS & set(key.lower().split("_")):
        return None
    are_file_names = all(re.search(r"^\S+\.\w{2,5}$", text) for text in leaf)
    return None if are_file_names else list(leaf)


def _select_tokens(key: str, leaf: Any, size: tuple[int, int]) -> Prompts | None:
    if not isinstance(leaf, Tensor) or not is_dense(leaf) or leaf.dtype not in (torch.int32, torch.int64):
        return None
    if not leaf.numel():
        return None
    if leaf.ndim == 3 and tuple(leaf.shape[1:]) != size:  # several captions per sample: take the first
        leaf = leaf[:, 0]
    if leaf.ndim != 2 or leaf.shape[1] < MIN_TOKENS or NON_PROMPT_WORDS & set(key.lower().split("_")):
        return None
    with torch.inference_mode(False):
        return list(leaf.detach().cpu().clone())


def _describe(leaves: Sequence[tuple[str, Any]]) -> str:
    """List the first leaves by dtype and shape, or by type."""
    kinds = [
        f"{leaf.dtype} {tuple(leaf.shape)}".removeprefix("torch.")
        if isinstance(leaf, Tensor) and is_dense(leaf)
        else type(leaf).__name__
        for _, leaf in leaves[:8]
    ]
    return ", ".join(kinds) or "nothing"
