"""Find images and prompts in a training batch, however it is nested."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from clipcam_lightning.cam.decoding import ImageLike
from clipcam_lightning.cam.representation import short_repr
from clipcam_lightning.errors import ProbeError
from clipcam_lightning.probes.load import is_dense
from clipcam_lightning.probes.probe import Probe, TokensLike

Prompts: TypeAlias = list[str | TokensLike]
ClassNames: TypeAlias = Sequence[str] | Mapping[int, str]
Selection: TypeAlias = Callable[..., tuple[Any, str]]
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
    "image",
    "img",
    "pixel",
    "visual",
    "neg",
    "negative",
    "label",
    "labels",
    "target",
    "targets",
    "domain",
}
TOKENIZER_OUTPUTS = ("attention_mask", "token_type_ids")
NAMES_OF_CLASSES = ("prompts", "class_prompts", "class_names", "classes", "classnames")  # prompts before bare names
LABEL_KEYS = ("^(label|labels|target|targets|y|class|classes|class_id|category)$", "label|target|class|category", "^$")
MAX_CAPTIONS = 10  # per sample; more rows are a segmentation
MIN_TOKENS = 5  # rows of four numbers are boxes
LEAF_SEQUENCES = (str, bytes, bytearray, memoryview, range)  # sequences that hold no images


@dataclass(frozen=True, eq=False, repr=False)
class BatchProbes:
    """Images and prompts of a batch.

    Attributes:
        images: copies: of preprocessed pixels as float32 tensors on the CPU, or of images that the model's own
            transform takes.
        prompts: one string, row of token ids, or row of each tensor of a tokenizer, per image.
        texts: strings that stand beside token ids, for display; else empty.
        is_resized: whether the images were larger or smaller than the model takes, and were resized.
    """

    images: list[ImageLike]
    prompts: Prompts
    texts: list[str]
    is_resized: bool = False

    __repr__ = short_repr

    def list_probes(self, count: int, tokenizer: object = None) -> list[Probe]:
        """List the first ``count`` probes; ``tokenizer`` decodes token ids for their prompts, where it can."""
        prompts = self.prompts[:count]
        texts = self.texts[:count] or [decode_prompt(prompt, tokenizer) for prompt in prompts]
        return [
            Probe(image, decode_prompt(text, tokenizer), tokens=None if isinstance(prompt, str) else prompt)
            for image, text, prompt in zip(self.images, texts, prompts, strict=False)
        ]


def find_images_and_prompts(
    batch: object,
    size: tuple[int, int],
    other_sizes: SizeFilter | None = None,
    names: ClassNames | None = None,
    are_names_given: bool = True,
) -> BatchProbes:
    """Find the first images in a batch, and the strings, token ids or labels that go with them.

    Images of the model's size take precedence, then of a size that it takes besides, then uint8 and PIL images, then
    float images of another size, which are resized. Candidates for the prompts have as many entries as there are
    images, and are not nearer to other images. Those under a key such as "caption" or "input_ids" take precedence, then
    labels that index ``names``, then token ids, then strings that are not file names.

    Args:
        batch: mappings, sequences, dataclasses and named tuples, nested in any way; or a list of samples.
        size: height and width of the model's input, in pixels.
        other_sizes: predicate of the sizes that the model takes besides.
        names: what labels stand for.
        are_names_given: whether a user named them, so that labels take precedence over all else.

    Raises:
        ProbeError: the batch holds no images, or no prompts to go with them; the message lists what it holds.
    """
    leaves = list(_walk(batch))
    candidates, is_resized = _list_images(leaves, size, other_sizes)
    several: list[str] = []
    for images in candidates:
        count = len(images.values)
        kept = [i for i, image in enumerate(images.values) if image is not None]
        first = images.values[kept[0]]
        shape = (first.shape[-2], first.shape[-1]) if isinstance(first, Tensor) else size
        near = _list_near(leaves, images, candidates)
        for select in _order_selections(names, are_names_given):
            chosen, problem = select(near, shape, count)
            several += [problem] if problem else []
            if chosen is None:
                continue
            leaf, prompts = chosen
            texts = [] if isinstance(prompts[0], str) else _find_texts(near, shape, count)
            rows = _add_masks(leaf.key, prompts, near)
            return BatchProbes(
                images=[_copy_image(images.values[i]) for i in kept],
                prompts=[rows[i] for i in kept],
                texts=[texts[i] for i in kept] if texts else [],
                is_resized=is_resized,
            )
    if several:
        raise ProbeError(several[0])
    count = len(candidates[0].values)
    labels = "" if names is not None else " If its labels are class numbers, name the classes with prompts=[...]."
    raise ProbeError(
        f"the batch holds {count} images but no {count} strings or token ids to go with them "
        f"(it has {_describe(leaves)}).{labels} Or give probes=... with prompts of your own."
    )


@dataclass(frozen=True, eq=False)
class _Leaf:
    """A value of a batch.

    Attributes:
        path: where it is: the position in each container from the outside in.
        key: the nearest key above it.
        value: no container.
    """

    path: tuple[int, ...]
    key: str
    value: Any


@dataclass(frozen=True, eq=False)
class _Images:
    """Images of a batch, with ``None`` for samples without one, and where they are."""

    path: tuple[int, ...]
    values: list[Any]


def _list_near(leaves: Sequence[_Leaf], images: _Images, candidates: Sequence[_Images]) -> list[_Leaf]:
    """List what may go with images: whatever is not nearer to other images, as in another part of a combined batch."""
    near = []
    for leaf in leaves:
        holders = (leaf.path[:depth] for depth in range(len(leaf.path) - 1, -1, -1))
        home = next((each for each in holders if any(other.path[: len(each)] == each for other in candidates)), ())
        if images.path[: len(home)] == home:
            near.append(leaf)
    return near


def _order_selections(names: ClassNames | None, are_names_given: bool) -> list[Selection]:
    """Order the ways to find prompts, the surest first."""
    named, tokens, strings = (
        partial(_select_first, each) for each in (_select_named_prompts, _select_tokens, _select_strings)
    )
    if names is None:
        return [named, tokens, strings]
    labels = partial(_select_labels, names)
    unnamed = partial(_select_first, _select_unnamed_strings)
    return [labels, named, unnamed, tokens, strings] if are_names_given else [named, unnamed, labels, tokens, strings]


def _select_first(
    select: Callable[[str, Any, tuple[int, int]], Prompts | None],
    leaves: Sequence[_Leaf],
    shape: tuple[int, int],
    count: int,
) -> tuple[tuple[_Leaf, Prompts] | None, str]:
    """Select the first leaf that holds ``count`` prompts of a kind."""
    for leaf in leaves:
        prompts = select(leaf.key, leaf.value, shape)
        if prompts is not None and len(prompts) == count:
            return (leaf, prompts), ""
    return None, ""


def _list_images(
    leaves: Sequence[_Leaf], size: tuple[int, int], other_sizes: SizeFilter | None
) -> tuple[list[_Images], bool]:
    """List the images that may be taken, the best first, and whether they were resized."""
    tensors = [(leaf.path, images) for leaf in leaves if (images := _select_images(leaf.value)) is not None]
    fitting = [(path, images) for path, images in tensors if tuple(images.shape[-2:]) == size]
    if not fitting and other_sizes is not None:
        fitting = [(path, images) for path, images in tensors if other_sizes((images.shape[-2], images.shape[-1]))]
    if fitting:
        return [_Images(path, list(images)) for path, images in fitting], False
    raw = [_Images(leaf.path, listed) for leaf in leaves if (listed := _list_raw_images(leaf.value))]
    if raw:
        return raw, False
    if tensors:
        return [_Images(path, list(_resize(images, size))) for path, images in tensors], True
    raise ProbeError(f"the batch holds no images [n, 3, y, x]; it has {_describe(leaves)}. Give probes=... instead.")


def _resize(images: Float[Tensor, "n 3 y x"], size: tuple[int, int]) -> Float[Tensor, "n 3 v u"]:
    """Resize the shorter side and crop the centre, as most models' own transforms do."""
    height, width = images.shape[-2:]
    scale = max(size[0] / height, size[1] / width)
    whole = [max(round(side * scale), wanted) for side, wanted in zip((height, width), size, strict=True)]
    resized = F.interpolate(images.detach().float(), size=whole, mode="bicubic", antialias=True)
    top, left = (whole[0] - size[0]) // 2, (whole[1] - size[1]) // 2
    return resized[..., top : top + size[0], left : left + size[1]]


