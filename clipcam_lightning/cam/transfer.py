"""Copies of images to the device of a model, for which the host does not wait."""

import torch
from jaxtyping import Float
from torch import Tensor


def copy_to_device(images: Float[Tensor, "b 3 y x"], device: torch.device) -> Float[Tensor, "b 3 y x"]:
    """Copy images to a device, in float32.

    To a GPU they go through page-locked memory, so that the copy runs while the host prepares what follows. The
    page-locked copy holds one batch, and torch reuses it as soon as the transfer is over.

    Args:
        images: on any device, in any float type.
        device: of the model.

    Returns:
        A copy, also if the images are on the device already: an inference tensor cannot be part of a graph, its copy
        can.
    """
    if device.type == "cuda" and images.device.type == "cpu":
        locked = torch.empty(images.shape, dtype=images.dtype, device="cpu", pin_memory=True)
        return locked.copy_(images).to(device, non_blocking=True).to(torch.float32)
    return images.to(device, torch.float32, copy=True)
