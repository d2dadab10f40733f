"""Random models in which every parameter influences the result, as oracles need them."""

from typing import TypeVar

import torch
from torch import nn

Model = TypeVar("Model", bound=nn.Module)


def randomize_parameters(model: Model) -> Model:
    """Change biases from 0, norms from the identity and attention from uniform, so that an error in any part shows.

    Returns:
        The model itself, in eval mode.
    """
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    attention_inputs = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "q_proj.weight", "k_proj.weight")
    with torch.no_grad():
        for name, parameter in model.visual.named_parameters():
            if parameter.ndim == 1:
                parameter += 0.2 * torch.randn_like(parameter)
            elif parameter.ndim == 4:  # with torch's initialisation, differences between cells fade from layer to layer
                parameter *= 1.8
            elif name.endswith(attention_inputs):  # sharper attention
                parameter *= 2
    return model.eval()
