"""Find images and prompts in a training batch, however it is nested."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from jaxtyping import Int
from torch import Tensor

from clipcam_lightning.cam.decoding import ImageLike
from clipcam_lightning.cam.representation import short_repr
from clipcam_lightning.errors import ProbeError
from clipcam_lightning.probes.batch_images import BatchImages, SizeFilter, copy_image, list_images
from clipcam_lightning.probes.class_names import ClassNames
from clipcam_lightning.probes.leaves import Leaf, describe_leaves, is_strings, walk
from clipcam_lightning.probes.load import is_dense
from clipcam_lightning.probes.probe import Probe, TokensLike

Prompts: TypeAlias = list[str | TokensLike]
Selection: TypeAlias = Callable[..., tuple[Any, str]]
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
LABEL_KEYS = ("^(label|labels|target|targets|y|class|classes|class_id|category)$", "label|target|class|category", "^$")
MAX_CAPTIONS = 10  # per sample; more rows are a segmentation
MIN_TOKENS = 5  # rows of four numbers are boxes


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
    leaves = list(walk(batch))
    candidates, is_resized = list_images(leaves, size, other_sizes)
    problems: list[str] = []
    for images in candidates:
        count = len(images.values)
        kept = [i for i, image in enumerate(images.values) if image is not None]
        first = images.values[kept[0]]
        shape = (first.shape[-2], first.shape[-1]) if isinstance(first, Tensor) else size
        near = _list_near(leaves, images, candidates)
        for select in _order_selections(names, are_names_given):
            chosen, problem = select(near, shape, count)
            problems += [problem] if problem else []
            if chosen is None:
                continue
            leaf, prompts = chosen
            texts = [] if isinstance(prompts[0], str) else _find_texts(near, shape, count)
            rows = _add_masks(leaf.key, prompts, near)
            return BatchProbes(
                images=[copy_image(images.values[i]) for i in kept],
                prompts=[rows[i] for i in kept],
                texts=[texts[i] for i in kept] if texts else [],
                is_resized=is_resized,
            )
    if problems:
        raise ProbeError(problems[0])
    count = len(candidates[0].values)
    labels = "" if names is not None else " If its labels are class numbers, name the classes with prompts=[...]."
    raise ProbeError(
        f"the batch holds {count} images but no {count} strings or token ids to go with them "
        f"(it has {describe_leaves(leaves)}).{labels} Or give probes=... with prompts of your own."
    )


def _list_near(leaves: Sequence[Leaf], images: BatchImages, candidates: Sequence[BatchImages]) -> list[Leaf]:
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
    leaves: Sequence[Leaf],
    shape: tuple[int, int],
    count: int,
) -> tuple[tuple[Leaf, Prompts] | None, str]:
    """Select the first leaf that holds ``count`` prompts of a kind."""
    for leaf in leaves:
        prompts = select(leaf.key, leaf.value, shape)
        if prompts is not None and len(prompts) == count:
            return (leaf, prompts), ""
    return None, ""


def _find_texts(leaves: Sequence[Leaf], shape: tuple[int, int], count: int) -> list[str]:
    """Find the strings that stand beside token ids."""
    for select in (_select_named_strings, _select_strings):
        chosen, _ = _select_first(select, leaves, shape, count)
        if chosen is not None:
            return chosen[1]  # type: ignore[return-value]
    return []


def _add_masks(key: str, prompts: Prompts, leaves: Sequence[Leaf]) -> Prompts:
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


def _select_named_prompts(key: str, leaf: Any, size: tuple[int, int]) -> Prompts | None:
    """Select strings or token ids whose key names them as such."""
    if not re.search("caption|prompt|text|sentence|token|input_ids", key.lower()):
        return None
    if isinstance(leaf, Tensor) and leaf.ndim == 3 and leaf.shape[1] > MAX_CAPTIONS:
        return None
    return _select_strings(key, leaf, size) or _select_tokens(key, leaf, size)


def _select_named_strings(key: str, leaf: Any, size: tuple[int, int]) -> Prompts | None:
    return _select_named_prompts(key, leaf, size) if is_strings(leaf) else None


def _select_unnamed_strings(key: str, leaf: Any, size: tuple[int, int]) -> Prompts | None:
    return None if key else _select_strings(key, leaf, size)


def _select_labels(
    names: ClassNames, leaves: Sequence[Leaf], _shape: tuple[int, int], count: int
) -> tuple[tuple[Leaf, Prompts] | None, str]:
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
    if not is_strings(leaf) or NON_PROMPT_WORDS & set(key.lower().split("_")):
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
