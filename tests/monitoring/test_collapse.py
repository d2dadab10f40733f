"""A monitor tells a model that has collapsed from one that recognizes its probes, and from one that is not finite."""

import copy
from collections.abc import Callable

import open_clip
import pytest
import torch
from torch import nn

from clipcam_lightning import Probe, ProbeSet, find_clip
from clipcam_lightning.monitoring.explainer import LocalExplainer
from clipcam_lightning.monitoring.monitor import Monitor
from clipcam_lightning.shapes_world.models import WordTokenizer
from clipcam_lightning.shapes_world.scenes import draw_scenes

COUNT = 16


def report_after(model: open_clip.CLIP, change: Callable[[nn.Parameter], object], monitor: Monitor) -> str:
    """Evaluate a model, and again after a change of each weight of its image tower."""
    changed = copy.deepcopy(model)
    with torch.no_grad():
        for weight in changed.visual.parameters():
            change(weight)
    for step, each in enumerate((model, changed)):
        monitor.evaluate(LocalExplainer(find_clip(each, tokenizer=WordTokenizer())), step=step, epoch=0)
    assert monitor.last is not None
    return str(monitor.last.report)


@pytest.fixture
def monitor() -> Monitor:
    scenes = draw_scenes(COUNT, seed=5)
    return Monitor(ProbeSet(Probe(*each) for each in zip(scenes.images, scenes.captions, strict=True)))


def test_a_model_whose_image_tower_is_random_has_collapsed(shapes_vit: open_clip.CLIP, monitor: Monitor) -> None:
    message = report_after(shapes_vit, lambda weight: weight.normal_(std=0.05), monitor)

    assert monitor.baseline is not None
    assert sum(map(str.__eq__, monitor.baseline.closest_prompts, monitor.baseline.prompts)) > 0.9 * COUNT
    assert "the model hardly distinguishes the prompts of the probes" in message
    assert f"of {COUNT} images" in message


def test_a_model_that_is_not_finite_is_said_to_be_so(shapes_vit: open_clip.CLIP, monitor: Monitor) -> None:
    message = report_after(shapes_vit, lambda weight: weight.fill_(torch.nan), monitor)

    assert "its map is not finite" in message
    assert monitor.last is not None
    assert monitor.last.report.collapse is None
    assert set(monitor.last.snapshot.closest_prompts) == {""}


def test_a_model_that_stays_as_it_is_has_not_collapsed(shapes_vit: open_clip.CLIP, monitor: Monitor) -> None:
    report_after(shapes_vit, lambda weight: weight, monitor)

    assert monitor.last is not None
    assert monitor.last.report.collapse is not None
    assert monitor.last.report.collapse.severity == 0
