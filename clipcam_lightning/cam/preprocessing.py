"""Convert images to model input, and model input back to pixels for display."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from open_clip.constants import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    INCEPTION_MEAN,
    INCEPTION_STD,
    OPENAI_DATASET_MEAN,
    OPENAI_DATASET_STD,
)
from open_clip.model import get_model_preprocess_cfg
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor, nn

from clipcam_lightning.cam.adapters import has_sigmoid_loss
from clipcam_lightning.cam.decoding import ImageLike, Images, decode_rgb, list_images
from clipcam_lightning.errors import ConfigError

BILINEAR = 2  # as Pillow and transformers number it
MIN_BRIGHTEST = 0.6  # value in images that are not normalised
MAX_ROUNDING = 0.02  # mean distance from whole numbers; 0.25 for any
Normalisation: TypeAlias = tuple[tuple[float, ...], tuple[float, ...]]
USUAL_NORMALISATIONS: tuple[Normalisation, ...] = (
    (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD),
    (IMAGENET_MEAN, IMAGENET_STD),
    (INCEPTION_MEAN, INCEPTION_STD),
    ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
)


@dataclass(frozen=True)
class Preprocessing:
    """The evaluation transform of a model: resize, crop or pad, scale to 0-1, normalise.

    Attributes:
        config: size, mean, std, interpolation and resize mode, in open_clip's format.
    """

    config: PreprocessCfg

    @classmethod
    def of(cls, clip: nn.Module, input_size: tuple[int, int], image_processor: Any = None) -> "Preprocessing":
        """Derive the transform that ``clip`` was trained with.

        open_clip stores it on the model. For a transformers model it is read from the image processor. Without one, a
        SigLIP (recognised by the bias of its sigmoid loss) is assumed to squash images and to normalise with mean and
        std 0.5, as it was trained. A network of timm declares mean and std, and one of torchvision has ImageNet's. All
        other models get CLIP's own transform.

        Args:
            clip: the model.
            input_size: height and width in pixels of the model's input.
            image_processor: an image processor of transformers; its mean, std, interpolation and resize mode are used.

        Returns:
            The transform.
        """
        visual = getattr(clip, "visual", None)
        config: dict[str, Any] = {}
        if getattr(visual, "preprocess_cfg", None) or hasattr(visual, "image_size"):
            config = get_model_preprocess_cfg(clip)
        elif image_processor is not None:
            config = _convert_processor(image_processor)
        elif visual is None and has_sigmoid_loss(clip):
            config = {"mean": INCEPTION_MEAN, "std": INCEPTION_STD, "resize_mode": "squash"}
        else:
            config = _find_declared(clip)
        return cls(PreprocessCfg(**{**config, "size": input_size}))

    @property
    def normalisation(self) -> Normalisation:
        """Mean and standard deviation of each channel."""
        return tuple(self.config.mean), tuple(self.config.std)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the model's input in pixels."""
        height, width = self.config.input_size[1:]
        return height, width

    def image(self, image: ImageLike) -> Float[Tensor, "3 v u"]:
        """Convert an image to model input: float32, resized and normalised.

        Args:
            image: a file or its URL, a PIL image or a uint8 RGB array ``[y, x, 3]``; alpha is dropped, EXIF orientation
                is applied. A float tensor ``[3, y, x]`` is model input already and is returned as it is.

        Raises:
            ConfigError: the image cannot be read, or is something else.
        """
        if isinstance(image, Tensor):
            return _require_model_input(image)
        transform: Callable[[Image.Image], Tensor] = image_transform_v2(self.config, is_train=False)
        return transform(Image.fromarray(decode_rgb(image)))

    def batch(self, images: Images) -> Float[Tensor, "n 3 v u"]:
        """Convert one or several images to a batch of model input, each as :meth:`image` does.

        Args:
            images: one image, a list, or a batch.

        Raises:
            ConfigError: an image cannot be used, or model input has several sizes.
        """
        converted = [self.image(image) for image in list_images(images)]
        sizes = sorted({f"{image.shape[1]}x{image.shape[2]}" for image in converted})
        if len(sizes) > 1:
            raise ConfigError(f"a batch must have images of one size (got {', '.join(sizes)}); resize or pad them.")
        return torch.stack(converted)

    def mask(self, mask: Bool[np.ndarray, "y x"]) -> Bool[Tensor, "v u"]:
        """Resize and crop a mask in the same way as its image."""
        config = PreprocessCfg(**{**vars(self.config), "mean": (0.0,) * 3, "std": (1.0,) * 3, "fill_color": 0})
        grey = np.repeat(mask[..., None].astype(np.uint8) * 255, 3, axis=2)
        transform: Callable[[Image.Image], Tensor] = image_transform_v2(config, is_train=False)
        return transform(Image.fromarray(grey))[0] > 0.5

    def visible_share(self, height: int, width: int) -> float:
        """Return the share of an image of this size that the model sees, below 1 if the image is cropped."""
        if self.config.resize_mode != "shortest":
            return 1.0
        ratios = height / self.size[0], width / self.size[1]
        return min(ratios) / max(ratios)

    def pixels(self, images: Images) -> UInt8[Tensor, "n 3 y x"]:
        """Convert images to the pixels that the model sees, resized and cropped as its input is.

        Args:
            images: model input, whose normalisation is undone; or images that :meth:`batch` converts to model input.
                If it was normalised in another usual way (as for CLIP or ImageNet, to -1 to 1, or not at all), that
                shows: only the right way gives whole numbers. Model input that cannot be brought into the range of
                pixels is stretched to its own minimum and maximum instead.

        Raises:
            ConfigError: an image cannot be used, or model input has several sizes.
        """
        images = self.batch(images).detach().float().cpu()
        own = self.normalisation
        restored = next((each for each in _restorations(images, own) if _is_of_bytes(each)), None)
        if restored is None:  # resampled or augmented as floats
            restored = next((each for each in _restorations(images, own) if _fits(each).all()), _restore(images, own))
        low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
        stretched = (images - low) / (high - low).clamp_min(1e-12)
        return (
            (torch.where(_fits(restored), restored, stretched).nan_to_num(0.0).clamp(0, 1) * 255)
            .round()
            .to(torch.uint8)
        )


