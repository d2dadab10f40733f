"""The images of an explanation, from which it is drawn."""

import os
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor
from upath import UPath

from clipcam_lightning.cam.decoding import Images, decode_rgb, list_images
from clipcam_lightning.cam.display.drawing import fit_image, to_image, to_pixels
from clipcam_lightning.cam.preprocessing import Preprocessing


@dataclass(frozen=True, eq=False, repr=False)
class ExplainedImages:
    """The images that were explained, as they were given: references, which are decoded when they are drawn.

    Attributes:
        images: files, PIL images, arrays or model input; not copied.
        preprocessing: of the model.
        names: of the images, for people; by default those of the files.
    """

    images: Images
    preprocessing: Preprocessing
    names: tuple[str, ...] = ()

    def name(self, image: int) -> str:
        """Get the name of an image by its index; empty if it has none."""
        if self.names:
            return self.names[image]
        given = list_images(self.images)[image]
        place = getattr(given, "filename", "") if isinstance(given, Image.Image) else given
        return os.path.basename(str(place)) if isinstance(place, str | os.PathLike | UPath) else ""  # noqa: PTH119

    def pixels(self, image: int, side: int) -> UInt8[Tensor, "3 y x"]:
        """Get what the model sees of an image, at a size that is easy to see.

        Args:
            image: its index.
            side: of the result in pixels, along its longer side.

        Raises:
            ConfigError: the file cannot be read any longer.
        """
        given = list_images(self.images)[image]
        if isinstance(given, Tensor):
            pixels = self.preprocessing.pixels(given)[0]
        else:
            pixels = magnify(self.preprocessing, decode_rgb(given), side)
        return to_pixels(fit_image(to_image(pixels), side))


def magnify(preprocessing: Preprocessing, pixels: UInt8[np.ndarray, "y x 3"], side: int) -> UInt8[Tensor, "3 v u"]:
    """Crop an image as the model does, but in more detail.

    Args:
        preprocessing: of the model.
        pixels: of the original image.
        side: what the longer side of the result has at least, in pixels.

    Returns:
        The input of the model, enlarged by a whole number.
    """
    height, width = preprocessing.size
    times = -(-side // max(height, width))  # a whole number, or rounding would change the crop
    large = Preprocessing(replace(preprocessing.config, size=(height * times, width * times)))
    return large.pixels(large.image(pixels)[None])[0]
