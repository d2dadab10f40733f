"""What :func:`~clipcam_lightning.explain` gives back."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from clipcam_lightning.cam.colors import overlaid
from clipcam_lightning.cam.fuse import resized


@dataclass(frozen=True)
class Explanation:
    """Where a CLIP looks, for every image and prompt.

    Attributes:
        maps: raw saliency on the layer's own grid, float32, not rescaled; on the model's device. Of images of several
            sizes each has its own grid, in the top left corner; what lies outside is NaN.
        similarity: cosine of image and prompt, -1 to 1; the mean over the scales.
        layers: dotted names of the layers that were mapped.
        method: name of the CAM method.
        target: name of the target.
        scales: enlargements of the image whose maps were averaged.
        flip: whether the map of the mirrored image was averaged in.
        fuse: how the maps of several layers were combined.
        grids: height and width of each image's grid, where they differ; else ``None``.
    """

    maps: Float[Tensor, "n p h w"]
    similarity: Float[Tensor, "n p"]
    layers: tuple[str, ...]
    method: str
    target: str
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    fuse: str = "mean"
    grids: tuple[tuple[int, int], ...] | None = None

    def of(self, image: int) -> Float[Tensor, "p h w"]:
        """The raw maps of one image on its own grid."""
        height, width = self.grids[image] if self.grids else self.maps.shape[-2:]
        return self.maps[image, :, :height, :width]

    def resized(self, size: tuple[int, int]) -> Float[Tensor, "n p y x"]:
        """The raw maps, bilinearly enlarged to ``size`` (height, width) in pixels."""
        if self.grids is None:
            return resized(self.maps, size)
        return torch.stack([resized(self.of(i), size) for i in range(len(self.maps))])

    def normalized(self) -> Float[Tensor, "n p h w"]:
        """Each map stretched to 0-1 by its own minimum and maximum, for display; a constant map becomes 0."""
        inside = ~self.maps.isnan() if self.grids else torch.ones_like(self.maps, dtype=torch.bool)
        low = self.maps.where(inside, torch.inf).amin((2, 3), keepdim=True)
        high = self.maps.where(inside, -torch.inf).amax((2, 3), keepdim=True)
        return (self.maps - low) / (high - low).clamp_min(torch.finfo(torch.float32).tiny)

    def overlay(self, pixels: UInt8[Tensor, "n 3 y x"]) -> UInt8[Tensor, "n p 3 y x"]:
        """Each map in colour over its picture; ``Preprocessing.pixels`` makes ``pixels`` from model input.

        The hottest place has the hottest colour, and what does not raise the score has none, as where a signed map is
        negative.
        """
        size = (pixels.shape[-2], pixels.shape[-1])
        heat = self.resized(size).clamp_min(0).cpu()
        heat = heat / heat.amax((2, 3), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        return torch.stack([overlaid(picture, maps) for picture, maps in zip(pixels, heat, strict=True)])


def gathered(
    parts: list[tuple[list[int], Float[Tensor, "_b p _h _w"], Float[Tensor, "_b p"]]],
) -> tuple[Float[Tensor, "n p h w"], Float[Tensor, "n p"], tuple[tuple[int, int], ...] | None]:
    """Maps and similarities of parts of the images, each with the images' indices, in the images' order; the grids.

    ``None`` stands for grids that are all the same.
    """
    order = torch.tensor([index for indices, _, _ in parts for index in indices]).argsort()
    similarity = torch.cat([each for _, _, each in parts])
    shapes = [(maps.shape[-2], maps.shape[-1]) for indices, maps, _ in parts for _ in indices]
    if len(set(shapes)) == 1:
        return torch.cat([maps for _, maps, _ in parts])[order], similarity[order], None
    height, width = (max(sides) for sides in zip(*shapes, strict=True))
    padded = [
        torch.nn.functional.pad(maps, (0, width - maps.shape[-1], 0, height - maps.shape[-2]), value=torch.nan)
        for _, maps, _ in parts
    ]
    return torch.cat(padded)[order], similarity[order], tuple(shapes[i] for i in order.tolist())
