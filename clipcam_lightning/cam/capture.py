"""What one pass records, and what a method is shown of it. ``b`` images and ``p`` prompts share a capture."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from clipcam_lightning.cam.attention import Attend, Attention, attending
from clipcam_lightning.cam.towers.tower import AttentionTower
from clipcam_lightning.errors import TowerError


@dataclass(frozen=True)
class LayerCapture:
    """What a method sees that reads no gradient: its map serves every prompt.

    Attributes:
        activations: the layer's output on its own grid.
    """

    activations: Float[Tensor, "b c h w"]


@dataclass(frozen=True)
class Capture(LayerCapture):
    """What most CAM methods see.

    Attributes:
        gradients: of the target scores with respect to ``activations``. Prompts come one at a time (``p`` is 1), so
            that memory does not grow with their number.
    """

    gradients: Float[Tensor, "b p c h w"]


@dataclass(frozen=True)
class CurvatureCapture(Capture):
    """What a second-order method sees.

    Attributes:
        curvature: the Hessian of the target score times ``activations``.
    """

    curvature: Float[Tensor, "b p c h w"]


@dataclass(frozen=True)
class AttentionCapture:
    """What a method sees that reads the attention of some blocks.

    Attributes:
        tower: the image tower.
        grid: height and width in patches.
        directions: what a method that is linear in the text multiplies with: the gradient of each target score
            with respect to the unit image embedding. For the target ``similarity`` the unit text embeddings.
        features: image embeddings before they are scaled to unit length.
        blocks: which blocks of the tower, first to last.
        attentions: of these blocks. Where only the class token is pooled, the last block has its query alone.
        pool: the attention that pools the patches, where one does.
        inputs: arguments that each of ``blocks`` was called with.
        attention_inputs: arguments that each attention module was called with.
        last_tokens: output of the tower's last block; of a class-token tower maybe that token alone.
    """

    tower: AttentionTower
    grid: tuple[int, int]
    directions: Float[Tensor, "b p e"]
    features: Float[Tensor, "b e"]
    blocks: tuple[int, ...]
    attentions: tuple[Attention, ...]
    pool: Attention | None
    inputs: tuple["Call", ...]
    attention_inputs: tuple["Call", ...]
    last_tokens: Float[Tensor, "b t d"]

    def to_map(self, values: Float[Tensor, "b p t"]) -> Float[Tensor, "b p h w"]:
        """One value a token as a map; patches are the last tokens, row by row."""
        height, width = self.grid
        return values[..., -height * width :].reshape(*values.shape[:-1], height, width)

    def patches(self, tokens: Float[Tensor, "b t d"]) -> Float[Tensor, "b s d"]:
        """The tokens that are patches."""
        return tokens[:, -self.grid[0] * self.grid[1] :]

    def replayed_block(self, which: int, attend: Attend) -> Float[Tensor, "b t d"]:
        """Tokens that block ``blocks[which]`` gives for its recorded input, its attention replaced by ``attend``."""
        block = self.blocks[which]
        with attending([self.tower.attentions[block]], attend):
            return self.tower.to_tokens(self.inputs[which].repeated(self.tower.blocks[block]))


@dataclass(frozen=True)
class WholeCapture(AttentionCapture):
    """The same with nothing left out: the last block has all its queries and tokens."""


@dataclass(frozen=True)
class ClassTokenCapture(AttentionCapture):
    """What a method sees that reads what the class token takes from each token, and no more.

    ``attentions``, ``inputs`` and ``attention_inputs`` are empty, so that a pass keeps a fifth of what it else would.

    Attributes:
        weights: of the class token's attention in each of ``blocks``.
        values: of all tokens in each of ``blocks``.
    """

    weights: tuple[Float[Tensor, "b h _s"], ...]
    values: tuple[Float[Tensor, "b h _s _v"], ...]


@dataclass(frozen=True)
class WeightCapture(AttentionCapture):
    """What a method sees that reads how the score depends on attention weights.

    Attributes:
        weights: attention weights of ``blocks``, then of ``pool`` where there is one.
        gradients: of the target scores with respect to ``weights``; one prompt at a time.
    """

    weights: tuple[Float[Tensor, "b h _t _s"], ...]
    gradients: tuple[Float[Tensor, "b p h _t _s"], ...]


@dataclass(frozen=True)
class HeadCapture(AttentionCapture):
    """What a method sees that reads the one attention by which patches reach the embedding.

    Attributes:
        last: the attention that pools, or of the last block if a class token is pooled; one query.
        gradients: of the target scores with respect to the output of that query's heads; one prompt at a time.
    """

    last: Attention
    gradients: Float[Tensor, "b p h v"]


@dataclass(frozen=True)
class ScoreCapture(LayerCapture):
    """What a method sees that tries changed inputs out.

    Attributes:
        images: as the model was fed with them.
        scores: target scores of the unchanged images.
        rescored: scores ``[b, count, p]`` of ``count`` variants of every image. A function of the image's index and a
            slice of the variants gives these variants; it is asked for a batch at a time.
        without_channels: scores ``[b, c, p]`` with one channel of ``activations`` after the other set to 0.
    """

    images: Float[Tensor, "b 3 y x"]
    scores: Float[Tensor, "b p"]
    rescored: Callable[[Callable[[int, slice], Tensor], int], Tensor]
    without_channels: Callable[[], Tensor]


@dataclass(frozen=True)
class Call:
    """The arguments a module was called with."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def repeated(self, module: nn.Module) -> Any:
        """Call ``module`` with them again."""
        return module(*self.args, **self.kwargs)

    @property
    def first(self) -> Any:
        """The first of them, however it was passed."""
        return self.args[0] if self.args else next(iter(self.kwargs.values()))


@contextmanager
def cut_at(layers: Sequence[nn.Module], graph: bool = True) -> Iterator[dict[nn.Module, Tensor]]:
    """Start the autograd graph at the first of ``layers`` that runs; record the output of each.

    Everything before runs under ``no_grad``. From the first layer on, grad mode is on and the recorded
    tensors can be differentiated. The graph ends there, so a frozen model works and no ``.grad`` is touched.

    Args:
        layers: what to record.
        graph: ``False`` to record only and to start no graph.

    Yields:
        An initially empty dict that receives each layer's output; the first item of one that is a tuple.

    Raises:
        TowerError: a layer gives no tensor.
    """
    recorded: dict[nn.Module, Tensor] = {}

    def record(layer: nn.Module, _inputs: object, output: Any) -> Any:
        own, *others = output if isinstance(output, tuple) else (output,)
        if not isinstance(own, Tensor) or any(isinstance(other, Tensor) for other in others):
            raise TowerError(f"a layer must give one tensor, {type(layer).__name__} gives a {type(output).__name__}.")
        if graph and not recorded:
            torch.set_grad_enabled(True)
            own = own.detach().requires_grad_()
        recorded.setdefault(layer, own)
        own = own.clone()  # an in-place op downstream must not touch what was recorded
        return (own, *others) if isinstance(output, tuple) else own

    handles = [layer.register_forward_hook(record) for layer in layers]
    try:
        with torch.no_grad():  # also puts grad mode back after the hook switched it on
            yield recorded
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def calls_of(modules: Sequence[nn.Module]) -> Iterator[dict[nn.Module, Call]]:
    """Record the arguments that each of ``modules`` is first called with."""
    calls: dict[nn.Module, Call] = {}

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.setdefault(module, Call(args, kwargs))

    # First in line, so that they are whole whatever another hook leaves out.
    handles = [module.register_forward_pre_hook(record, with_kwargs=True, prepend=True) for module in modules]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
