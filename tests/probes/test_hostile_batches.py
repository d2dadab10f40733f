"""However a batch is nested its images and prompts are found, or it is refused; nothing in it changes."""

from collections import OrderedDict, UserDict, UserList, defaultdict, deque, namedtuple
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from types import MappingProxyType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import event, given
from hypothesis import strategies as st
from torch import Tensor

from clipcam_lightning.errors import ProbeError
from clipcam_lightning.probes.probe_set import ProbeSet
from tests.support.hostile import accepted, as_users_run, examples, made, texts

SIZE, COUNT = (8, 12), 5  # not square, or a swap would hide; five, since nothing below holds five of anything else
IMAGES = torch.rand(COUNT, 3, *SIZE)
TOKENS = torch.arange(COUNT * 6).view(COUNT, 6) + 1
TEXTS = [f"a picture of {i}" for i in range(COUNT)]
Pair = namedtuple("Pair", ["first", "second"])


@dataclass
class Holder:
    """As a dataset with typed samples collates."""

    left: Any
    right: Any = None


CONTAINERS: list[Callable[[list[Any]], Any]] = [
    list,
    tuple,
    deque,
    UserList,
    lambda children: {f"part{i}": child for i, child in enumerate(children)},
    lambda children: OrderedDict((i, child) for i, child in enumerate(children)),  # keys need be no texts
    lambda children: UserDict({f"part{i}": child for i, child in enumerate(children)}),  # as transformers' encodings
    lambda children: MappingProxyType({(i,): child for i, child in enumerate(children)}),
    lambda children: defaultdict(list, {f"part{i}": child for i, child in enumerate(children)}),
    lambda children: Pair(children[0], children[1:]),
    lambda children: Holder(children[0], children[1:]),
    lambda children: Holder(left=None, right=children),
]


def quiet(make: Callable[[], Tensor]) -> Tensor:
    with as_users_run():  # torch warns of some layouts
        return make()


def besides() -> list[Any]:
    """What lies in batches beside images and prompts, and is neither."""
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
        quiet(lambda: torch.nested.nested_tensor([torch.rand(3, *SIZE)] * COUNT)),
        quiet(lambda: torch.quantize_per_tensor(IMAGES, 0.1, 0, torch.qint8)),
    ]


OTHERS = st.sampled_from(besides())


@st.composite
def nests(draw: st.DrawFn, *parts: Any) -> Any:
    """The parts, in order, somewhere in a nest of other things."""
    level: list[Any] = list(parts)
    for _ in range(draw(st.integers(1, 4))):
        grouped: list[Any] = []
        while level:
            held = [level.pop(0) for _ in range(min(len(level), draw(st.integers(1, 3))))]
            for _ in range(draw(st.integers(0, 2))):
                held.insert(draw(st.integers(0, len(held))), draw(OTHERS))
            grouped.append(draw(st.sampled_from(CONTAINERS))(held))
        level = grouped
    batch = draw(st.sampled_from(CONTAINERS))(level)
    if isinstance(batch, list) and draw(st.booleans()):
        batch.append(batch)
    if isinstance(batch, dict) and draw(st.booleans()):
        batch["all"] = [batch]
    return batch


def inventory(batch: Any) -> list[Any]:
    """Every container with what it holds, every tensor with how often it was written to."""
    waiting, seen, listed = [batch], set(), []
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Mapping):
            children = list(value.values())
        elif is_dataclass(value) and not isinstance(value, type):
            children = [getattr(value, field.name) for field in fields(value)]
        else:
            children = list(value) if isinstance(value, list | tuple | deque | UserList) else []
        waiting.extend(children)
        written = value._version if isinstance(value, Tensor) and not value.is_inference() else 0
        listed.append((id(value), written, [id(child) for child in children]))
    return listed


@pytest.mark.parametrize("prompts", [TOKENS, TOKENS.int(), TEXTS, tuple(TEXTS)], ids=["ids", "int32", "list", "tuple"])
@pytest.mark.parametrize("images_first", [True, False])
@given(data=st.data())
@examples(60)
def test_the_one_pair_in_a_nest_is_found(prompts: Any, images_first: bool, data: st.DataObject) -> None:
    batch = data.draw(nests(*((IMAGES, prompts) if images_first else (prompts, IMAGES))))
    before, pixels = inventory(batch), IMAGES.clone()

    with as_users_run():
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
def test_a_nest_without_a_pair_is_refused(data: st.DataObject, part: Any) -> None:
    batch = data.draw(nests(part))
    before = inventory(batch)
    assert accepted(lambda: ProbeSet.from_batch(batch, size=SIZE)) is None
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
    with as_users_run():
        return made(lambda: torch.full(shape, value).to(dtype))


ANYTHING = st.recursive(
    st.one_of(OTHERS, tensors(), texts, st.lists(texts, min_size=2, max_size=2)),
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
def test_a_batch_of_anything_is_used_or_refused(batch: Any) -> None:
    before = inventory(batch)
    probes = accepted(lambda: ProbeSet.from_batch(batch, size=SIZE))
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
    """The same pair along 2 ** depth ways."""
    batch: Any = {"x": IMAGES, "y": TOKENS}
    for _ in range(depth):
        batch = [batch, batch]
    return batch


def circular() -> Any:
    batch: dict[str, Any] = {"meta": {}}
    batch["meta"]["batch"] = batch
    return batch | {"x": IMAGES, "y": TOKENS}


@pytest.mark.parametrize("batch", [nested(5000), shared(60), circular()], ids=["deep", "shared", "circular"])
def test_a_deep_or_circular_batch_is_walked_once(batch: Any) -> None:
    probes = ProbeSet.from_batch(batch, size=SIZE)
    assert torch.equal(torch.stack([probe.tokens for probe in probes]), TOKENS)


def test_the_fields_of_dataclasses_and_named_tuples_say_what_is_a_prompt() -> None:
    @dataclass
    class Batch:
        image: Tensor
        url: list[str]
        caption: list[str]

    named = namedtuple("named", ["url", "image", "caption"])
    urls = [f"about {text}" for text in TEXTS]
    for batch in (Batch(IMAGES, urls, TEXTS), named(urls, IMAGES, TEXTS)):
        assert ProbeSet.from_batch(batch, size=SIZE).prompts == TEXTS


def test_what_a_batch_holds_is_told_also_where_it_has_no_shape() -> None:
    for other, words in (
        (b"abc", "bytes"),
        (range(9), "range"),
        (quiet(lambda: torch.nested.nested_tensor([IMAGES])), "Tensor"),
    ):
        with pytest.raises(ProbeError, match=f"it has {words}"):
            ProbeSet.from_batch([other], size=SIZE)


def test_images_that_are_not_finite_are_refused_with_their_number() -> None:
    images = IMAGES.clone()
    images[2, 1, 3, 4] = torch.nan
    with pytest.raises(ProbeError, match="probe 3: the image must be finite"):
        ProbeSet.from_batch((images, TOKENS), size=SIZE)
