"""Captures: what one pass records for a method. ``b`` images and ``p`` prompts share a capture."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from clipcam_lightning.cam.attention import Attention, AttentionHook, intercepted_attention
from clipcam_lightning.cam.representation import short_repr
from clipcam_lightning.cam.towers.tower import AttentionTower
from clipcam_lightning.errors import TowerError


@dataclass(frozen=True, eq=False, repr=False)
class LayerCapture:
    """Input of methods that read activations only, so that one map serves every prompt.

    Attributes:
        activations: output of the layer on its own grid, float32.
        backwards: of every kind of capture, the backward passes per prompt that it takes.
    """

    backwards: ClassVar[int] = 0
    activations: Float[Tensor, "b c h w"]

    __repr__ = short_repr


@dataclass(frozen=True, eq=False, repr=False)
class Capture(LayerCapture):
    """Input of most CAM methods: activations and gradients of one layer.

    Attributes:
        activations: output of the layer on its own grid, float32.
        gradients: gradients of the target scores with respect to ``activations``. A pass hands over one prompt at a
            time (``p`` is 1), so that memory does not grow with the number of prompts.

    Example:
        >>> import torch
        >>> from clipcam_lightning import METHODS, Capture
        >>> activations = torch.tensor([[[[1.0, 2.0]], [[3.0, -1.0]]]])  # 1 image, 2 channels, a 1 x 2 grid
        >>> gradients = torch.tensor([[[[[1.0, 3.0]], [[-2.0, 0.0]]]]])  # 1 image, 1 prompt
        >>> METHODS["hirescam"](Capture(activations, gradients))
        tensor([[[[0., 6.]]]])
    """

    backwards: ClassVar[int] = 1
    gradients: Float[Tensor, "b p c h w"]


@dataclass(frozen=True, eq=False, repr=False)
class CurvatureCapture(Capture):
    """Input of second-order methods.

    Attributes:
        activations, gradients: as in :class:`Capture`.
        curvature: the Hessian of the target score times ``activations``.
    """

    backwards: ClassVar[int] = 3  # the second one runs through the forward and the first backward
    curvature: Float[Tensor, "b p c h w"]


@dataclass(frozen=True, eq=False, repr=False)
class AttentionCapture:
    """Input of methods that read the attention of some blocks.

    Attributes:
        tower: the image tower.
        grid: height and width in patches.
        first_patch: number of tokens before the patches in a block, where other tokens may follow them.
        directions: gradient of each target score with respect to the unit image embedding, which a method that is
            linear in the text multiplies with. For the target ``similarity`` these are the unit text embeddings.
        features: image embeddings before they are scaled to unit length.
        blocks: indices of the recorded blocks in the tower, first to last.
        attentions: attention of ``blocks``. If only the class token is pooled, the last block may hold its query alone.
        pool: the attention that pools the patches; ``None`` for other poolings.
        inputs: arguments of each of ``blocks``.
        attention_inputs: arguments of each attention module.
        last_tokens: output of the tower's last block; for a class-token tower possibly that token alone.

    Example:
        >>> import torch
        >>> from clipcam_lightning import AttentionCapture, Method, explain
        >>> from clipcam_lightning.shapes_world import WordTokenizer, trained_clip
        >>> def last_attention(capture):
        ...     weights = capture.attentions[-1].first_query().weights()  # [b, heads, 1, tokens]
        ...     return capture.to_map(weights.mean(dim=1))
        >>> method = Method(last_attention, AttentionCapture, needs=("attention",), blocks=1)
        >>> images = torch.rand(1, 3, 64, 64)
        >>> explain(trained_clip("vit"), images, ["a star"], method=method, tokenizer=WordTokenizer()).maps.shape
        torch.Size([1, 1, 8, 8])
    """

    backwards: ClassVar[int] = 0
    tower: AttentionTower
    grid: tuple[int, int]
    first_patch: int
    directions: Float[Tensor, "b p e"]
    features: Float[Tensor, "b e"]
    blocks: tuple[int, ...]
    attentions: tuple[Attention, ...]
    pool: Attention | None
    inputs: tuple["Call", ...]
    attention_inputs: tuple["Call", ...]
    last_tokens: Float[Tensor, "b t d"]

    __repr__ = short_repr

    def to_map(self, values: Float[Tensor, "b p t"]) -> Float[Tensor, "b p h w"]:
        """Lay out one value per token of a block, or of a pool that reads the patches alone, as a map, row by row."""
        of_patches = values[..., self.find_patches(values.shape[-1])]
        return of_patches.reshape(*values.shape[:-1], *self.grid)

    def select_patches(self, tokens: Float[Tensor, "b t d"]) -> Float[Tensor, "b s d"]:
        """Return the tokens that are patches."""
        return tokens[:, self.find_patches(tokens.shape[1])]

    def find_patches(self, tokens: int) -> slice:
        """Find which of so many tokens are patches: all, if there are no others."""
        patches = math.prod(self.grid)
        first = 0 if tokens == patches else self.first_patch
        return slice(first, first + patches)

    def replay_block(self, which: int, hook: AttentionHook) -> Float[Tensor, "b t d"]:
        """Run a recorded block on its recorded input again.

        Args:
            which: index into ``blocks``.
            hook: computes the attention in place of the block.

        Returns:
            The block's output tokens.
        """
        block = self.blocks[which]
        with intercepted_attention([self.tower.attentions[block]], hook):
            return self.tower.to_tokens(self.inputs[which].repeat(self.tower.blocks[block]))


@dataclass(frozen=True, eq=False, repr=False)
class WholeCapture(AttentionCapture):
    """An :class:`AttentionCapture` whose last block has all of its queries and tokens."""


@dataclass(frozen=True, eq=False, repr=False)
class ClassTokenCapture(AttentionCapture):
    """Input of methods that read only the class token's attention.

    ``attentions``, ``inputs`` and ``attention_inputs`` are empty, which saves about 80 % of the recorded memory.

    Attributes:
        weights: attention weights of the class token's query in each of ``blocks``.
        values: values of all tokens in each of ``blocks``.
    """

    weights: tuple[Float[Tensor, "b h _s"], ...]
    values: tuple[Float[Tensor, "b h _s _v"], ...]


@dataclass(frozen=True, eq=False, repr=False)
class WeightCapture(AttentionCapture):
    """Input of methods that read how the score depends on the attention weights.

    Attributes:
        weights: attention weights of ``blocks``, then of ``pool`` if there is one.
        gradients: gradients of the target scores with respect to ``weights``; one prompt at a time.
    """

    backwards: ClassVar[int] = 1
    weights: tuple[Float[Tensor, "b h _t _s"], ...]
    gradients: tuple[Float[Tensor, "b p h _t _s"], ...]


@dataclass(frozen=True, eq=False, repr=False)
class HeadCapture(AttentionCapture):
    """Input of methods that read the one attention through which patches reach the embedding.

    Attributes:
        last: the attention that pools, or that of the last block if a class token is pooled; one query.
        gradients: gradients of the target scores with respect to the output of that query's heads; one prompt at a
            time.
    """

    backwards: ClassVar[int] = 1
    last: Attention
    gradients: Float[Tensor, "b p h v"]


@dataclass(frozen=True, eq=False, repr=False)
class ScoreCapture(LayerCapture):
    """Input of perturbation-based methods.

    Attributes:
        activations: output of the layer on its own grid, float32.
        images: model input.
        scores: target scores of the unchanged images.
        score_variants: ``score_variants(variant, count)`` returns the scores ``[b, count, p]`` of ``count`` variants of
            every image. ``variant(image, which)`` makes those in the slice ``which`` of one image, one batch at a time.
        score_without_channels: returns the scores ``[b, c, p]`` with each channel of ``activations`` in turn set to 0.
        score_without_attention: ``score_without_attention(hidden)`` returns the scores ``[b, k, p]`` with each of ``k``
            sets of patches per image, masks ``[b, k, h, w]`` (1 where hidden), in turn hidden from all attention.
    """

    images: Float[Tensor, "b 3 y x"]
    scores: Float[Tensor, "b p"]
    score_variants: Callable[[Callable[[int, slice], Tensor], int], Tensor]
    score_without_channels: Callable[[], Tensor]
    score_without_attention: Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False, repr=False)
class Call:
    """The arguments of one call of a module."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    __repr__ = short_repr

    def repeat(self, module: nn.Module) -> Any:
        """Call ``module`` with the same arguments."""
        return module(*self.args, **self.kwargs)

    @property
    def first_argument(self) -> Any:
        """The first argument, whether it was passed by position or by name."""
        return self.args[0] if self.args else next(iter(self.kwargs.values()))


