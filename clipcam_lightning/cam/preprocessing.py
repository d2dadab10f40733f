"""From a picture to what the model is fed, and back to pixels a person can look at."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from open_clip.constants import INCEPTION_MEAN, INCEPTION_STD
from open_clip.model import get_model_preprocess_cfg
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor, nn

from clipcam_lightning.cam.adapters import has_sigmoid_loss

BILINEAR = 2  # as Pillow and transformers number it


@dataclass(frozen=True)
class Preprocessing:
    """The evaluation transform of a model: resize, crop or pad, scale to 0-1, normalise.

    Attributes:
        config: size, mean, std, interpolation and resize mode, as open_clip keeps them on the model.
    """

    config: PreprocessCfg

    @classmethod
    def of(cls, clip: nn.Module, input_size: tuple[int, int], image_processor: Any = None) -> "Preprocessing":
        """The transform that ``clip`` was made with, as far as can be seen.

        open_clip keeps it on the model. A transformers model comes with an image processor, and without one is taken
        for what its family was trained with: SigLIP, which the bias of its sigmoid loss gives away, squashes images
        and centres them at 0.5. Whatever else does not say is given CLIP's.

        Args:
            clip: the model.
            input_size: height and width in pixels of what it is fed.
            image_processor: one of transformers: its mean, std, interpolation, and whether it squashes or crops.
        """
        visual = getattr(clip, "visual", None)
        given: dict[str, Any] = {}
        if getattr(visual, "preprocess_cfg", None) or hasattr(visual, "image_size"):
            given = get_model_preprocess_cfg(clip)
        elif image_processor is not None:
            given = _config_of(image_processor)
        elif visual is None and has_sigmoid_loss(clip):
            given = {"mean": INCEPTION_MEAN, "std": INCEPTION_STD, "resize_mode": "squash"}
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


def _config_of(image_processor: Any) -> dict[str, Any]:
    """What open_clip would call the settings of a transformers image processor."""
    return {
        "mean": tuple(image_processor.image_mean),
        "std": tuple(image_processor.image_std),
        "interpolation": "bilinear" if getattr(image_processor, "resample", None) == BILINEAR else "bicubic",
        # One with a shortest edge keeps the aspect and crops; one that only knows height and width does not.
        "resize_mode": "shortest" if "shortest_edge" in (getattr(image_processor, "size", None) or ()) else "squash",
    }