def _copy_image(image: Any) -> ImageLike:
    if not isinstance(image, Tensor):
        copied: ImageLike = image.copy()
        return copied
    with torch.inference_mode(False):
        return image.detach().float().cpu().clone()


def _find_texts(leaves: Sequence[_Leaf], shape: tuple[int, int], count: int) -> list[str]:
    """Find the strings that stand beside token ids."""
    for select in (_select_named_strings, _select_strings):
        chosen, _ = _select_first(select, leaves, shape, count)
        if chosen is not None:
            return chosen[1]  # type: ignore[return-value]
    return []


def _add_masks(key: str, prompts: Prompts, leaves: Sequence[_Leaf]) -> Prompts:
    """Add what else a tokenizer returned to its ``input_ids``: attention masks and token types."""
    if key != "input_ids" or isinstance(prompts[0], str):
        return prompts
    others = {
        leaf.key: rows
        for leaf in leaves
        if leaf.key in TOKENIZER_OUTPUTS
        and (rows := _select_rows(leaf.value)) is not None
        and [len(row) for row in rows] == [len(row) for row in prompts]
    }
    if not others:
        return prompts
    return [
        {"input_ids": row, **{name: rows[i] for name, rows in others.items()}}  # type: ignore[dict-item]
        for i, row in enumerate(prompts)
    ]


