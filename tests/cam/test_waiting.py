"""The host never waits for the device between the batches of one call, which would leave a GPU idle."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from clipcam_lightning.cam import explain as explain_module, model_state
from clipcam_lightning.cam.explain import explain
from clipcam_lightning.cam.finding import find_clip
from clipcam_lightning.cam.methods import METHODS
from clipcam_lightning.cam.model import ClipModel
from clipcam_lightning.cam.settings import MapSettings
from clipcam_lightning.cam.transfer import copy_to_device
from clipcam_lightning.monitoring.explainer import embed_within_memory
from tests.support.counting_device import DeviceTensor, counting_device, move_to_device
from tests.support.zoo import huggingface, open_clip, timm

BATCHES = (1, 2)
# These take many passes per image, and have a test of their own.
PERTURBATION_BASED = {name for name, method in METHODS.items() if method.variants}
# The eigenvectors that these need are found with the host's help, on every device.
WAITING = {"eigencam", "eigengradcam"}
TOWERS: dict[str, Callable[[], nn.Module]] = {
    "class token": open_clip.MODELS["cls"],
    "mean of the patches": open_clip.MODELS["average"],
    "attention pool": open_clip.MODELS["attention pool"],
    "resnet": open_clip.MODELS["resnet"],
    "siglip of timm": timm.MODELS["siglip"],
    "clip of transformers": huggingface.MODELS["clip"],
}


@pytest.fixture(params=TOWERS)
def simulated(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ClipModel:
    """The model on the simulated device."""
    monkeypatch.setattr(model_state, "_lacks_values", lambda _tensor: False)  # the simulated device is called "meta"
    model = TOWERS[request.param]()
    clip = find_clip(model)
    assert fitting_methods(clip)  # which verifies the head, once per model
    move_to_device(model)
    return clip


def fitting_methods(clip: ClipModel) -> list[str]:
    return [name for name, method in METHODS.items() if not method.missing(clip.tower)]


def inputs_of(clip: ClipModel, images: int) -> tuple[Tensor, Tensor]:
    return torch.randn(images, 3, *clip.tower.input_size), torch.randn(2, 16)


def count_waits(clip: ClipModel, batches: int, size: int = 1, **settings: Any) -> Counter[str]:
    """Count the waits of one call; the copy of each batch to the device is none."""
    images, texts = inputs_of(clip, batches * size)
    with counting_device() as waits:
        explain(clip, images, texts, batch_size=size, **settings)
    return waits - Counter(write=batches)


@pytest.mark.slow
def test_no_method_waits_between_batches(simulated: ClipModel) -> None:
    for method in ("auto", *fitting_methods(simulated)):
        if method in WAITING | PERTURBATION_BASED:
            continue
        few, many = (count_waits(simulated, batches, method=method) for batches in BATCHES)

        assert few == many, method


@pytest.mark.parametrize("simulated", ["class token"], indirect=True)
@pytest.mark.parametrize("method", sorted(PERTURBATION_BASED))
def test_no_perturbation_waits_between_batches(method: str, simulated: ClipModel) -> None:
    few, many = (count_waits(simulated, batches, size=16, method=method) for batches in (1, 2))

    assert few == many


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"flip": True, "shift": True, "target": "logsoftmax"},
        {"method": "gradcam", "layers": [-2, -1], "fuse": "product"},
    ],
    ids=lambda settings: ", ".join(settings) or "default",
)
def test_no_setting_waits_between_batches(settings: dict[str, Any], simulated: ClipModel) -> None:
    few, many = (count_waits(simulated, batches, **settings) for batches in BATCHES)

    assert few == many


@pytest.mark.parametrize("simulated", ["class token"], indirect=True)
def test_the_waits_of_a_call_are_few(simulated: ClipModel) -> None:
    assert count_waits(simulated, 6, method="gradcam") == {"read": 3, "write": 3}


def test_embedding_waits_for_the_last_batch_only(simulated: ClipModel) -> None:
    waits = []
    for batches in BATCHES:
        images, _ = inputs_of(simulated, batches)
        with counting_device() as counts:
            embed_within_memory(simulated, images, MapSettings(batch_size=1))
        waits.append(counts - Counter(write=batches))

    assert waits[0] == waits[1]


@pytest.mark.parametrize("simulated", ["class token"], indirect=True)
def test_a_method_that_reads_a_value_waits_for_every_batch(simulated: ClipModel) -> None:
    def largest_only(capture: Any) -> Tensor:
        evidence = (capture.gradients * capture.activations[:, None]).sum(dim=2)
        return evidence / evidence.max().item()

    few, many = (count_waits(simulated, batches, method=largest_only) for batches in BATCHES)

    assert many["read"] - few["read"] == 2 * (BATCHES[1] - BATCHES[0]), "per batch and prompt"


def test_the_simulated_device_computes_what_the_cpu_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_state, "_lacks_values", lambda _tensor: False)
    model = TOWERS["class token"]()
    clip = find_clip(model)
    images, texts = inputs_of(clip, 2)
    expected = explain(clip, images, texts, method="hirescam").maps

    move_to_device(model)
    with counting_device():
        maps = explain(clip, images, texts, method="hirescam").maps

    assert isinstance(maps, DeviceTensor)
    assert_close(maps.values, expected, atol=1e-4 * float(expected.abs().max()), rtol=0)


def test_images_are_copied_even_on_their_own_device() -> None:
    images = torch.randn(2, 3, 4, 4).half()
    with torch.inference_mode():
        inferred = torch.ones(1, 3, 4, 4)

    assert copy_to_device(images, images.device).dtype == torch.float32
    assert not copy_to_device(inferred, inferred.device).is_inference()
    assert copy_to_device(inferred, inferred.device).data_ptr() != inferred.data_ptr()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("tower", TOWERS)
def test_no_method_waits_for_a_gpu(tower: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = find_clip(TOWERS[tower]().cuda())
    images, texts = inputs_of(clip, 4)

    def without_waiting(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            torch.cuda.set_sync_debug_mode("error")
            try:
                return function(*args)
            finally:
                torch.cuda.set_sync_debug_mode("default")

        return run

    for name in ("compute_maps", "copy_to_device"):
        monkeypatch.setattr(explain_module, name, without_waiting(getattr(explain_module, name)))
    for method in (name for name in fitting_methods(clip) if name not in WAITING):
        explain(clip, images, texts, method=method, batch_size=2)
