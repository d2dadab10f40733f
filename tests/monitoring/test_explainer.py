"""Explaining within memory: batches are halved until they fit, and the maps do not change."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from clipcam_lightning.cam.explain import explain
from clipcam_lightning.cam.finding import find_clip
from clipcam_lightning.cam.methods.gradcam import gradcam
from clipcam_lightning.cam.model import ClipModel
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


def run_out_of_cpu_memory() -> None:
    torch.empty(2**55)


def run_out_of_cuda_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


def run_out_of_python_memory() -> None:
    raise MemoryError


def run_out_of_metal_memory() -> None:
    raise RuntimeError("MPS backend out of memory")


def run_out_of_memory_of_a_library() -> None:
    raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")


def run_out_of_memory_of_convolutions() -> None:
    raise RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")


class GreedyMethod:
    """Grad-CAM that has memory for a few images, and records its batch sizes.

    Args:
        room: how many images fit into memory.
        exhaust: raises what is raised when memory runs out.
    """

    def __init__(self, room: int, exhaust: Callable[[], None] = run_out_of_cpu_memory) -> None:
        self.room = room
        self.exhaust = exhaust
        self.batch_sizes: list[int] = []

    def __call__(self, capture: Any) -> Tensor:
        self.batch_sizes.append(len(capture.activations))
        if len(capture.activations) > self.room:
            self.exhaust()
        return gradcam(capture)


@pytest.mark.parametrize(
    "exhaust",
    [
        run_out_of_cpu_memory,
        run_out_of_cuda_memory,
        run_out_of_python_memory,
        run_out_of_metal_memory,
        run_out_of_memory_of_a_library,
        run_out_of_memory_of_convolutions,
    ],
)
def test_batches_are_halved_until_they_fit_and_the_maps_are_those_of_one_batch(
    exhaust: Callable[[], None], clip: ClipModel, images: Tensor
) -> None:
    method = GreedyMethod(room=3, exhaust=exhaust)

    explanation = explain_within_memory(clip, images, ["a red circle"], MapSettings(method=method, layers=-1))

    assert method.batch_sizes == [11, 5, 2, 2, 2, 2, 2, 1]
    whole = explain(clip, images, ["a red circle"], method="gradcam", layers=-1)
    assert_close(explanation.maps, whole.maps)
    assert_close(explanation.similarity, whole.similarity)


@pytest.mark.parametrize(("batch_size", "first"), [(4, 4), (100, 11), (None, 11)])
def test_the_first_batch_has_the_batch_size_or_all_images_if_they_are_fewer(
    batch_size: int | None, first: int, clip: ClipModel, images: Tensor
) -> None:
    method = GreedyMethod(room=99)
    explain_within_memory(clip, images, ["a red circle"], MapSettings(method=method, batch_size=batch_size))
    assert method.batch_sizes[0] == first


def test_it_is_an_error_if_not_even_one_image_fits(clip: ClipModel, images: Tensor) -> None:
    method = GreedyMethod(room=0)
    with pytest.raises(ClipCamError, match=r"even one image at a time \(.*can't allocate memory.*Free some") as raised:
        explain_within_memory(clip, images, ["a red circle"], MapSettings(method=method))
    assert method.batch_sizes == [11, 5, 2, 1]
    assert raised.value.__context__ is None, "its context would keep the tensors of the failed attempt"


@pytest.mark.parametrize(
    "error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), KeyError("out of memory")]
)
def test_another_error_is_raised_at_once(error: Exception, clip: ClipModel, images: Tensor) -> None:
    def broken() -> None:
        raise error

    method = GreedyMethod(room=0, exhaust=broken)
    with pytest.raises(type(error), match=str(error.args[0])):
        explain_within_memory(clip, images, ["a red circle"], MapSettings(method=method))
    assert method.batch_sizes == [11]


def test_the_tensors_of_a_failed_attempt_are_freed_before_the_next(clip: ClipModel, images: Tensor) -> None:
    references: list[weakref.ref[Tensor]] = []
    alive: list[bool] = []

    def method(capture: Any) -> Tensor:
        alive.append(any(reference() is not None for reference in references))
        attempt = capture.activations.clone()  # a traceback keeps this frame, and the frame keeps the tensor
        references.append(weakref.ref(attempt))
        if len(attempt) > 2:
            run_out_of_cpu_memory()
        return gradcam(capture)

    gc.disable()
    try:
        explain_within_memory(clip, images[:4], ["a red circle"], MapSettings(method=method))
    finally:
        gc.enable()
    assert alive == [False, False, False]
