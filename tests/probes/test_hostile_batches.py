"""Images and prompts are found in any nested batch, or the batch is refused; the batch is never changed."""

from collections import OrderedDict, UserDict, UserList, defaultdict, deque, namedtuple
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from types import MappingProxyType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import event, given, strategies as st
from torch import Tensor

from clipcam_lightning.errors import ProbeError
from clipcam_lightning.probes.probe_set import ProbeSet
from tests.support.hostile import attempt, examples, make_or_reject, texts, without_test_checks

pytestmark = pytest.mark.slow

SIZE, COUNT = (8, 12), 5  # not square, so that a swap shows; nothing below has five entries by accident
IMAGES = torch.rand(COUNT, 3, *SIZE)
TOKENS = torch.cat([torch.ones(COUNT, 1), torch.arange(COUNT * 4).view(COUNT, 4) + 2, torch.zeros(COUNT, 1)], 1).long()
TEXTS = [f"an image of {i}" for i in range(COUNT)]
Pair = namedtuple("Pair", ["first", "second"])


@dataclass
class Holder:
    """What a dataset with typed samples may collate into."""

    left: Any
    right: Any = None


CONTAINERS: list[Callable[[list[Any]], Any]] = [
    list,
    tuple,
    deque,
    UserList,
    lambda children: {f"part{i}": child for i, child in enumerate(children)},
    lambda children: OrderedDict((i, child) for i, child in enumerate(children)),  # keys need not be strings
    lambda children: UserDict(
        {f"part{i}": child for i, child in enumerate(children)}
    ),  # like the encodings of transformers
    lambda children: MappingProxyType({(i,): child for i, child in enumerate(children)}),
    lambda children: defaultdict(list, {f"part{i}": child for i, child in enumerate(children)}),
    lambda children: Pair(children[0], children[1:]),
    lambda children: Holder(children[0], children[1:]),
    lambda children: Holder(left=None, right=children),
]


def make_quietly(make: Callable[[], Tensor]) -> Tensor:
    with without_test_checks():  # torch warns about some layouts
        return make()


def make_distractors() -> list[Any]:
    """Values that occur in batches and are neither images nor prompts."""
    return [
        None,
        3,
        0.5,
        "a word",
        b"\xff\xd8 a file " * 1000,
        range(10**12),
        object(),
        Holder,
        Pair,
        SimpleNamespace(images=IMAGES),
        np.zeros((COUNT, 3, *SIZE), np.float32),
        torch.arange(COUNT),
        torch.rand(COUNT),
        torch.ones(COUNT, 4, dtype=torch.long),
        torch.ones(COUNT, *SIZE, dtype=torch.long),
        torch.ones(COUNT, 6, dtype=torch.bool),
        torch.zeros(COUNT, 3, *SIZE, dtype=torch.uint8),
        torch.rand(COUNT, 3, 4, 6),
        torch.rand(COUNT, 1, *SIZE),
        torch.rand(0, 3, *SIZE),
        torch.rand(COUNT, 0, 3, *SIZE),
        torch.ones(0, 6, dtype=torch.long),
        torch.ones(COUNT, 0, 6, dtype=torch.long),
        torch.rand(COUNT, 3, *SIZE, device="meta"),
        torch.ones(COUNT, 6, dtype=torch.long, device="meta"),
        torch.rand(COUNT, 3, *SIZE).to_sparse(),
        make_quietly(lambda: torch.nested.nested_tensor([torch.rand(3, *SIZE)] * COUNT)),
        make_quietly(lambda: torch.quantize_per_tensor(IMAGES, 0.1, 0, torch.qint8)),
    ]


def is_second_choice(value: Any) -> bool:
    """Whether these are images that are taken where a batch has no others."""
    return (
        isinstance(value, Tensor) and not value.is_nested and value.ndim == 4 and tuple(value.shape[:2]) == (COUNT, 3)
    )


DISTRACTORS = st.sampled_from(make_distractors())
WITHOUT_IMAGES = st.sampled_from([each for each in make_distractors() if not is_second_choice(each)])


@st.composite
def nested_batches(draw: st.DrawFn, *parts: Any, distractors: st.SearchStrategy[Any] = DISTRACTORS) -> Any:
    """The parts, in order, somewhere in nested containers of other values."""
    level: list[Any] = list(parts)
    for _ in range(draw(st.integers(1, 4))):
        grouped: list[Any] = []
        while level:
            held = [level.pop(0) for _ in range(min(len(level), draw(st.integers(1, 3))))]
            for _ in range(draw(st.integers(0, 2))):
                held.insert(draw(st.integers(0, len(held))), draw(distractors))
            grouped.append(draw(st.sampled_from(CONTAINERS))(held))
        level = grouped
    batch = draw(st.sampled_from(CONTAINERS))(level)
    if isinstance(batch, list) and draw(st.booleans()):
        batch.append(batch)
    if isinstance(batch, dict) and draw(st.booleans()):
        batch["all"] = [batch]
    return batch


def inventory(batch: Any) -> list[Any]:
    """List every container with its children, and every tensor with how often it was written to."""
    stack, visited, listed = [batch], set(), []
    while stack:
        value = stack.pop()
        if id(value) in visited:
            continue
        visited.add(id(value))
        if isinstance(value, Mapping):
            children = list(value.values())
        elif is_dataclass(value) and not isinstance(value, type):
            children = [getattr(value, field.name) for field in fields(value)]
        else:
            children = list(value) if isinstance(value, list | tuple | deque | UserList) else []
        stack.extend(children)
        writes = value._version if isinstance(value, Tensor) and not value.is_inference() else 0
        listed.append((id(value), writes, [id(child) for child in children]))
    return listed


