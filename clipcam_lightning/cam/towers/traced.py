"""The tower for every image encoder of an unknown kind: its layers are found by tracing one pass."""

import math
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from clipcam_lightning.cam.adapters import find_adapter
from clipcam_lightning.cam.towers.shared import round_to_cells
from clipcam_lightning.cam.towers.tower import Recipe, Tower
from clipcam_lightning.cam.tracing import COUNT, Trace, can_embed, find_moved_tokens, trace_encoder
from clipcam_lightning.errors import ConfigError, TowerError

MAX_PREFIX = 16  # tokens before the patches: class token, registers
TOKENS_RECIPE = Recipe("hirescam")  # on tokens the mean gradient of Grad-CAM is a poor weight
SKIPPED = ("Linear", "Identity", "Dropout", "DropPath", "StochasticDepth", "LayerScale")  # inside a block


class TracedTower(Tower):
    """An image encoder of an unknown kind.

    Random images pass through it once. Its layer is the last module that returns a grid of cells, or tokens of which
    the last are patches, and whose cells the embedding depends on: in a convolutional network the last stage, in a ViT
    that pools a class token the first norm of the last block. It offers no more than a grid, so that it fits the
    methods that read the output of one layer, and occlusion.

    Raises:
        TowerError: the encoder takes no images of a usual size, its embeddings have no gradient, or no module returns
            such a grid.

    Example:
        >>> from torch import nn
        >>> from clipcam_lightning import find_clip
        >>> image_encoder = nn.Sequential(nn.Conv2d(3, 8, kernel_size=16, stride=16), nn.ReLU())
        >>> module = nn.ModuleDict({"image": image_encoder, "text": nn.Embedding(9, 8)})
        >>> clip = find_clip(
        ...     module,
        ...     encode_image=lambda module, images: module["image"](images).mean((2, 3)),
        ...     encode_text=lambda module, tokens: module["text"](tokens).mean(1),
        ... )
        >>> type(clip.tower).__name__, clip.tower.default_layer, clip.tower.input_size
        ('TracedTower', 'owner.image', (224, 224))
    """

    def __init__(self, clip: nn.Module) -> None:
        super().__init__(clip)
        adapter = find_adapter(clip)
        if adapter is None:
            raise TowerError(f"{type(clip).__name__} has no methods that embed images and texts.")
        self.adapter = adapter
        self.has_known_head = False
        trace = trace_encoder(clip, adapter.encode_image)
        self._size = trace.size
        self._cells = _list_cells(trace)
        layers = [name for name in trace.outputs if self._is_layer(name, trace)]
        if not layers:
            raise TowerError(
                f"no module of {type(clip).__name__} returns a grid of cells, or tokens of patches, that the embedding "
                "depends on"
            )
        self.default_layer = layers[-1]
        # Blocks and stages, which containers number; what is inside them is rarely worth a map.
        self.layers = [name for name in layers[:-1] if name.rpartition(".")[2].isdigit()] + layers[-1:]
        self._layout = self._lay_out(trace.outputs[self.default_layer], trace.size)
        if trace.outputs[self.default_layer].ndim == 3:
            self.recipe = TOKENS_RECIPE
            self._require_order(trace)
        self._takes = lru_cache(lambda size: can_embed(clip, adapter.encode_image, size))

    @classmethod
    def fits(cls, clip: nn.Module) -> bool:
        """Check whether ``clip`` has methods that embed images and texts; whether it can be traced shows only then."""
        return find_adapter(clip) is not None

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width in pixels: declared by a part of the model, or else the first usual size that it takes."""
        return self._size

    def encode(self, images: Float[Tensor, "b 3 y x"]) -> Float[Tensor, "b e"]:
        """Embed images of a size that the model takes by itself."""
        return self.adapter.encode_image(images)

    def to_grid(self, features: Float[Tensor, "..."], image_size: tuple[int, int]) -> Float[Tensor, "b c h w"]:
        """Move the channels to the front, or drop the tokens before the patches and lay these out row by row."""
        if features.ndim == 4:
            layout = _find_grid(features, image_size)
            if layout is not None:
                return features if layout == 1 else features.movedim(-1, 1)
        elif features.ndim == 3:
            tokens = features.transpose(0, self._layout[0])
            found = self._find_patches(tokens.shape[1], image_size)
            if found is not None:
                prefix, grid = found
                patches: Tensor = tokens[:, prefix:].transpose(1, 2).unflatten(2, grid)
                return patches
        raise TowerError(
            "expected a grid of about square cells, or tokens of patches, from the layer, got "
            f"{tuple(features.shape)}; choose one of {', '.join(self.layers)}."
        )

    def dims(self, features: Float[Tensor, "..."], image_size: tuple[int, int]) -> tuple[int, int]:
        """As in :class:`Tower`."""
        if features.ndim == 4:
            return 0, _find_grid(features, image_size) or 1
        return self._layout[0], 2

    def scaled_size(self, size: tuple[int, int], scale: float) -> tuple[int, int]:
        """Round to whole cells of the layer, where the model takes images of such a size by itself."""
        height, width = size if scale == 1 else round_to_cells(size, scale, self._cells[0])
        if not self._takes((height, width)):
            raise ConfigError(
                f"{type(self.clip).__name__} does not take images of {height}x{width} pixels; it was built for "
                f"{self._size[0]}x{self._size[1]}: resize them and leave scales at (1.0,)."
            )
        return height, width

    def _is_layer(self, name: str, trace: Trace) -> bool:
        output, read = trace.outputs[name], trace.read[name]
        module = self.clip.get_submodule(name)
        is_leaf = not any(True for _ in module.children())
        kind = type(module)
        if read is None or (is_leaf and (kind.__name__.startswith(SKIPPED) or kind.__module__ == _ACTIVATIONS)):
            return False
        if any(_ATTENTION.search(type(owner).__name__) for owner in self._list_owners(name)):
            return False  # keys or values alone, which say half of what a block does
        layout = self._lay_out(output, trace.size)
        if layout is None:
            return False
        batch_dim, prefix = layout
        of_patches = read if output.ndim == 4 else read.transpose(0, batch_dim)[:, prefix:]
        return bool(of_patches.any())

    def _require_order(self, trace: Trace) -> None:
        """Refuse tokens that are not the patches row by row, by the first tokens that any module returns."""
        for name, output in trace.outputs.items():
            found = self._lay_out(output, trace.size) if output.ndim == 3 else None
            if found is None:
                continue
            batch_dim, prefix = found
            _, (rows, columns) = self._find_patches(output.shape[1 - batch_dim], trace.size) or (0, (1, 1))
            cell = trace.size[0] // rows, trace.size[1] // columns
            moved = find_moved_tokens(self.clip, self.adapter.encode_image, trace, name, cell)
            if -1 not in moved and moved != [prefix + 1, prefix + columns]:
                raise TowerError(
                    f"the tokens that {name} returns are not the patches row by row: the second patch of the first row "
                    f"is token {moved[0]}, and the first patch of the second row is token {moved[1]} (expected "
                    f"{prefix + 1} and {prefix + columns})."
                )
            return

    def _list_owners(self, name: str) -> list[nn.Module]:
        parts = name.split(".")
        return [self.clip.get_submodule(".".join(parts[:depth])) for depth in range(1, len(parts))]

    def _lay_out(self, output: Tensor, size: tuple[int, int]) -> Any:
        """Find the dimension of the images, and how many tokens come before the patches; ``None`` without a grid."""
        if output.ndim == 4:
            return (0, 0) if len(output) == COUNT and _find_grid(output, size) is not None else None
        if output.ndim == 3:
            for batch_dim in (0, 1):
                if output.shape[batch_dim] == COUNT:
                    found = self._find_patches(output.shape[1 - batch_dim], size)
                    if found is not None:
                        return batch_dim, found[0]
        return None

    def _find_patches(self, tokens: int, size: tuple[int, int]) -> tuple[int, tuple[int, int]] | None:
        """Find how many of so many tokens come before the patches, and the grid of the patches."""
        # Stages of tokens merge cells by twos.
        cells = [(height * k, width * k) for height, width in self._cells for k in (1, 2, 4, 8)]
        grids = ((size[0] // height, size[1] // width) for height, width in cells)
        fitting = [(tokens - h * w, (h, w)) for h, w in grids if h * w > 1 and 0 <= tokens - h * w <= MAX_PREFIX]
        return min(fitting, default=None)


_ACTIVATIONS = "torch.nn.modules.activation"
_ATTENTION = re.compile("(Attention|Attn)$")  # a class; the norm in an attention pool is worth a map


def _list_cells(trace: Trace) -> list[tuple[int, int]]:
    """List the sizes of cells in pixels, of the grids that modules return, or guessed for tokens; largest first."""
    height, width = trace.size
    cells = {
        (height // h, width // w)
        for tensor in trace.outputs.values()
        if tensor.ndim == 4 and (found := _find_grid(tensor, trace.size)) is not None
        for h, w in [tensor.shape[2:] if found == 1 else tensor.shape[1:3]]
    }
    return sorted(cells or set(_guess_cells(trace)), reverse=True)


def _guess_cells(trace: Trace) -> Iterator[tuple[int, int]]:
    """Guess the cells of patches that no convolution cuts: square, and as many as the tokens allow."""
    height, width = trace.size
    for tensor in trace.outputs.values():
        for tokens in tensor.shape[:2] if tensor.ndim == 3 else ():
            columns = math.isqrt(tokens * width // height)
            if columns > 1 and width % columns == 0 and height % (width // columns) == 0:
                cell = width // columns
                if 0 <= tokens - (height // cell) * columns <= MAX_PREFIX:
                    yield cell, cell


def _find_grid(features: Tensor, size: tuple[int, int]) -> int | None:
    """Find the dimension of the channels in a grid of about square cells; ``None`` if it is no such grid."""
    for channels, (h, w) in ((1, features.shape[2:]), (3, features.shape[1:3])):
        if min(h, w) > 1 and h <= size[0] and w <= size[1]:
            cell = size[0] / h, size[1] / w
            if max(cell) < 1.5 * min(cell):
                return channels
    return None