def find_class_names(owners: Sequence[object]) -> ClassNames | None:
    """Find the names of the classes, or a prompt of each, among the attributes of a module or a dataset.

    Args:
        owners: the first that has them counts.

    Returns:
        Strings by class number; ``None`` if there are none.
    """
    for owner in owners:
        for attribute in NAMES_OF_CLASSES:
            names: Any = getattr(owner, attribute, None)
            values = list(names.values()) if isinstance(names, Mapping) else names
            if _is_strings(values) and not any("{" in name for name in values):  # a template is no class
                return names  # type: ignore[no-any-return]
    return None


def decode_prompt(prompt: str | TokensLike, tokenizer: object) -> str:
    """Return a prompt as text, for display and for the name of its probe.

    Args:
        prompt: text or token ids.
        tokenizer: its ``decode``, or that of its own ``tokenizer``, turns token ids into text.

    Returns:
        The text without special tokens; the first token ids where the tokenizer cannot decode them. Never blank.
    """
    if isinstance(prompt, str):
        return prompt if prompt.strip() else "(empty prompt)"
    row = prompt["input_ids"] if isinstance(prompt, Mapping) else prompt
    ids = [int(token) for token in row if int(token)]
    decode: Callable[[list[int]], str] | None = getattr(tokenizer, "decode", None) or getattr(
        getattr(tokenizer, "tokenizer", None), "decode", None
    )
    try:
        text = re.sub(r"<[^<>]*>|\[(?:CLS|SEP|PAD)\]", " ", decode(ids)) if decode else ""
    except Exception:  # the text is only for people, so a tokenizer that fails to decode must not cost the evaluation
        text = ""
    return " ".join(text.split()) or f"tokens {' '.join(map(str, ids[:8]))}"


def _walk(batch: object) -> Iterator[_Leaf]:
    """Yield the leaves of nested mappings, sequences and dataclasses in order."""
    stack: list[tuple[tuple[int, ...], str, Any]] = [((), "", batch)]
    visited: dict[int, Any] = {}  # a nest may hold itself; the reference keeps a value's id from being used again
    while stack:
        path, key, value = stack.pop()
        children = _list_children(key, value)
        if children is None:
            yield _Leaf(path, key, value)
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
    return _is_strings(value) or _is_images(value) or (len(value) > 0 and all(type(item) is int for item in value))


def _is_images(value: Any) -> bool:
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


def _is_strings(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) > 0 and all(isinstance(item, str) for item in value)


def _select_images(leaf: Any) -> Float[Tensor, "n 3 y x"] | None:
    if not isinstance(leaf, Tensor) or not is_dense(leaf) or not leaf.is_floating_point() or not leaf.numel():
        return None
    if leaf.ndim == 5:  # several images per sample, or the frames of a video: take the first
        leaf = leaf[:, 0] if leaf.shape[2] == 3 else leaf[:, :, 0]
    return leaf if leaf.ndim == 4 and leaf.shape[1] == 3 else None


def _list_raw_images(leaf: Any) -> list[Any]:
    """List images that are not preprocessed, or one tensor per sample; empty if there are none."""
    if isinstance(leaf, Tensor) and is_dense(leaf) and leaf.dtype == torch.uint8 and leaf.ndim == 4 and leaf.numel():
        if leaf.shape[1] == 3:
            leaf = leaf.permute(0, 2, 3, 1)
        return list(leaf.cpu().numpy()) if leaf.shape[3] == 3 else []
    if not _is_images(leaf):
        return []
    if any(isinstance(image, Tensor) and image.dtype == torch.uint8 for image in leaf):
        leaf = [image.permute(1, 2, 0).cpu().numpy() if isinstance(image, Tensor) else image for image in leaf]
    return list(leaf)


