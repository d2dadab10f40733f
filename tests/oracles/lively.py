"""Random models as an oracle needs them: every parameter matters."""

from typing import TypeVar

import torch
from torch import nn

Model = TypeVar("Model", bound=nn.Module)


def lively(model: Model) -> Model:
    """Leave no bias at 0, no norm the identity and no attention uniform, which would hide what is left out."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    sharpened = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "q_proj.weight", "k_proj.weight")
    with torch.no_grad():
        for name, parameter in model.visual.named_parameters():
            if parameter.ndim == 1:
                parameter += 0.2 * torch.randn_like(parameter)
            elif parameter.ndim == 4:  # torch's own start lets differences between places fade from layer to layer
                parameter *= 1.8
            elif name.endswith(sharpened):
                parameter *= 2
    return model.eval()
