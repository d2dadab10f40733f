"""The result of :func:`~clipcam_lightning.explain`."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from clipcam_lightning.cam.decoding import require_pixels
from clipcam_lightning.cam.display.drawing import draw_maps, to_image, to_pixels
from clipcam_lightning.cam.display.gallery import BEST, Gallery, Tile, describe_rest
from clipcam_lightning.cam.display.shown import Shown
from clipcam_lightning.cam.encoding import write_image
from clipcam_lightning.cam.explained_images import ExplainedImages
from clipcam_lightning.cam.fuse import resize_maps
from clipcam_lightning.cam.map_state import MapState, map_state
from clipcam_lightning.cam.representation import short_repr
from clipcam_lightning.cam.urls import PathLike
from clipcam_lightning.errors import ConfigError


@dataclass(frozen=True, eq=False, repr=False)
class Explanation(Shown):
    """Saliency maps of a CLIP for ``n`` images and ``p`` prompts, and how they were made.

    In Jupyter it shows itself: each image, with the map of each prompt drawn over it. All prompts of an image share one
    scale, so that their heat can be compared.

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
        precision: in which the image tower computed: ``"float32"`` or ``"bfloat16"``.
        grids: height and width of each image's grid if they differ, else ``None``.
        prompts: one tuple of ``p`` prompts per image; empty if they are unknown.
        images: what was explained, for drawing; ``None`` draws the maps alone. These are references: as long as the
            explanation lives, so do its images, unless ``dataclasses.replace(explanation, images=None)`` releases them.
        embeddings: of the images as unit vectors, or of several views their mean, which is shorter, on the model's
            device; ``None`` if unknown.

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
    precision: str = "float32"
    grids: tuple[tuple[int, int], ...] | None = None
    prompts: tuple[tuple[str, ...], ...] = field(default=(), repr=False)
    images: ExplainedImages | None = field(default=None, repr=False)
    embeddings: Float[Tensor, "n e"] | None = field(default=None, repr=False)

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
        return torch.stack(
            [
                torch.stack([to_pixels(drawn) for drawn in draw_maps(self.maps_of(i), image.cpu(), max(image.shape))])
                for i, image in enumerate(pixels)
            ]
        )

    def save(self, file: PathLike) -> None:
        """Write the image that :meth:`draw` draws to a file, which is never half written.

        Args:
            file: a path or URL whose suffix names the format, such as ``maps.png``; replaced if it exists.

        Raises:
            ConfigError: the suffix names no image format, the URL cannot be opened, or an explained image is gone.
            OSError: the file cannot be written.
        """
        write_image(self.draw(), file)

    @override
    def _gallery(self, side: int, limit: int) -> Gallery:
        count, prompts = self.similarity.shape
        columns = min(prompts, limit - 1)
        rows = min(count, max(1, limit // (columns + 1)))
        rest = filter(None, (describe_rest(rows, count, "image"), describe_rest(columns, prompts, "prompt")))
        return Gallery(
            heading=self._heading,
            rows=[self._make_row(i, side)[: columns + 1] for i in range(rows)],
            scale=self._scale,
            remark=" and ".join(rest),
        )

    def _make_row(self, image: int, side: int) -> list[Tile]:
        """Make the tiles of one image: the input, if it is known, and the map of each prompt."""
        pixels, name = (self.images.pixels(image, side), self.images.name(image)) if self.images else (None, "")
        similarities = self.similarity[image].tolist()
        prompts = self.prompts[image] if self.prompts else [f"prompt {i}" for i in range(1, len(similarities) + 1)]
        tiles = [] if pixels is None else [Tile(to_image(pixels), name, "input")]
        drawings = draw_maps(self.maps_of(image), pixels, side, is_shared=True)
        for drawing, prompt, similarity in zip(drawings, prompts, similarities, strict=True):
            is_best = len(similarities) > 1 and similarity == max(similarities)
            details = f"similarity {similarity:.3f}{f' · {BEST}' if is_best else ''}"
            tiles.append(Tile(drawing, prompt, details, is_best))
        return tiles

    @property
    def _heading(self) -> str:
        method = self.method if self.target == "similarity" else f"{self.method} of {self.target}"
        if len(self.layers) <= 1:
            return " at ".join((method, *self.layers))
        return f"{method} at {len(self.layers)} layers"

    @property
    def _scale(self) -> str:
        if self.similarity.shape[1] > 1:
            return "shared scale: from 0 to the largest value among all prompts of an image"
        return "own scale: from 0 to the largest value of each map"


def concatenate_parts(
    parts: Sequence[tuple[list[int], Float[Tensor, "_b p _h _w"], Float[Tensor, "_b p"], Float[Tensor, "_b e"]]],
) -> tuple[Float[Tensor, "n p h w"], Float[Tensor, "n p"], Float[Tensor, "n e"], tuple[tuple[int, int], ...] | None]:
    """Concatenate the maps, similarities and embeddings of parts of the images, in the order of the images.

    Args:
        parts: indices of the images of each part, their maps, similarities and embeddings.

    Returns:
        Maps padded with NaN to the largest grid; similarities; embeddings; the images' grids, or ``None`` if they are
        all equal.
    """
    indices, maps, similarities, embeddings = zip(*parts, strict=True)
    order = torch.tensor([index for each in indices for index in each], device="cpu").argsort().to(maps[0].device)
    similarity, embedded = torch.cat(similarities)[order], torch.cat(embeddings)[order]
    shapes = [(each.shape[-2], each.shape[-1]) for each in maps for _ in range(len(each))]
    if len(set(shapes)) == 1:
        return torch.cat(maps)[order], similarity, embedded, None
    height, width = (max(sides) for sides in zip(*shapes, strict=True))
    padded = [F.pad(each, (0, width - each.shape[-1], 0, height - each.shape[-2]), value=torch.nan) for each in maps]
    return torch.cat(padded)[order], similarity, embedded, tuple(shapes[i] for i in order.tolist())
