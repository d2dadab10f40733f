"""What the callback says before the training, if evaluations may not show what is trained."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clipcam_lightning.cam.finding import ModelSpec
from clipcam_lightning.training.doubts import find_doubts
from tests.support.modules import FineTuning


def doubt(module: nn.Module, *optimizers: torch.optim.Optimizer, **spec: Any) -> str:
    doubts = find_doubts(ModelSpec(**spec).find(module), module, optimizers, is_named="clip" in spec)
    return " ".join(each.text for each in doubts)


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


def test_weights_that_no_optimizer_holds_are_not_trained():
    module = FineTuning()
    module.head = nn.Linear(8, 4)
    assert doubt(module, torch.optim.SGD(module.model.parameters(), 0.1)) == ""
    assert "no parameter of the CLIP" in doubt(module, torch.optim.SGD(module.head.parameters(), 0.1))


def test_optimizers_of_other_parameters_leave_the_question_open():
    module = FineTuning()
    module.head = nn.Linear(8, 4)
    assert "head.weight" in doubt(module, torch.optim.SGD([nn.Parameter(torch.ones(3))], 0.1))


def test_the_proxies_of_a_loss_raise_no_doubt():
    class ProxyAnchorLoss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proxies = nn.Parameter(torch.ones(4, 8))

    module = FineTuning()
    module.criterion = ProxyAnchorLoss()
    assert doubt(module) == ""


def test_a_head_of_a_module_that_is_called_after_its_loss_is_named():
    class FineTuningWithLoss(FineTuning):
        pass

    module = FineTuningWithLoss()
    module.head = nn.Linear(8, 4)
    assert "head.weight" in doubt(module)


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
    assert doubt(module) == ""
    module.model.visual.register_forward_hook(Recorder().record)
    assert "'Recorder.record' on 'visual' also runs when probes are evaluated" in doubt(module)


def test_hooks_of_libraries_are_not_those_of_the_user():
    module = FineTuning()
    nn.utils.parametrizations.weight_norm(module.model.visual.transformer.resblocks[0].mlp.c_fc)
    nn.utils.spectral_norm(module.model.visual.transformer.resblocks[0].mlp.c_proj)
    assert doubt(module) == ""
