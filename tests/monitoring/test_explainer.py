"""A look out of memory is tried again with fewer images at a time; the maps are those of one batch."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from clipcam_lightning.cam.explain import explain
from clipcam_lightning.cam.methods.gradcam import gradcam
from clipcam_lightning.cam.model import ClipModel, find_clip
from clipcam_lightning.cam.settings import MapSettings
from clipcam_lightning.errors import ClipCamError
from clipcam_lightning.monitoring.explainer import explain_within_memory
from tests.support.faulty import tiny_module


@pytest.fixture
def clip() -> ClipModel:
    return find_clip(tiny_module())


@pytest.fixture
def images() -> Tensor:
    return torch.randn(11, 3, 64, 64)


def ask_for_too_much() -> None:
    torch.empty(2**55)


def no_cuda_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


def no_python_memory() -> None:
    raise MemoryError


def no_metal_memory() -> None:
    raise RuntimeError("MPS backend out of memory")


class Greedy:
    """Grad-CAM that has memory for ``room`` images, and remembers how many it was shown."""

    def __init__(self, room: int, exhaust: Callable[[], None] = ask_for_too_much) -> None:
        self.room = room
        self.exhaust = exhaust
        self.shown: list[int] = []

    def __call__(self, capture: Any) -> Tensor:
        self.shown.append(len(capture.activations))
        if len(capture.activations) > self.room:
            self.exhaust()
        return gradcam(capture)


@pytest.mark.parametrize("exhaust", [ask_for_too_much, no_cuda_memory, no_python_memory, no_metal_memory])
def test_batches_are_halved_until_they_fit_and_the_maps_are_those_of_one_batch(
    exhaust: Callable[[], None], clip: ClipModel, images: Tensor
) -> None:
    method = Greedy(room=3, exhaust=exhaust)

    found = explain_within_memory(clip, images, ["a red circle"], MapSettings(method=method, layers=-1))

    assert method.shown == [11, 5, 2, 2, 2, 2, 2, 1]
    whole = explain(clip, images, ["a red circle"], method="gradcam", layers=-1)
    assert_close(found.maps, whole.maps)
    assert_close(found.similarity, whole.similarity)


@pytest.mark.parametrize(("batch_size", "first"), [(4, 4), (100, 11), (None, 11)])
def test_the_first_attempt_takes_the_batch_size_but_no_more_than_there_are(
    batch_size: int | None, first: int, clip: ClipModel, images: Tensor
) -> None:
    method = Greedy(room=99)
    explain_within_memory(clip, images, ["a red circle"], MapSettings(method=method, batch_size=batch_size))
    assert method.shown[0] == first


def test_what_does_not_fit_one_image_at_a_time_is_said(clip: ClipModel, images: Tensor) -> None:
    method = Greedy(room=0)
    with pytest.raises(ClipCamError, match=r"even one image at a time \(.*can't allocate memory.*Free some") as raised:
        explain_within_memory(clip, images, ["a red circle"], MapSettings(method=method))
    assert method.shown == [11, 5, 2, 1]
    assert raised.value.__context__ is None, "an error that is kept keeps the attempt's tensors"


@pytest.mark.parametrize(
    "error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), KeyError("out of memory")]
)
def test_another_error_is_raised_at_once(error: Exception, clip: ClipModel, images: Tensor) -> None:
    def broken() -> None:
        raise error

    method = Greedy(room=0, exhaust=broken)
    with pytest.raises(type(error), match=str(error.args[0])):
        explain_within_memory(clip, images, ["a red circle"], MapSettings(method=method))
    assert method.shown == [11]


def test_a_failed_attempt_is_let_go_before_the_next(clip: ClipModel, images: Tensor) -> None:
    held: list[weakref.ref[Tensor]] = []
    alive: list[bool] = []

    def method(capture: Any) -> Tensor:
        alive.append(any(ref() is not None for ref in held))
        attempt = capture.activations.clone()  # the traceback holds the frame, the frame this
        held.append(weakref.ref(attempt))
        if len(attempt) > 2:
            ask_for_too_much()
        return gradcam(capture)

    gc.disable()
    try:
        explain_within_memory(clip, images[:4], ["a red circle"], MapSettings(method=method))
    finally:
        gc.enable()
    assert alive == [False, False, False]
