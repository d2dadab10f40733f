"""The tower for every image encoder of an unknown kind: its layers are found by tracing one pass."""

import math
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from clipcam_lightning.cam.adapters import find_adapter
from clipcam_lightning.cam.encoders import name_of
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
            raise TowerError(f"{name_of(clip)} has no methods that embed images and texts.")
        self.adapter = adapter
        self.has_known_head = False
        trace = trace_encoder(clip, adapter.encode_image)
        self._size = trace.size
        self._cells = _list_cells(clip, trace)
        layers = [name for name in trace.outputs if self._is_layer(name, trace)]
        if not layers:
            raise TowerError(
                f"no module of {name_of(clip)} returns a grid of cells, or tokens of patches, that the embedding "
                "depends on. If it is called under torch.no_grad(), leave that out and freeze its parameters instead, "
                "with requires_grad_(False)."
            )
        self.default_layer = self._choose_layer(layers, trace)
        layers = layers[: layers.index(self.default_layer) + 1]
        # Blocks and stages, which containers number; what is inside them is rarely worth a map.
        self.layers = [name for name in layers[:-1] if name.rpartition(".")[2].isdigit()] + layers[-1:]
        self._layout = self._lay_out(trace.outputs[self.default_layer], trace.size)
        if trace.outputs[self.default_layer].ndim == 3:
            self.recipe = TOKENS_RECIPE
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
                f"{name_of(self.clip)} does not take images of {height}x{width} pixels; it was built for "
                f"{self._size[0]}x{self._size[1]}: resize them and leave scales at (1.0,)."
            )
        return height, width

    def _is_layer(self, name: str, trace: Trace) -> bool:
        output, read = trace.outputs[name], trace.read[name]
        if read is None or _is_inside_block(self.clip, name):
            return False
        layout = self._lay_out(output, trace.size)
        if layout is None:
            return False
        batch_dim, prefix = layout
        of_patches = read if output.ndim == 4 else read.transpose(0, batch_dim)[:, prefix:]
        return bool(of_patches.any())

    def _choose_layer(self, layers: list[str], trace: Trace) -> str:
        """Choose the last layer whose cells are in order; of layers with as many tokens only the last is tried.

        Raises:
            TowerError: there is none.
        """
        tried: set[tuple[int, ...]] = set()
        for name in reversed(layers):
            shape = trace.outputs[name].shape
            numbers = tuple(sorted(shape[:2])) if len(shape) == 3 else tuple(shape)
            if numbers not in tried:
                tried.add(numbers)
                if self._keeps_order(name, trace):
                    return name
        raise TowerError(
            f"the tokens that the modules of {name_of(self.clip)} return are not the patches row by row: what "
            "changes in one place of an image shows in another place of the grid"
        )

    def _keeps_order(self, name: str, trace: Trace) -> bool:
        """Whether a layer returns a grid, or tokens of which the last are the patches row by row.

        Where tokens of such a number are first returned, a cell of the image must not move another token than its own
        more than all others together; in the layer itself, deeper in the network, at least half of some cells must move
        their own tokens most.
        """
        if trace.outputs[name].ndim == 4:
            return True
        batch_dim, prefix = self._lay_out(trace.outputs[name], trace.size)
        tokens = trace.outputs[name].shape[1 - batch_dim]
        _, (rows, columns) = self._find_patches(tokens, trace.size) or (0, (1, 1))
        places = list(dict.fromkeys([(0, 1), (1, 0), (rows - 1, columns // 2), (rows // 2, columns - 1)]))
        cell = trace.size[0] // rows, trace.size[1] // columns
        first = next(
            each
            for each, output in trace.outputs.items()
            if output.ndim == 3 and self._lay_out(output, trace.size) and output.shape[1 - batch_dim] == tokens
        )
        for layer in (first, name):
            moved = find_moved_tokens(self.clip, self.adapter.encode_image, trace, layer, cell, places)
            # Convolutions before the tokens may move what they see by less than two cells.
            tolerance = 0 if prefix else 1
            is_right = [
                max(abs(moved_row - row), abs(moved_column - column)) <= tolerance
                for (token, _), (row, column) in zip(moved, places, strict=True)
                for moved_row, moved_column in [divmod(token - prefix, columns)]
            ]
            if any(clear and not right for (_, clear), right in zip(moved, is_right, strict=True)):
                return False
        # Queries that read the patches move together, wherever an image changes.
        are_distinct = len({token for token, _ in moved}) == len(places)
        return are_distinct and 2 * sum(is_right) >= len(places)

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


def _is_inside_block(clip: nn.Module, name: str) -> bool:
    """Whether a module is a part of a block that is not worth a map: an activation, or keys or values alone."""
    module, parts = clip.get_submodule(name), name.split(".")
    is_leaf, kind = not any(True for _ in module.children()), type(module)
    owners = (clip.get_submodule(".".join(parts[:depth])) for depth in range(1, len(parts)))
    return (is_leaf and (kind.__name__.startswith(SKIPPED) or kind.__module__ == _ACTIVATIONS)) or any(
        _ATTENTION.search(type(owner).__name__) for owner in owners
    )


def _list_cells(clip: nn.Module, trace: Trace) -> list[tuple[int, int]]:
    """List the sizes of cells in pixels, of the grids that modules return, and guessed for tokens; largest first."""
    height, width = trace.size
    cells = {
        (height // h, width // w)
        for name, tensor in trace.outputs.items()
        if tensor.ndim == 4
        and not _is_inside_block(clip, name)
        and (found := _find_grid(tensor, trace.size)) is not None
        for h, w in [tensor.shape[2:] if found == 1 else tensor.shape[1:3]]
    }
    return sorted(cells | set(_guess_cells(trace)), reverse=True)


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
