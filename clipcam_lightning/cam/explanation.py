"""The result of :func:`~clipcam_lightning.explain`."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from clipcam_lightning.cam.colors import overlaid
from clipcam_lightning.cam.decoding import require_pixels
from clipcam_lightning.cam.fuse import resize_maps
from clipcam_lightning.cam.lettering import letter
from clipcam_lightning.cam.map_state import MapState, map_state
from clipcam_lightning.cam.representation import short_repr
from clipcam_lightning.errors import ConfigError


@dataclass(frozen=True, eq=False, repr=False)
class Explanation:
    """Saliency maps of a CLIP for ``n`` images and ``p`` prompts, and how they were made.

    Attributes:
        maps: raw saliency on the layer's own grid, float32, not rescaled, on the model's device. If the images have
            several sizes, each map is in the top left corner and padded with NaN.
        similarity: cosine of image and prompt, from -1 to 1; the mean over all views.
        layers: dotted names of the mapped layers.
        method: name of the CAM method.
        target: name of the target.
        scales: factors of the image size whose maps were averaged.
        flip: whether maps of the mirrored images were averaged in.
        fuse: how the maps of several layers were combined: ``"mean"``, ``"max"`` or ``"product"``.
        score_scale: factor on the cosine before the target.
        shift: whether maps of the images shifted by half a cell were averaged in.
        grids: height and width of each image's grid if they differ, else ``None``.

    Example:
        >>> import torch
        >>> from clipcam_lightning import Explanation
        >>> maps = torch.tensor([[[[0.0, 0.5], [1.0, 2.0]]]])
        >>> explanation = Explanation(maps, torch.tensor([[0.3]]), ("visual.layer4",), "gradcam", "similarity")
        >>> explanation.normalize()
        tensor([[[[0.0000, 0.2500],
                  [0.5000, 1.0000]]]])
        >>> explanation.resize((224, 224)).shape
        torch.Size([1, 1, 224, 224])
        >>> str(explanation.states[0][0])
        'valid'
    """

    maps: Float[Tensor, "n p h w"]
    similarity: Float[Tensor, "n p"]
    layers: tuple[str, ...]
    method: str
    target: str
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    fuse: str = "mean"
    score_scale: float = 1.0
    shift: bool = False
    grids: tuple[tuple[int, int], ...] | None = None

    __repr__ = short_repr

    def maps_of(self, image: int) -> Float[Tensor, "p h w"]:
        """Return the raw maps of one image on its own grid, without padding."""
        height, width = self.grids[image] if self.grids else self.maps.shape[-2:]
        return self.maps[image, :, :height, :width]

    @property
    def states(self) -> tuple[tuple[MapState, ...], ...]:
        """Whether each map carries information, and if not, why: one tuple per image, one state per prompt."""
        maps = (self.maps_of(i).cpu() for i in range(len(self.maps)))
        return tuple(tuple(map_state(map_) for map_ in each) for each in maps)

    def resize(self, size: tuple[int, int]) -> Float[Tensor, "n p y x"]:
        """Resize the raw maps bilinearly to ``size`` (height, width) in pixels."""
        if self.grids is None:
            return resize_maps(self.maps, size)
        return torch.stack([resize_maps(self.maps_of(i), size) for i in range(len(self.maps))])

    def normalize(self) -> Float[Tensor, "n p h w"]:
        """Stretch each map to 0-1 by its own minimum and maximum, for display. A constant map becomes 0."""
        inside = ~self.maps.isnan() if self.grids else torch.ones_like(self.maps, dtype=torch.bool)
        low = self.maps.where(inside, torch.inf).amin((2, 3), keepdim=True)
        high = self.maps.where(inside, -torch.inf).amax((2, 3), keepdim=True)
        return (self.maps - low) / (high - low).clamp_min(torch.finfo(torch.float32).tiny)

    def overlay(self, pixels: UInt8[Tensor, "n 3 y x"]) -> UInt8[Tensor, "n p 3 y x"]:
        """Draw each map in colour over its image.

        Each map has a scale of its own: its largest positive value has the hottest colour. Values at or below 0 have
        none, since they do not raise the score. A degenerate map has no heat, but the words of its state.

        Args:
            pixels: the explained images as the model sees them: ``find_clip(model).preprocessing.pixels(images)``.

        Returns:
            One RGB image per image and prompt.

        Raises:
            ConfigError: ``pixels`` are something else, such as whole photographs, or of another number of images.
        """
        require_pixels(pixels, "n 3 y x")
        if len(pixels) != len(self.maps):
            raise ConfigError(f"pixels must be of the {len(self.maps)} explained images (got {len(pixels)}).")
        size = (pixels.shape[-2], pixels.shape[-1])
        heat = self.resize(size).clamp_min(0).cpu()
        heat = heat / heat.amax((2, 3), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        states = self.states
        is_valid = torch.tensor([[not state.is_degenerate for state in each] for each in states], device="cpu")
        heat = heat.where(is_valid[..., None, None], 0.0)
        overlays = torch.stack([overlaid(image, maps) for image, maps in zip(pixels, heat, strict=True)])
        for i, p in (~is_valid).nonzero().tolist():
            overlays[i, p] = _lettered(overlays[i, p], states[i][p].words)
        return overlays


def _lettered(pixels: UInt8[Tensor, "3 y x"], text: str) -> UInt8[Tensor, "3 y x"]:
    image = letter(Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()), text)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def concatenate_parts(
    parts: list[tuple[list[int], Float[Tensor, "_b p _h _w"], Float[Tensor, "_b p"]]],
) -> tuple[Float[Tensor, "n p h w"], Float[Tensor, "n p"], tuple[tuple[int, int], ...] | None]:
    """Concatenate the maps and similarities of parts of the images, in the order of the images.

    Args:
        parts: indices of the images of each part, their maps and their similarities.

    Returns:
        Maps padded with NaN to the largest grid; similarities; the images' grids, or ``None`` if they are all equal.
    """
    order = torch.tensor([index for indices, _, _ in parts for index in indices], device="cpu").argsort()
    similarity = torch.cat([each for _, _, each in parts])
    shapes = [(maps.shape[-2], maps.shape[-1]) for indices, maps, _ in parts for _ in indices]
    if len(set(shapes)) == 1:
        return torch.cat([maps for _, maps, _ in parts])[order], similarity[order], None
    height, width = (max(sides) for sides in zip(*shapes, strict=True))
    padded = [
        F.pad(maps, (0, width - maps.shape[-1], 0, height - maps.shape[-2]), value=torch.nan) for _, maps, _ in parts
    ]
    return torch.cat(padded)[order], similarity[order], tuple(shapes[i] for i in order.tolist())
