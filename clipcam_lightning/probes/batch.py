"""Find images and prompts in a training batch, however it is nested."""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from clipcam_lightning.cam.decoding import ImageLike
from clipcam_lightning.cam.representation import short_repr
from clipcam_lightning.errors import ProbeError
from clipcam_lightning.probes.batch_images import SizeFilter, copy_image, list_images
from clipcam_lightning.probes.batch_pairs import list_near, require_decided
from clipcam_lightning.probes.batch_texts import (
    CAPTION_WORDS,
    Prompts,
    TextInput,
    is_prompt_key,
    select_rows,
    select_strings,
    select_token_ids,
    separate_captions,
)
from clipcam_lightning.probes.class_names import ClassNames, have_words
from clipcam_lightning.probes.leaves import Leaf, describe_leaves, name_leaf, walk
from clipcam_lightning.probes.load import is_dense
from clipcam_lightning.probes.probe import Probe, TokensLike

Choice: TypeAlias = tuple[tuple[Leaf, Prompts] | None, str]
Select: TypeAlias = Callable[[Leaf], Prompts | None]
TOKENIZER_OUTPUTS = ("attention_mask", "token_type_ids")
LABEL_KEYS = {"label", "labels", "target", "targets", "y", "class", "classes", "class_id", "category"}
LABEL_WORDS = {"label", "labels", "target", "targets", "class", "classes", "category", "categories"}
LABEL_RANKS: tuple[Callable[[Leaf], bool], ...] = (
    lambda leaf: leaf.key.lower() in LABEL_KEYS,
    lambda leaf: not leaf.words.isdisjoint(LABEL_WORDS),
    lambda leaf: not leaf.key,
)


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
        """List ``count`` probes, of different images as long as there are some.

        Args:
            count: how many, unless the batch holds fewer.
            tokenizer: decodes token ids for the prompts, where it can.
        """
        rows = [(self.images[i], (self.texts or self.prompts)[i], self.prompts[i]) for i in self._choose(count)]
        return [
            Probe(image, decode_prompt(text, tokenizer), tokens=None if isinstance(prompt, str) else prompt)
            for image, text, prompt in rows
        ]

    def _choose(self, count: int) -> list[int]:
        """Choose the first captions of different images, and only then further ones of the same images."""
        firsts: dict[bytes, int] = {}
        others = []
        for i, image in enumerate(self.images):
            digest = hashlib.sha256(np.asarray(image).tobytes()).digest()
            if firsts.setdefault(digest, i) != i:
                others.append(i)
            if len(firsts) == count:
                break
        return sorted([*firsts.values(), *others][:count])


def find_images_and_prompts(
    batch: object,
    size: tuple[int, int],
    other_sizes: SizeFilter | None = None,
    names: ClassNames | None = None,
    are_names_given: bool = True,
    text_input: TextInput = TextInput(),  # noqa: B008
) -> BatchProbes:
    """Find the first images in a batch, and the strings, token ids or labels that go with them.

    Images of the model's size take precedence, then of a size that it takes besides, then uint8 and PIL images, then
    float images of another size, which are resized. Candidates for the prompts have as many entries as there are
    images, and are not nearer to other images. Those under a key such as "caption" or "input_ids" take precedence, then
    labels that index ``names``, then strings and token ids under other keys. What is the same for all images comes
    after what is not, and under a key such as "prompt" last. Of strings and token ids, strings take precedence if there
    is a tokenizer for them. Nothing is taken from under a key such as "negative".

    Args:
        batch: mappings, sequences, dataclasses and named tuples, nested in any way; or a list of samples.
        size: height and width of the model's input, in pixels.
        other_sizes: predicate of the sizes that the model takes besides.
        names: what labels stand for.
        are_names_given: whether a user named them, so that labels take precedence over all else. Others must hold a
            word.
        text_input: what the model takes as texts.

    Raises:
        ProbeError: the batch holds no images, or no prompts to go with them; the message lists what it holds. Or the
            prompts may go with one or other of several images.
    """
    advice = " If its labels are class numbers, name the classes with prompts=[...]." if names is None else ""
    if names and not are_names_given and not have_words(names):
        first = ", ".join(map(repr, islice(names.values() if isinstance(names, Mapping) else names, 2)))
        advice = f" The classes are called {first}, ..., which are no prompts; name them with prompts=[...]."
        names = None
    leaves = list(walk(batch))
    candidates, is_resized = list_images(leaves, size, other_sizes)
    problems: list[str] = []
    for images in candidates:
        count = len(images.values)
        kept = [i for i, image in enumerate(images.values) if image is not None]
        first = images.values[kept[0]]
        shape = (first.shape[-2], first.shape[-1]) if isinstance(first, Tensor) else size
        separated = [separate_captions(leaf, count) for leaf in list_near(leaves, images, candidates)]
        near = [leaf for parts, _ in separated for leaf in parts]
        select_ids = partial(select_token_ids, size=shape, vocabulary_size=text_input.vocabulary_size)
        kinds: list[Select] = [select_strings, select_ids] if text_input.has_tokenizer else [select_ids, select_strings]
        for choose in _order_choices(kinds, names, are_names_given):
            chosen, problem = choose(near, count)
            problems += [problem] if problem else []
            if chosen is None:
                continue
            leaf, prompts = chosen
            if not _list_numbers(leaf.value):  # a label is that of all views
                require_decided(leaf, images, candidates)
            texts = [] if isinstance(prompts[0], str) else _find_texts(near, prompts)
            rows = _add_masks(leaf.key, prompts, near)
            return BatchProbes(
                images=[copy_image(images.values[i]) for i in kept],
                prompts=[rows[i] for i in kept],
                texts=[texts[i] for i in kept] if texts else [],
                is_resized=is_resized,
            )
        problems += [problem for _, problem in separated if problem]
    if problems:
        raise ProbeError(problems[0])
    count = len(candidates[0].values)
    marking = [name_leaf(leaf) for leaf in leaves if _marks_classes(leaf, count)]
    if marking:
        advice += f" {marking[0]} marks the classes of each image with 1; a probe needs one of them, as a class number."
    raise ProbeError(
        f"the batch holds {count} images but no prompts to go with them: neither {count} strings nor {count} rows of "
        f"the model's token ids with their start and end (it has {describe_leaves(leaves)}).{advice} Or let the batch "
        "name its prompts, as {'image': ..., 'caption': ...}, or give probes=... with prompts of your own."
    )