def _find_declared(clip: nn.Module) -> dict[str, Any]:
    """Find the mean and standard deviation that networks of timm and torchvision were trained with."""
    for part in clip.modules():
        declared = vars(part).get("pretrained_cfg") or {}
        if "mean" in declared and "std" in declared:
            return {"mean": tuple(declared["mean"]), "std": tuple(declared["std"])}
        if type(part).__module__.startswith("torchvision.models"):
            return {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    return {}


def _restorations(images: Float[Tensor, "n 3 y x"], own: Normalisation) -> Iterator[Float[Tensor, "n 3 y x"]]:
    """Undo each usual normalisation, the model's own first; of images from 0 to 1 none."""
    is_plain = images.min() >= 0 and MIN_BRIGHTEST < images.max() <= 1
    usual = (USUAL_NORMALISATIONS[-1],) if is_plain else ()
    return (_restore(images, each) for each in (*usual, own, *USUAL_NORMALISATIONS))


def _restore(images: Float[Tensor, "n 3 y x"], normalisation: Normalisation) -> Float[Tensor, "n 3 y x"]:
    mean, std = torch.tensor(normalisation, dtype=torch.float32, device=images.device).view(2, 3, 1, 1).unbind()
    return images * std + mean


def _fits(restored: Float[Tensor, "n 3 y x"]) -> Bool[Tensor, "n 1 1 1"]:
    """Whether the values of each image are in the range of pixels, 0 to 1."""
    low, high = restored.amin((1, 2, 3), keepdim=True), restored.amax((1, 2, 3), keepdim=True)
    return (low > -0.02) & (high < 1.02)


def _is_of_bytes(restored: Float[Tensor, "n 3 y x"]) -> bool:
    """Whether values are whole numbers from 0 to 255, divided by 255, to the precision of the images."""
    levels = restored * 255
    return bool(_fits(restored).all() and (levels - levels.round()).abs().mean() < MAX_ROUNDING)


def _require_model_input(image: Tensor) -> Float[Tensor, "3 y x"]:
    """Refuse a tensor that is no model input: raw pixels come as arrays, whose axes cannot be mistaken."""
    if image.ndim != 3 or image.shape[0] != 3 or not image.is_floating_point():
        raise ConfigError(
            f"a tensor must be preprocessed float pixels [3, height, width] (got {image.dtype} {tuple(image.shape)}); "
            "give raw pixels as a uint8 array [height, width, 3]."
        )
    return image


def _convert_processor(image_processor: Any) -> dict[str, Any]:
    """Convert the settings of a transformers image processor to open_clip's names."""
    return {
        "mean": tuple(image_processor.image_mean),
        "std": tuple(image_processor.image_std),
        "interpolation": "bilinear" if getattr(image_processor, "resample", None) == BILINEAR else "bicubic",
        # A processor with a shortest edge keeps the aspect ratio and crops; one with height and width squashes.
        "resize_mode": "shortest" if "shortest_edge" in (getattr(image_processor, "size", None) or ()) else "squash",
    }
