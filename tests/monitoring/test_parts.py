"""An evaluation handles many probes in parts, so that memory does not grow with their number."""

from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from clipcam_lightning import ClipModel, Probe, ProbeSet
from clipcam_lightning.cam import compact_images
from clipcam_lightning.cam.finding import find_clip
from clipcam_lightning.cam.settings import MapSettings
from clipcam_lightning.drift.snapshot import Snapshot
from clipcam_lightning.monitoring.explainer import LocalExplainer, ModelInput
from clipcam_lightning.monitoring.monitor import Monitor
from clipcam_lightning.shapes_world import WordTokenizer, draw_scenes

COUNT, PART = 40, 4
FIELDS = (
    "maps", "similarity", "background_score", "named_without_object", "closest", "transplants_named", "donors",
    "noise_floor", "map_agrees", "objects",
)  # fmt: skip


class Recording(LocalExplainer):
    """Records how many float images each request holds."""

    requests: list[int]

    def embed_images(self, images: ModelInput) -> Tensor:
        self.requests.append(len(images))
        return super().embed_images(images)


class LargestTensor(TorchDispatchMode):
    """Measures the largest float tensor that an operation returns."""

    floats = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, tuple | list) else [result]:
            if isinstance(each, Tensor) and each.is_floating_point():
                self.floats = max(self.floats, each.numel())
        return result


def observe(clip: ClipModel, probes: ProbeSet) -> tuple[Snapshot, list[int]]:
    explainer = Recording(clip, MapSettings(batch_size=PART))
    object.__setattr__(explainer, "requests", [])
    monitor = Monitor(probes)
    monitor.evaluate(explainer, step=0, epoch=0)
    assert monitor.last is not None
    return monitor.last.snapshot, explainer.requests


@pytest.fixture
def probes() -> ProbeSet:
    scenes = draw_scenes(COUNT, seed=5)
    return ProbeSet(
        Probe(image, caption, mask=mask[0] if i % 3 else None)
        for i, (image, caption, mask) in enumerate(zip(scenes.images, scenes.captions, scenes.masks, strict=True))
    )


def test_a_snapshot_does_not_depend_on_the_parts(
    shapes_vit: open_clip.CLIP, probes: ProbeSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = find_clip(shapes_vit, tokenizer=WordTokenizer())
    whole, requests = observe(clip, probes)
    assert max(requests) == COUNT

    monkeypatch.setattr(compact_images, "PART", PART * 64**2)
    with LargestTensor() as largest:
        in_parts, requests = observe(clip, probes)

    assert max(requests) == PART
    assert largest.floats < COUNT * 64**2, "no float tensor holds a value per pixel of every probe"
    for name in FIELDS:
        before, after = getattr(whole, name), getattr(in_parts, name)
        assert torch.is_tensor(before), name
        assert_close(after, before, rtol=1e-4, atol=1e-4, equal_nan=True, msg=name)
    assert whole.images == in_parts.images


def test_pixels_of_float_images_are_restored_in_parts(
    shapes_vit: open_clip.CLIP, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = find_clip(shapes_vit, tokenizer=WordTokenizer())
    images = torch.rand(5, 3, 64, 64) * 2 - 1
    compact = compact_images.CompactImages.of(images.unbind(), 5, clip.preprocessing.normalisation)
    assert compact.normalisation is None
    whole = clip.preprocessing.pixels(images)
    monkeypatch.setattr(compact_images, "PART", 2 * 64**2)
    assert torch.equal(compact.pixels(clip.preprocessing), whole)


def test_evaluations_share_one_copy_of_the_pixels(clip: ClipModel, probes: ProbeSet) -> None:
    monitor = Monitor(probes)
    explainer = LocalExplainer(clip)
    evaluations = []
    for step in range(2):
        monitor.evaluate(explainer, step=step, epoch=step)
        assert monitor.last is not None
        evaluations.append(monitor.last)

    first, second = (each.pixels for each in evaluations)
    assert first is second
    assert torch.equal(
        first, torch.cat([clip.preprocessing.pixels(clip.preprocessing.image(p.image)[None]) for p in probes])
    )
    assert first.data_ptr() != monitor.prepare(clip).images.values.data_ptr(), (
        "a sink that draws on it changes no probe"
    )