@pytest.mark.parametrize("prompts", [TOKENS, TOKENS.int(), TEXTS, tuple(TEXTS)], ids=["ids", "int32", "list", "tuple"])
@pytest.mark.parametrize("images_first", [True, False])
@given(data=st.data())
@examples(60)
def test_the_only_images_and_prompts_in_a_nested_batch_are_found(
    prompts: Any, images_first: bool, data: st.DataObject
) -> None:
    batch = data.draw(nested_batches(*((IMAGES, prompts) if images_first else (prompts, IMAGES))))
    before, pixels = inventory(batch), IMAGES.clone()

    with without_test_checks():
        probes = ProbeSet.from_batch(batch, size=SIZE)

    assert inventory(batch) == before
    assert torch.equal(IMAGES, pixels)
    assert torch.equal(torch.stack([probe.image for probe in probes]), IMAGES)
    if isinstance(prompts, Tensor):
        assert torch.equal(torch.stack([probe.tokens for probe in probes]), prompts)
    else:
        assert probes.prompts == TEXTS


@given(data=st.data(), part=st.sampled_from([IMAGES, TOKENS, TEXTS, None]))
@examples(100)
def test_a_nested_batch_without_both_is_refused(data: st.DataObject, part: Any) -> None:
    batch = data.draw(nested_batches(part, distractors=WITHOUT_IMAGES))
    before = inventory(batch)
    assert attempt(lambda: ProbeSet.from_batch(batch, size=SIZE)) is None
    assert inventory(batch) == before


DTYPES = sorted({kind for kind in vars(torch).values() if isinstance(kind, torch.dtype)}, key=str)
SHAPES = st.one_of(
    st.sampled_from([(2, 3, *SIZE), (2, 1, 3, *SIZE), (2, 6), (2, 2, 6)]),
    st.lists(st.integers(0, 3), max_size=6).map(tuple),
)


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    shape, dtype = draw(SHAPES), draw(st.sampled_from(DTYPES))
    value = draw(st.sampled_from([0, 1, float("nan"), float("inf")]))
    with without_test_checks():
        return make_or_reject(lambda: torch.full(shape, value).to(dtype))


ANYTHING = st.recursive(
    st.one_of(DISTRACTORS, tensors(), texts, st.lists(texts, min_size=2, max_size=2)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["image", "caption", "input_ids", "mask", "id", "path"]) | texts, inner, max_size=3
        ),
        st.builds(Holder, inner, inner),
    ),
    max_leaves=8,
)


@given(batch=ANYTHING)
@examples(300)
def test_a_batch_of_any_values_is_used_or_refused(batch: Any) -> None:
    before = inventory(batch)
    probes = attempt(lambda: ProbeSet.from_batch(batch, size=SIZE))
    assert inventory(batch) == before
    event("used" if probes else "refused")
    if probes is not None:
        assert all(probe.image.shape == (3, *SIZE) and probe.prompt.strip() for probe in probes)


def nested(depth: int) -> Any:
    batch: Any = (IMAGES, TOKENS)
    for _ in range(depth):
        batch = [batch]
    return batch


def shared(depth: int) -> Any:
    """Images and prompts that can be reached along 2 ** depth paths."""
    batch: Any = {"x": IMAGES, "y": TOKENS}
    for _ in range(depth):
        batch = [batch, batch]
    return batch


def circular() -> Any:
    batch: dict[str, Any] = {"meta": {}}
    batch["meta"]["batch"] = batch
    return batch | {"x": IMAGES, "y": TOKENS}


@pytest.mark.parametrize("batch", [nested(5000), shared(60), circular()], ids=["deep", "shared", "circular"])
def test_every_container_is_visited_once_in_deep_shared_and_circular_batches(batch: Any) -> None:
    probes = ProbeSet.from_batch(batch, size=SIZE)
    assert torch.equal(torch.stack([probe.tokens for probe in probes]), TOKENS)


def test_field_names_of_dataclasses_and_named_tuples_show_which_strings_are_prompts() -> None:
    @dataclass
    class Batch:
        image: Tensor
        url: list[str]
        caption: list[str]

    named = namedtuple("named", ["url", "image", "caption"])
    urls = [f"about {text}" for text in TEXTS]
    for batch in (Batch(IMAGES, urls, TEXTS), named(urls, IMAGES, TEXTS)):
        assert ProbeSet.from_batch(batch, size=SIZE).prompts == TEXTS


def test_the_message_names_the_type_of_values_without_a_shape() -> None:
    for value, kind in (
        (b"abc", "bytes"),
        (range(9), "range"),
        (make_quietly(lambda: torch.nested.nested_tensor([IMAGES])), "Tensor"),
    ):
        with pytest.raises(ProbeError, match=f"it has {kind}"):
            ProbeSet.from_batch([value], size=SIZE)


def test_the_message_numbers_the_first_image_that_is_not_finite() -> None:
    images = IMAGES.clone()
    images[2, 1, 3, 4] = torch.nan
    with pytest.raises(ProbeError, match="probe 3: the image must be finite"):
        ProbeSet.from_batch((images, TOKENS), size=SIZE)