def _select_named_prompts(key: str, leaf: Any, size: tuple[int, int]) -> Prompts | None:
    """Select strings or token ids whose key names them as such."""
    if not re.search("caption|prompt|text|sentence|token|input_ids", key.lower()):
        return None
    if isinstance(leaf, Tensor) and leaf.ndim == 3 and leaf.shape[1] > MAX_CAPTIONS:
        return None
    return _select_strings(key, leaf, size) or _select_tokens(key, leaf, size)


def _select_named_strings(key: str, leaf: Any, size: tuple[int, int]) -> Prompts | None:
    return _select_named_prompts(key, leaf, size) if _is_strings(leaf) else None


def _select_unnamed_strings(key: str, leaf: Any, size: tuple[int, int]) -> Prompts | None:
    return None if key else _select_strings(key, leaf, size)


def _select_labels(
    names: ClassNames, leaves: Sequence[_Leaf], _shape: tuple[int, int], count: int
) -> tuple[tuple[_Leaf, Prompts] | None, str]:
    """Select class numbers, and name them; or say why that is not possible."""
    named = names if isinstance(names, Mapping) else dict(enumerate(names))
    numbered = [(leaf, numbers) for leaf in leaves if len(numbers := _list_numbers(leaf.value)) == count]
    for rank in LABEL_KEYS:
        found = [(leaf, numbers) for leaf, numbers in numbered if re.search(rank, leaf.key.lower())]
        fitting = [(leaf, numbers) for leaf, numbers in found if all(number in named for number in numbers)]
        if len(fitting) > 1:
            return None, (
                f"{len(fitting)} parts of the batch could be labels of the images; let the batch name them, as "
                "{'image': ..., 'label': ...}, or give probes=... with prompts of your own."
            )
        if fitting:
            leaf, numbers = fitting[0]
            return (leaf, [named[number] for number in numbers]), ""
        if found:
            number = next(number for number in found[0][1] if number not in named)
            return None, f"prompts has {len(named)} class names, but the batch has the label {number}."
    return None, ""


def _list_numbers(value: Any) -> list[int]:
    if isinstance(value, Tensor):
        is_numbers = is_dense(value) and value.ndim == 1 and value.dtype in (torch.int32, torch.int64)
        return value.tolist() if is_numbers else []
    return value if isinstance(value, list) and all(type(item) is int for item in value) else []


def _select_strings(key: str, leaf: Any, _size: tuple[int, int]) -> Prompts | None:
    if not _is_strings(leaf) or NON_PROMPT_WORDS & set(key.lower().split("_")):
        return None
    are_file_names = all(re.search(r"^\S+\.\w{2,5}$", text) for text in leaf)
    return None if are_file_names else list(leaf)


def _select_tokens(key: str, leaf: Any, size: tuple[int, int]) -> Prompts | None:
    if NON_PROMPT_WORDS & set(key.lower().split("_")):
        return None
    if isinstance(leaf, Tensor) and leaf.ndim == 3 and (leaf.shape[1] > MAX_CAPTIONS or tuple(leaf.shape[1:]) == size):
        return None
    return _select_rows(leaf)  # type: ignore[return-value]


def _select_rows(leaf: Any) -> list[Int[Tensor, "l"]] | None:
    """Select rows of token ids, or of what goes with them; of several captions per sample the first."""
    if not isinstance(leaf, Tensor) or not is_dense(leaf) or leaf.dtype not in (torch.int32, torch.int64):
        return None
    if leaf.ndim == 3 and leaf.numel():
        leaf = leaf[:, 0]
    if not leaf.numel() or leaf.ndim != 2 or leaf.shape[1] < MIN_TOKENS:
        return None
    with torch.inference_mode(False):
        return list(leaf.detach().cpu().clone())


def _describe(leaves: Sequence[_Leaf]) -> str:
    """List the first leaves by dtype and shape, or by type."""
    kinds = [
        f"{leaf.value.dtype} {tuple(leaf.value.shape)}".removeprefix("torch.")
        if isinstance(leaf.value, Tensor) and is_dense(leaf.value)
        else type(leaf.value).__name__
        for leaf in leaves[:8]
    ]
    return ", ".join(kinds) or "nothing"