def _order_choices(
    kinds: Sequence[Select], names: ClassNames | None, are_names_given: bool
) -> list[Callable[[Sequence[Leaf], int], Choice]]:
    """Order the ways to choose prompts, the surest first.

    What is the same for all images comes after what is not, and under a key such as "prompt", where it may be an
    instruction, last.
    """

    def choose(is_wanted: Callable[[Leaf], bool], *, are_same: bool = False) -> list[partial[Choice]]:
        return [partial(_choose_first, select, is_wanted, are_same) for select in kinds]

    labels = [] if names is None else [partial(_choose_labels, names)]
    named = choose(is_prompt_key)
    return [
        *([*labels, *named] if are_names_given else [*named, *labels]),
        *choose(_has_text_key, are_same=True),
        *choose(_has_no_prompt_key),
        *choose(_has_no_text_key, are_same=True),
    ]


def _has_no_prompt_key(leaf: Leaf) -> bool:
    return not is_prompt_key(leaf)


def _has_text_key(leaf: Leaf) -> bool:
    """Whether a key names texts of images, and no instructions."""
    return is_prompt_key(leaf) and leaf.words.isdisjoint({"prompt", "prompts"})


def _has_no_text_key(leaf: Leaf) -> bool:
    return not _has_text_key(leaf)


def _choose_first(
    select: Select, is_wanted: Callable[[Leaf], bool], are_same: bool, leaves: Sequence[Leaf], count: int
) -> Choice:
    """Choose the first leaf that holds ``count`` prompts of a kind.

    Args:
        select: selects the prompts of this kind.
        is_wanted: predicate of the leaf.
        are_same: whether the prompts of all images are the same.
        leaves: what goes with the images.
        count: number of images.
    """
    if are_same or count == 1:  # nothing else tells a caption from an instruction
        leaves = sorted(leaves, key=lambda leaf: leaf.words.isdisjoint(CAPTION_WORDS))
    for leaf in leaves:
        prompts = select(leaf) if is_wanted(leaf) else None
        if prompts is not None and len(prompts) == count and _are_same(prompts) == are_same:
            return (leaf, prompts), ""
    return None, ""


def _are_same(prompts: Prompts) -> bool:
    """Whether several images have one prompt."""
    first, *others = [prompt.tolist() if isinstance(prompt, Tensor) else prompt for prompt in prompts]
    return bool(others) and all(other == first for other in others)


def _find_texts(leaves: Sequence[Leaf], ids: Prompts) -> list[str]:
    """Find the strings that stand beside token ids."""
    for is_wanted in (is_prompt_key, _has_no_prompt_key):
        chosen, _ = _choose_first(select_strings, is_wanted, _are_same(ids), leaves, len(ids))
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
        and (rows := select_rows(leaf.value)) is not None
        and rows.shape == (len(prompts), len(prompts[0]))
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


def _choose_labels(names: ClassNames, leaves: Sequence[Leaf], count: int) -> Choice:
    """Choose class numbers, and name them; or say why that is not possible."""
    named = names if isinstance(names, Mapping) else dict(enumerate(names))
    numbered = [(leaf, numbers) for leaf in leaves if len(numbers := _list_numbers(leaf.value)) == count]
    for has_rank in LABEL_RANKS:
        found = [(leaf, numbers) for leaf, numbers in numbered if has_rank(leaf)]
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


def _marks_classes(leaf: Leaf, count: int) -> bool:
    """Whether a leaf holds labels as rows of zeros and ones."""
    rows = leaf.value
    if not isinstance(rows, Tensor) or not is_dense(rows) or rows.ndim != 2 or len(rows) != count or not rows.numel():
        return False
    return any(has_rank(leaf) for has_rank in LABEL_RANKS) and bool(((rows == 0) | (rows == 1)).all())


def _list_numbers(value: Any) -> list[int]:
    if isinstance(value, Tensor):
        is_numbers = is_dense(value) and value.ndim == 1 and value.dtype in (torch.int32, torch.int64)
        return value.tolist() if is_numbers else []
    return list(value) if isinstance(value, list | tuple) and all(type(item) is int for item in value) else []
