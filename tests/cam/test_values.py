"""Values that hold tensors or modules have a short repr, and can be compared and hashed."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from clipcam_lightning.cam import capture
from clipcam_lightning.cam.attention import Attention
from clipcam_lightning.cam.capture import AttentionCapture, Call
from clipcam_lightning.cam.explanation import Explanation
from clipcam_lightning.cam.model import ClipModel
from clipcam_lightning.cam.passes import Pass
from clipcam_lightning.cam.targets import Contrast, LogSoftmax, Similarity
from clipcam_lightning.cam.towers import find_tower
from tests.support.zoo.open_clip import vit

LONGEST_REPR = 800  # characters; the 768 numbers of a single field would take more than 6,000
CAPTURES = {name: kind for name, kind in vars(capture).items() if isinstance(kind, type) and name.endswith("Capture")}


def make_attention() -> Attention:
    return Attention(*(torch.zeros(1, 2, 4, 96) for _ in range(3)), scale=0.1)


def make_capture(kind: Any) -> Any:
    """Fill the fields of a capture with tensors whose shapes are consistent."""
    is_attention = issubclass(kind, AttentionCapture)
    call = Call((torch.zeros(1, 4, 96),), {})
    values = {
        "activations": torch.zeros(1, 3, 16, 16),
        "gradients": (torch.zeros(1, 1, 2, 16, 16),) if is_attention else torch.zeros(1, 1, 3, 16, 16),
        "curvature": torch.zeros(1, 1, 3, 16, 16),
        "tower": find_tower(vit()) if is_attention else None,
        "grid": (2, 2),
        "directions": torch.zeros(1, 1, 768),
        "first_patch": 1,
        "features": torch.zeros(1, 768),
        "blocks": (0, 1),
        "attentions": (make_attention(), make_attention()),
        "pool": None,
        "inputs": (call, call),
        "attention_inputs": (call, call),
        "last_tokens": torch.zeros(1, 4, 768),
        "weights": (torch.zeros(1, 2, 16) if kind is capture.ClassTokenCapture else torch.zeros(1, 2, 16, 16),),
        "values": (torch.zeros(1, 2, 16, 96),),
        "last": make_attention(),
        "images": torch.zeros(1, 3, 16, 16),
        "scores": torch.zeros(1, 1),
        "score_variants": lambda _variant, count: torch.zeros(1, count, 1),
        "score_without_channels": lambda: torch.zeros(1, 3, 1),
        "score_without_attention": lambda hidden: torch.zeros(1, len(hidden[0]), 1),
    }
    if kind is capture.HeadCapture:
        values["gradients"] = torch.zeros(1, 1, 2, 96)
    return kind(**{field.name: values[field.name] for field in fields(kind)})


def make_values(clip: ClipModel) -> Iterator[Any]:
    yield Explanation(torch.zeros(1, 3, 16, 16), torch.zeros(1, 3), ("layer",), "gradcam", "similarity")
    yield make_attention()
    yield Call((torch.zeros(1, 768),), {"mask": torch.zeros(16, 16)})
    texts = torch.zeros(1, 1, 768)
    yield Pass(clip, torch.zeros(1, 3, 16, 16), texts, 1, Similarity(), ("layer",), "mean", 32)
    for kind in CAPTURES.values():
        yield make_capture(kind)


def test_every_value_is_short_in_an_error_message(clip: ClipModel) -> None:
    for value in make_values(clip):
        assert is_dataclass(value)
        assert repr(value).startswith(f"{type(value).__name__}(")
        assert len(repr(value)) < LONGEST_REPR, repr(value)


def test_every_value_can_be_compared_and_hashed(clip: ClipModel) -> None:
    values, others = list(make_values(clip)), list(make_values(clip))

    for value, other in zip(values, others, strict=True):
        assert value == value
        assert value != other, "values with tensors are compared by identity"
        assert len({value, value, other}) == 2


def test_the_repr_of_an_explanation_names_its_fields_and_shapes() -> None:
    explanation = Explanation(torch.zeros(2, 1, 7, 7), torch.zeros(2, 1), ("layer",), "gradcam", "similarity")

    assert repr(explanation) == (
        "Explanation(maps=float32[2, 1, 7, 7], similarity=float32[2, 1], layers=('layer',), method='gradcam', "
        "target='similarity', scales=(1.0,), flip=False, fuse='mean', score_scale=1.0, shift=False, "
        "precision='float32', grids=None)"
    )


@pytest.mark.parametrize("kind", [Similarity, Contrast, LogSoftmax])
def test_targets_with_the_same_prompts_are_equal(kind: Any) -> None:
    target = kind(negatives=["a cat", "a dog"])

    assert target == kind(negatives=("a cat", "a dog"))
    assert hash(target) == hash(kind(negatives=("a cat", "a dog")))
    assert repr(target).startswith(f"{kind.__name__}(negatives=('a cat', 'a dog')")
    for other in (kind(), kind(["a cat"]), kind(["a dog", "a cat"]), kind(["a cat, a dog"]), "contrast"):
        assert target != other


@pytest.mark.parametrize("kind", [Similarity, Contrast, LogSoftmax])
def test_targets_with_the_same_embeddings_are_equal(kind: Any) -> None:
    embeddings: Tensor = torch.arange(6.0).reshape(2, 3)
    target = kind(embeddings)

    assert target == kind(embeddings.clone())
    assert hash(target) == hash(kind(embeddings.clone()))
    assert "negatives=float32[2, 3]" in repr(target)
    for other in (kind(), kind(["a cat"]), kind(embeddings + 1), kind(embeddings.reshape(3, 2))):
        assert target != other


def test_targets_of_other_types_or_temperatures_are_not_equal() -> None:
    assert len({Similarity(), Contrast(), LogSoftmax(), LogSoftmax(temperature=20.0), LogSoftmax()}) == 4
