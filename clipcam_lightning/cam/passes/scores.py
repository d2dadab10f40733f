"""The pass of perturbation-based methods, which change the inputs and read the scores."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from clipcam_lightning.cam.attention import Attention, intercepted_attention
from clipcam_lightning.cam.capture import ScoreCapture, cut_at, replaced_output
from clipcam_lightning.cam.fuse import fuse_maps
from clipcam_lightning.cam.methods import Method
from clipcam_lightning.cam.model_state import replaced_forwards
from clipcam_lightning.cam.passes.one_pass import Pass, Result
from clipcam_lightning.cam.towers.tower import AttentionTower


@torch.no_grad()
def run_score_pass(method: Method, inputs: Pass) -> Result:
    """Run one forward of the unchanged images, then the forwards that the method asks for."""
    tower, modules = inputs.clip.tower, inputs.modules
    with _recorded_blocks_before(modules[0], tower.blocks) as block_outputs, cut_at(modules, graph=False) as recorded:
        features = inputs.embed(inputs.images)
    scores, maps = inputs.compute_scores(inputs.compute_similarity(features)), []
    for module, output in zip(modules, inputs.select_outputs(recorded), strict=True):
        activations = inputs.to_grid(output)
        perturbation = _Perturbation(inputs, module, output, block_outputs if module is modules[0] else {})
        capture = ScoreCapture(
            activations=activations,
            images=inputs.images,
            scores=scores,
            score_variants=perturbation.score_variants,
            score_without_channels=perturbation.score_without_channels,
            score_without_attention=perturbation.score_without_attention,
        )
        maps.append(method(capture))
    return fuse_maps(maps, inputs.fuse), features


class _Perturbation:
    """Scores of changed inputs of one pass, computed a batch at a time.

    Args:
        inputs: the unchanged batch.
        layer: the layer whose channels are ablated.
        output: the layer's output for the unchanged batch.
        block_outputs: the blocks that finish before the layer runs, with their outputs; they need not run again.
    """

    def __init__(self, inputs: Pass, layer: nn.Module, output: Tensor, block_outputs: dict[nn.Module, Any]) -> None:
        self.inputs = inputs
        self.layer = layer
        self.output = output
        self.block_outputs = block_outputs
        self.dims = inputs.clip.tower.dims(output, inputs.size)

    def score_variants(
        self, variant: Callable[[int, slice], Float[Tensor, "k 3 y x"]], count: int
    ) -> Float[Tensor, "b {count} p"]:
        """Score ``count`` variants of every image."""
        return torch.stack([
            torch.cat([self._score(image, variant(image, which)) for which in self._slices(count)])
            for image in range(len(self.inputs.images))
        ])  # fmt: skip

    def score_without_channels(self) -> Float[Tensor, "b c p"]:
        """Score every image with each channel of the layer in turn set to 0, computing only what follows the layer."""
        channels, images = self.output.shape[self.dims[1]], self.inputs.images
        rows = []
        for i in range(len(images)):
            for which in self._slices(channels):
                count = min(which.stop, channels) - which.start
                with self._skipped_blocks(i, count), replaced_output(self.layer, self._ablate(i, which.start, count)):
                    rows.append(self._score(i, images[i].expand(count, -1, -1, -1)))
        return torch.cat(rows).reshape(len(images), channels, -1)

    def score_without_attention(self, hidden: Float[Tensor, "b k h w"]) -> Float[Tensor, "b k p"]:
        """Score every image with each set of patches in turn hidden from the attention of all blocks and of the pool.

        Args:
            hidden: masks, 1 where hidden, in patches.
        """
        tower = self.inputs.clip.tower
        assert isinstance(tower, AttentionTower)  # the method fits
        modules = [*tower.attentions, *([tower.pool] if tower.pool is not None else [])]
        rows = []
        for i, image in enumerate(self.inputs.images):
            for which in self._slices(hidden.shape[1]):
                keys = hidden[i, which].flatten(1) > 0
                with intercepted_attention(modules, partial(_attend_without, keys)):
                    rows.append(self._score(i, image.expand(len(keys), -1, -1, -1)))
        return torch.cat(rows).reshape(len(hidden), hidden.shape[1], -1)

    def _slices(self, count: int) -> Iterator[slice]:
        step = self.inputs.batch_size
        return (slice(start, start + step) for start in range(0, count, step))

    def _score(self, image: int, variants: Float[Tensor, "k 3 y x"]) -> Float[Tensor, "k p"]:
        texts = self.inputs.texts[image].expand(len(variants), -1, -1)
        features = F.normalize(self.inputs.embed(variants), dim=-1)
        return self.inputs.compute_scores(torch.einsum("be,bqe->bq", features, texts))

    def _ablate(self, image: int, start: int, count: int) -> Tensor:
        """Copy the layer's output for one image ``count`` times, and set another channel to 0 in each copy."""
        copies: Tensor = _copy(self.output, image, count, self.dims[0])
        ablated = copies.movedim(self.dims, (0, 1)).clone()
        rows = torch.arange(count, device=ablated.device)
        ablated[rows, start + rows] = 0
        return ablated.movedim((0, 1), self.dims)

    def _skipped_blocks(self, image: int, count: int) -> AbstractContextManager[None]:
        """Let each block before the layer return the recorded output of the last of them at once."""
        if not self.block_outputs:
            return nullcontext()
        result = _copy([*self.block_outputs.values()][-1], image, count, self.inputs.clip.tower.batch_dim)
        return replaced_forwards(list(self.block_outputs), lambda _forward: lambda *_args, **_kwargs: result)


def _copy(output: Any, image: int, count: int, batch_dim: int) -> Any:
    """Copy an output for one image ``count`` times."""
    if isinstance(output, tuple):
        return tuple(_copy(each, image, count, batch_dim) if isinstance(each, Tensor) else each for each in output)
    return output.index_select(batch_dim, torch.full((count,), image, device=output.device))


def _attend_without(patches: Bool[Tensor, "b s"], _module: int, attention: Attention) -> Float[Tensor, "b h t v"]:
    """Compute attention without those of the last keys, which are the patches, that ``patches`` marks."""
    hidden = F.pad(patches, (attention.key.shape[-2] - patches.shape[1], 0))[:, None, None]
    mask = torch.zeros_like(hidden, dtype=attention.query.dtype).masked_fill(hidden, float("-inf"))
    return replace(attention, mask=mask if attention.mask is None else attention.mask + mask).output()


@contextmanager
def _recorded_blocks_before(layer: nn.Module, blocks: Any) -> Iterator[dict[nn.Module, Any]]:
    """Record the outputs of those ``blocks`` that finish before ``layer`` has run for the first time."""
    outputs: dict[nn.Module, Any] = {}
    reached = False

    def record(block: nn.Module, _inputs: object, output: Any) -> None:
        if not reached:
            outputs[block] = output

    def reach(*_: object) -> None:
        nonlocal reached
        reached = True

    handles = [block.register_forward_hook(record) for block in blocks]
    handles.append(layer.register_forward_hook(reach))
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
