"""From a picture to what the model is fed, and back to pixels a person can look at."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from open_clip.model import get_model_preprocess_cfg
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor, nn


@dataclass(frozen=True)
class Preprocessing:
    """The evaluation transform of a model: resize, crop or pad, scale to 0-1, normalise.

    Attributes:
        config: size, mean, std, interpolation and resize mode, as open_clip keeps them on the model.
    """

    config: PreprocessCfg

    @classmethod
    def of(cls, clip: nn.Module, input_size: tuple[int, int]) -> "Preprocessing":
        """The transform that ``clip`` was made with; open_clip's default where it does not say."""
        given: dict[str, Any] = dict(get_model_preprocess_cfg(clip))
        return cls(PreprocessCfg(**{**given, "size": input_size}))

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the model's input in pixels."""
        height, width = self.config.input_size[1:]
        return height, width

    def image(self, pixels: UInt8[np.ndarray, "y x 3"]) -> Float[Tensor, "3 v u"]:
        """Feedable pixels: float32, resized and normalised."""
        transform: Callable[[Image.Image], Tensor] = image_transform_v2(self.config, is_train=False)
        return transform(Image.fromarray(pixels))

    def mask(self, mask: Bool[np.ndarray, "y x"]) -> Bool[Tensor, "v u"]:
        """A mask brought through the same resize and crop as its image."""
        config = PreprocessCfg(**{**vars(self.config), "mean": (0.0,) * 3, "std": (1.0,) * 3, "fill_color": 0})
        grey = np.repeat(mask[..., None].astype(np.uint8) * 255, 3, axis=2)
        transform: Callable[[Image.Image], Tensor] = image_transform_v2(config, is_train=False)
        return transform(Image.fromarray(grey))[0] > 0.5

    def pixels(self, images: Float[Tensor, "n 3 y x"]) -> UInt8[Tensor, "n 3 y x"]:
        """What a model input looks like: the normalisation undone.

        An image that was normalised in some other way is stretched to its own minimum and maximum instead.
        """
        images = images.detach().float().cpu()
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.config.mean, self.config.std))
        undone = images * std + mean
        low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
        stretched = (images - low) / (high - low).clamp_min(1e-12)
        fits = (undone.amin((1, 2, 3), keepdim=True) > -0.02) & (undone.amax((1, 2, 3), keepdim=True) < 1.02)
        return (torch.where(fits, undone, stretched).nan_to_num(0.0).clamp(0, 1) * 255).round().to(torch.uint8)
