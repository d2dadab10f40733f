"""The pass of methods that try changed inputs out and read the scores only."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from clipcam_lightning.cam.capture import ScoreCapture, cut_at
from clipcam_lightning.cam.fuse import fused
from clipcam_lightning.cam.methods import Method
from clipcam_lightning.cam.passes.one_pass import Pass, Result
from clipcam_lightning.cam.untouched import forwards_replaced


@torch.no_grad()
def with_scores(method: Method, one: Pass) -> Result:
    """One forward of the images as they are, and then whatever the method tries."""
    tower, modules = one.clip.tower, one.modules()
    with _finished_before(tower.blocks, modules[0]) as finished, cut_at(modules, graph=False) as recorded:
        similarity = one.similarity(one.clip.features(one.images))
    maps = []
    for module, output in zip(modules, one.of_layers(recorded), strict=True):
        trial = _Trial(one, module, output, finished if module is modules[0] else {})
        capture = ScoreCapture(
            activations=tower.to_grid(output, one.size).float(),
            images=one.images,
            scores=one.scores(similarity),
            rescored=trial.rescored,
            without_channels=trial.without_channels,
        )
        maps.append(method(capture))
    return fused(maps, one.fuse), similarity


class _Trial:
    """Changed inputs of one pass, a batch of them at a time."""

    def __init__(self, one: Pass, layer: nn.Module, output: Tensor, finished: dict[nn.Module, Any]) -> None:
        self.one = one
        self.layer = layer
        self.output = output
        self.finished = finished  # blocks that are done before the layer runs, and what they gave

    def rescored(
        self, variant: Callable[[int, slice], Float[Tensor, "k 3 y x"]], count: int
    ) -> Float[Tensor, "b {count} p"]:
        """Scores of ``count`` variants of every image."""
        return torch.stack([
            torch.cat([self._scores(image, variant(image, which)) for which in self._slices(count)])
            for image in range(len(self.one.images))
        ])  # fmt: skip

    def without_channels(self) -> Float[Tensor, "b c p"]:
        """Scores with one channel of the layer set to 0, for every channel; only what follows the layer is computed."""
        channels, images = self.output.shape[self.one.clip.tower.channel_dim], self.one.images
        rows = []
        for i in range(len(images)):
            for which in self._slices(channels):
                count = min(which.stop, channels) - which.start
                with self._resumed(i, count), self._replaced(self._ablated(i, which.start, count)):
                    rows.append(self._scores(i, images[i].expand(count, -1, -1, -1)))
        return torch.cat(rows).reshape(len(images), channels, -1)

    def _slices(self, count: int) -> Iterator[slice]:
        step = self.one.batch_size
        return (slice(start, start + step) for start in range(0, count, step))

    def _scores(self, image: int, variants: Float[Tensor, "k 3 y x"]) -> Float[Tensor, "k p"]:
        texts = self.one.texts[image].expand(len(variants), -1, -1)
        features = F.normalize(self.one.clip.features(variants), dim=-1)
        return self.one.scores(torch.einsum("be,bqe->bq", features, texts))

    def _ablated(self, image: int, start: int, count: int) -> Tensor:
        """The layer's output for one image, ``count`` times, each without another channel."""
        tower = self.one.clip.tower
        copied: Tensor = self._copies(self.output, image, count)
        kept = copied.movedim((tower.batch_dim, tower.channel_dim), (0, 1)).clone()
        copies = torch.arange(count, device=kept.device)
        kept[copies, start + copies] = 0
        return kept.movedim((0, 1), (tower.batch_dim, tower.channel_dim))

    def _copies(self, output: Any, image: int, count: int) -> Any:
        if isinstance(output, tuple):
            return tuple(self._copies(each, image, count) if isinstance(each, Tensor) else each for each in output)
        chosen = torch.full((count,), image, device=output.device)
        return output.index_select(self.one.clip.tower.batch_dim, chosen)

    def _resumed(self, image: int, count: int) -> Any:
        """Blocks before the layer are not computed again: each gives at once what the last of them gave."""
        result = self._copies([*self.finished.values()][-1], image, count) if self.finished else None
        return forwards_replaced(list(self.finished), lambda _forward: lambda *_args, **_kwargs: result)

    @contextmanager
    def _replaced(self, output: Tensor) -> Iterator[None]:
        def replace(_module: nn.Module, _inputs: object, own: Any) -> Any:
            return (output, *own[1:]) if isinstance(own, tuple) else output

        handle = self.layer.register_forward_hook(replace)
        try:
            yield
        finally:
            handle.remove()


@contextmanager
def _finished_before(blocks: Any, layer: nn.Module) -> Iterator[dict[nn.Module, Any]]:
    """Outputs of the ``blocks`` that are done when ``layer`` has run for the first time."""
    outputs: dict[nn.Module, Any] = {}
    reached = False

    def finish(block: nn.Module, _inputs: object, output: Any) -> None:
        if not reached:
            outputs[block] = output

    def reach(*_: object) -> None:
        nonlocal reached
        reached = True

    handles = [block.register_forward_hook(finish) for block in blocks]
    handles.append(layer.register_forward_hook(reach))
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
