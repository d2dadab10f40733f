"""Verify that a model embeds as its tower describes: wrappers, adapters and hooks of users change that unseen."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from clipcam_lightning.cam.attention import Attention, intercepted_attention
from clipcam_lightning.cam.model_state import evaluation_mode
from clipcam_lightning.cam.precision import find_input_type
from clipcam_lightning.cam.towers.tower import HEAD, RESIDUAL, AttentionTower, Tower
from clipcam_lightning.errors import ModelError

TOLERANCES = {torch.float32: 1e-3, torch.float64: 1e-3}
HALF_TOLERANCE = 0.05  # of models in half precision
ROUNDINGS = 4  # between a difference of large numbers and its true value
_verified: "WeakKeyDictionary[nn.Module, tuple[tuple[Any, ...], bool]]" = WeakKeyDictionary()


def verify_head(tower: Tower) -> None:
    """Clear ``has_known_head`` of a tower whose model computes something else between its tokens and its embedding.

    It embeds two images, unless that was done before and no module, hook or frozen weight changed since. A model that
    has no values yet, or whose embeddings are not finite, stays as it is described.

    Args:
        tower: of any kind; only one that offers a known head is verified.
    """
    if not isinstance(tower, AttentionTower) or HEAD not in tower.offers:
        return
    clip, structure = tower.clip, _describe_structure(tower)
    known_structure, embeds_as_described = _verified.get(clip, ((), False))
    if known_structure != structure:
        try:
            verified = _embeds_as_described(tower)
        except (ModelError, MemoryError, torch.OutOfMemoryError):  # of weights without values, or of this moment
            return
        except Exception:  # of any kind: whatever surrounds the parts that the tower knows may raise anything
            tower.has_known_head = False
            return
        if verified is None:
            return
        _verified[clip] = structure, verified
        embeds_as_described = verified
    tower.has_known_head = embeds_as_described


def _describe_structure(tower: Tower) -> tuple[Any, ...]:
    """Describe how a model computes, besides values: by its modules, hooks, replaced functions and what is trained.

    Functions are described by their ids: they may refer to the model, which must not be kept alive.
    """
    parts = (
        (
            type(part),
            *part._forward_hooks,
            *part._forward_pre_hooks,
            *((name, id(value)) for name, value in vars(part).items() if callable(value)),
        )
        for part in tower.clip.modules()
    )
    return type(tower), *parts, *(parameter.requires_grad for parameter in tower.clip.parameters())


def _embeds_as_described(tower: AttentionTower) -> bool | None:
    """Embed two images, and compute the same from the tokens with the functions of the tower.

    Returns:
        Whether both are equal, and depend on the same parameters, since an adapter may have no effect yet; ``None`` if
        the embeddings are not finite.
    """
    is_additive = RESIDUAL in tower.offers
    last = tower.blocks[-1] if tower.attentions else tower.pool
    assert last is not None  # without attention in the blocks it is in the pool
    outputs: list[Any] = []
    summands = _Summands(tower)

    def record(_module: nn.Module, _inputs: Any, output: Any) -> None:
        outputs.append(output)
        torch.set_grad_enabled(True)

    with evaluation_mode(tower.clip), tower.native(), torch.no_grad():
        handle = last.register_forward_hook(record)
        try:
            with summands.compared(tower.blocks if is_additive else ()):
                features = tower.encode(_make_images(tower)).float()
        finally:
            handle.remove()
        if not features.isfinite().all():
            return None
        if not tower.attentions:
            return _is_parallel(outputs[-1], features) and not _list_read(tower, features)
        tokens = tower.to_tokens(outputs[-1])
        described = list(_list_embeddings(tower, tokens))
        if not any(_is_parallel(embeddings, features) for embeddings in described):
            return False
        if not _list_read(tower, features) <= _list_read(tower, *described):
            return False
        if not is_additive:
            return True
        return summands.found == {*range(len(tower.blocks))} and _has_affine_head(tower, tokens[:, :1], features)


def _list_read(tower: AttentionTower, *embeddings: Tensor) -> set[int]:
    """List the trained parameters that embeddings depend on since gradients were switched on, even without effect."""
    parameters = [each for each in tower.clip.parameters() if each.requires_grad]
    read = set()
    for each in embeddings:
        if each.requires_grad and parameters:
            gradients = torch.autograd.grad(each.sum(), parameters, allow_unused=True)
            read |= {i for i, gradient in enumerate(gradients) if gradient is not None}
    return read


def _make_images(tower: AttentionTower) -> Float[Tensor, "2 3 y x"]:
    """Make two images without drawing random numbers."""
    size = (2, 3, *tower.input_size)
    waves = torch.sin(0.37 * torch.arange(math.prod(size), dtype=torch.float32, device="cpu")).view(size)
    return waves.to(next(tower.clip.parameters()).device, find_input_type(getattr(tower, "visual", None) or tower.clip))


def _list_embeddings(tower: AttentionTower, tokens: Float[Tensor, "b t d"]) -> Iterator[Float[Tensor, "b e"]]:
    """List the embeddings that the pooling of a tower may mean: a mean may come before or after the head."""
    if tower.pooling == "cls":
        yield tower.embed_tokens(tokens[:, :1])[:, 0]
    elif tower.pooling == "attention":
        yield tower.pool_tokens(tokens)
    else:
        for pooled in (tokens[:, tower.prefix :], tokens):
            yield tower.embed_tokens(pooled.mean(dim=1, keepdim=True))[:, 0]
            yield tower.embed_tokens(pooled).mean(dim=1)


class _Summands:
    """Finds the blocks in which a part gets the block's input plus what the tower projects of its heads.

    Args:
        tower: with attention in its blocks.
    """

    def __init__(self, tower: AttentionTower) -> None:
        self.found: set[int] = set()
        self._tower = tower
        self._before: dict[int, Tensor] = {}
        self._added: dict[int, Tensor] = {}

    @contextmanager
    def compared(self, blocks: Sequence[nn.Module]) -> Iterator[None]:
        """Compare during the forward in the ``with`` block.

        Args:
            blocks: of the tower, or none.
        """
        hooks = [
            (part, self._make_hook(i, is_block=part is block))
            for i, block in enumerate(blocks)
            for part in block.modules()
        ]
        handles = [part.register_forward_pre_hook(hook, with_kwargs=True) for part, hook in hooks]
        try:
            with intercepted_attention(self._tower.attentions if blocks else (), self._attend):
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _attend(self, i: int, attention: Attention) -> Tensor:
        heads = attention.output()
        self._added[i] = self._tower.project(i, heads.transpose(1, 2).flatten(2))
        return heads

    def _make_hook(self, i: int, *, is_block: bool) -> Callable[..., None]:
        def hook(_part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            value = next(iter((*args, *kwargs.values())), None)
            if is_block:
                self._before[i] = self._tower.to_tokens(value)
            elif i in self._added and i not in self.found and isinstance(value, Tensor) and value.ndim == 3:
                tokens, before = self._tower.to_tokens(value), self._before[i]
                if tokens.shape == before.shape and _is_equal(tokens - before, self._added[i], rounded=before):
                    self.found.add(i)

        return hook


def _has_affine_head(tower: AttentionTower, tokens: Float[Tensor, "b 1 d"], features: Float[Tensor, "b e"]) -> bool:
    """Whether the embedding is an affine function of a layer norm of the class tokens."""
    norm = tower.final_norm
    if not isinstance(norm, nn.LayerNorm):
        return False
    normalized = norm(tokens)
    scale, shift = (each if each is None else each.float() for each in (norm.weight, norm.bias))
    plain = F.layer_norm(tokens.float(), norm.normalized_shape, scale, shift, norm.eps)
    first, second = normalized[:1], normalized[1:]
    together = tower.head(first + second) + tower.head(torch.zeros_like(first))
    return (
        _is_equal(plain, normalized)
        and _is_equal(together, tower.head(first) + tower.head(second))
        and _is_parallel(tower.head(normalized)[:, 0], features)
    )


def _is_parallel(embeddings: Tensor, features: Float[Tensor, "b e"]) -> bool:
    if embeddings.shape != features.shape:
        return False
    return _is_equal(F.normalize(features, dim=-1).to(embeddings.dtype), F.normalize(embeddings, dim=-1))


def _is_equal(values: Tensor, others: Tensor, rounded: Tensor | None = None) -> bool:
    """Whether values are equal up to the rounding of the type that they were computed in.

    Args:
        values, others: of one shape.
        rounded: what was subtracted from ``values``, whose rounding they keep.
    """
    tolerance = max(TOLERANCES.get(each.dtype, HALF_TOLERANCE) for each in (values, others))
    limit = tolerance * others.float().norm()
    if rounded is not None:
        limit = limit + ROUNDINGS * torch.finfo(rounded.dtype).eps * rounded.float().norm()
    return bool((values.float() - others.float()).norm() <= limit)
