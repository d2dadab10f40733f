"""Images and prompts out of a training batch, however it is nested."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from clipcam_lightning.cam.arguments import is_dense
from clipcam_lightning.errors import ProbeError

Prompts: TypeAlias = list[str | Int[Tensor, "l"]]
NO_PROMPTS = {
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
FEWEST_TOKENS = 5  # boxes are four numbers
FLAT = (str, bytes, bytearray, memoryview, range)  # sequences that hold no images


def images_and_prompts(batch: object, size: tuple[int, int]) -> tuple[Float[Tensor, "n 3 y x"], Prompts]:
    """The first images of the model's size, and the strings or token ids that go with them.

    Of several that are as many, those under a key that says so ("caption", "input_ids", ...) come first, then token
    ids, then strings that are no file names.

    Returns:
        Float pixels on the CPU, and one string or row of token ids an image.

    Raises:
        ProbeError: no images of that size, or no prompts that go with them; the message lists what there is.
    """
    leaves = list(_leaves(batch))
    pictures = [tensor for _, leaf in leaves if (tensor := _as_images(leaf)) is not None]
    fitting = [tensor for tensor in pictures if tuple(tensor.shape[-2:]) == size]
    if not fitting:
        sizes = ", ".join(f"{p.shape[-2]}x{p.shape[-1]}" for p in pictures)
        raise ProbeError(
            f"the batch holds no float images [n, 3, {size[0]}, {size[1]}]"
            + (f"; it has images of {sizes}" if pictures else f"; it has {_described(leaves)}")
            + ". Give probes=... instead."
        )
    images = fitting[0]
    for wanted in (_named_prompts, _as_tokens, _as_strings):
        for key, leaf in leaves:
            prompts = wanted(key, leaf, size)
            if prompts is not None and len(prompts) == len(images):
                with torch.inference_mode(False):
                    return images.detach().float().cpu().clone(), prompts
    raise ProbeError(
        f"the batch holds {len(images)} images but no {len(images)} strings or token ids to go with them "
        f"(it has {_described(leaves)}). Give probes=... with prompts of your own."
    )


def decoded(prompt: str | Int[Tensor, "l"], tokenizer: object) -> str:
    """The prompt in words, as far as ``tokenizer`` can say."""
    if isinstance(prompt, str):
        return prompt if prompt.strip() else "(empty prompt)"
    ids = [int(token) for token in prompt if int(token)]
    decode: Callable[[list[int]], str] | None = getattr(tokenizer, "decode", None) or getattr(
        getattr(tokenizer, "tokenizer", None), "decode", None
    )
    try:
        text = re.sub(r"<[^<>]*>|\[(?:CLS|SEP|PAD)\]", " ", decode(ids)) if decode else ""
    except Exception:  # the words are only for people; a tokenizer that cannot decode takes no look away
        text = ""
    return " ".join(text.split()) or f"tokens {' '.join(map(str, ids[:8]))}"


def _leaves(batch: object) -> Iterator[tuple[str, Any]]:
    """Everything in a nest of mappings, sequences and dataclasses, in order, each with the key it lay under."""
    waiting: list[tuple[str, Any]] = [("", batch)]
    seen: dict[int, Any] = {}  # a nest may hold itself; what is kept here cannot give its id to another
    while waiting:
        key, value = waiting.pop()
        children = _children(key, value)
        if children is None:
            yield key, value
        elif id(value) not in seen:
            seen[id(value)] = value
            waiting.extend(reversed(children))


def _children(key: str, value: Any) -> list[tuple[str, Any]] | None:
    """What lies in a value, each under its own key or else the value's; ``None`` where nothing can."""
    if isinstance(value, Mapping):
        return [(str(name), child) for name, child in value.items()]
    if is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name)) for field in fields(value)]
    if isinstance(value, tuple) and hasattr(value, "_asdict"):  # a named tuple
        return list(value._asdict().items())
    if isinstance(value, Sequence) and not isinstance(value, FLAT) and not _is_strings(value):
        return [(key, child) for child in value]
    return None


def _is_strings(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) > 0 and all(isinstance(item, str) for item in value)


def _as_images(leaf: Any) -> Float[Tensor, "n 3 y x"] | None:
    if not isinstance(leaf, Tensor) or not is_dense(leaf) or not leaf.is_floating_point() or not leaf.numel():
        return None
    if leaf.ndim == 5:  # one image or several a sample: the first
        leaf = leaf[:, 0]
    return leaf if leaf.ndim == 4 and leaf.shape[1] == 3 else None


def _named_prompts(key: str, leaf: Any, size: tuple[int, int]) -> Prompts | None:
    """Strings or token ids under a key that says what they are."""
    if not re.search("caption|prompt|text|sentence|token|input_ids", key.lower()):
        return None
    return _as_strings(key, leaf, size) or _as_tokens(key, leaf, size)


def _as_strings(key: str, leaf: Any, _size: tuple[int, int]) -> Prompts | None:
    if not _is_strings(leaf) or NO_PROMPTS & set(key.lower().split("_")):
        return None
    return None if all(re.search(r"^\S+\.\w{2,5}$", text) for text in leaf) else list(leaf)  # names of files


def _as_tokens(key: str, leaf: Any, size: tuple[int, int]) -> Prompts | None:
    if not isinstance(leaf, Tensor) or not is_dense(leaf) or leaf.dtype not in (torch.int32, torch.int64):
        return None
    if not leaf.numel():
        return None
    if leaf.ndim == 3 and tuple(leaf.shape[1:]) != size:  # one caption or several a sample: the first
        leaf = leaf[:, 0]
    if leaf.ndim != 2 or leaf.shape[1] < FEWEST_TOKENS or NO_PROMPTS & set(key.lower().split("_")):
        return None
    with torch.inference_mode(False):
        return list(leaf.detach().cpu().clone())


def _described(leaves: Sequence[tuple[str, Any]]) -> str:
    kinds = [
        f"{leaf.dtype} {tuple(leaf.shape)}".removeprefix("torch.")
        if isinstance(leaf, Tensor) and is_dense(leaf)
        else type(leaf).__name__
        for _, leaf in leaves[:8]
    ]
    return ", ".join(kinds) or "nothing"
