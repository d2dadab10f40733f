"""What the callback says before the training, if evaluations may not show what is trained."""

from typing import Any

import pytest
from torch import Tensor, nn

from clipcam_lightning.cam.finding import ModelSpec
from clipcam_lightning.training.doubts import describe_hooks, describe_training
from tests.support.modules import FineTuning


def doubt(module: nn.Module, **spec: Any) -> str:
    return describe_training(ModelSpec(**spec).find(module), module, is_named="clip" in spec)


def test_a_module_that_trains_its_clip_alone_raises_no_doubt():
    assert doubt(FineTuning()) == ""


def test_a_temperature_outside_the_clip_raises_no_doubt():
    module = FineTuning()
    module.temperature = nn.Parameter(module.model.logit_scale.detach().clone())
    assert doubt(module) == ""


@pytest.mark.parametrize("freezes", [True, False])
def test_a_head_that_is_trained_beside_the_clip_is_named(freezes: bool):
    module = FineTuning()
    module.head = nn.Linear(8, 4)
    module.model.requires_grad_(not freezes)
    said = doubt(module)
    assert ("no parameter of the CLIP" if freezes else "head.weight") in said
    assert "encode_image=lambda module, images: ..." in said


def test_a_clip_that_the_user_names_may_be_one_of_two():
    module = FineTuning()
    module.other = FineTuning().model
    assert doubt(module, clip="model") == ""


class Recorder(nn.Module):
    """Stores what a layer returns, as a method of a module."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: list[Tensor] = []

    def record(self, _layer: nn.Module, _inputs: Any, output: Tensor) -> None:
        self.outputs.append(output)


def test_a_forward_hook_of_the_user_is_named():
    module = FineTuning()
    clip = ModelSpec().find(module)
    assert describe_hooks(clip) == ""
    module.model.visual.register_forward_hook(Recorder().record)
    assert "'Recorder.record' on 'visual' also runs when probes are evaluated" in describe_hooks(clip)


def test_hooks_of_libraries_are_not_those_of_the_user():
    module = FineTuning()
    nn.utils.parametrizations.weight_norm(module.model.visual.transformer.resblocks[0].mlp.c_fc)
    nn.utils.spectral_norm(module.model.visual.transformer.resblocks[0].mlp.c_proj)
    assert describe_hooks(ModelSpec().find(module)) == ""