@contextmanager
def cut_at(layers: Sequence[nn.Module], graph: bool = True) -> Iterator[dict[nn.Module, Tensor]]:
    """Start the autograd graph at the first of ``layers`` that runs, and record the output of each.

    Everything before runs under ``no_grad``. From the first layer on, grad mode is on and the recorded tensors can be
    differentiated. The graph ends there, so a frozen model works and no ``.grad`` is touched.

    Args:
        layers: the layers to record.
        graph: whether to start a graph; ``False`` records only.

    Yields:
        An initially empty dict that receives each layer's output, or its first item if the output is a tuple.

    Raises:
        TowerError: (from the forward) a layer does not return exactly one tensor.
    """
    recorded: dict[nn.Module, Tensor] = {}

    def record(layer: nn.Module, _inputs: object, output: Any) -> Any:
        own, *others = output if isinstance(output, tuple) else (output,)
        if not isinstance(own, Tensor) or any(isinstance(other, Tensor) for other in others):
            raise TowerError(
                f"a layer must return one tensor, but {type(layer).__name__} returns a {type(output).__name__}; "
                "choose another layer."
            )
        if graph and not recorded:
            torch.set_grad_enabled(True)
            own = own.detach().requires_grad_()
        recorded.setdefault(layer, own)
        own = own.clone()  # an in-place op downstream must not touch the recorded tensor
        return (own, *others) if isinstance(output, tuple) else own

    handles = [layer.register_forward_hook(record) for layer in layers]
    try:
        with torch.no_grad():  # also restores grad mode after the hook switched it on
            yield recorded
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def replaced_output(layer: nn.Module, output: Tensor) -> Iterator[None]:
    """Let ``layer`` return ``output``; if it returns a tuple, in the place of the first item."""

    def replace(_layer: nn.Module, _inputs: object, own: Any) -> Any:
        return (output, *own[1:]) if isinstance(own, tuple) else output

    handle = layer.register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def recorded_calls(modules: Sequence[nn.Module]) -> Iterator[dict[nn.Module, Call]]:
    """Record the arguments of the first call of each of ``modules``.

    Yields:
        An initially empty dict that receives the calls.
    """
    calls: dict[nn.Module, Call] = {}

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.setdefault(module, Call(args, kwargs))

    # Prepended, so that the arguments are recorded before another hook shortens them.
    handles = [module.register_forward_pre_hook(record, with_kwargs=True, prepend=True) for module in modules]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
