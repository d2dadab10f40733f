"""The pass of methods that read the attention of some blocks, with or without gradients."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from clipcam_lightning.cam.attention import Attention, attending
from clipcam_lightning.cam.capture import (
    AttentionCapture,
    Call,
    ClassTokenCapture,
    HeadCapture,
    WeightCapture,
    WholeCapture,
    calls_of,
)
from clipcam_lightning.cam.methods import Method
from clipcam_lightning.cam.passes.one_pass import Pass, Result
from clipcam_lightning.cam.towers.tower import AttentionTower
from clipcam_lightning.errors import ConfigError, TowerError


def with_attention(method: Method, one: Pass) -> Result:
    """One forward; if gradients are read, one vector-Jacobian product a prompt through what follows the first block."""
    tower = one.clip.tower
    assert isinstance(tower, AttentionTower)  # the method fits
    record = _Record(tower, _blocks(tower, method, one.layers), method.reads)
    whole = method.reads is WholeCapture
    with nullcontext() if whole else tower.skipping_unused(()), record.recording():
        features = one.clip.features(one.images)
        similarity = one.similarity(features)
        scores = one.scores(similarity)
    seen = record.seen(one, features.detach(), one.directions(similarity))
    if method.reads in (AttentionCapture, WholeCapture, ClassTokenCapture):
        return method(method.reads(**seen)), similarity
    maps = []
    for p in range(one.prompts):
        gradients = torch.autograd.grad(scores[:, p].sum(), record.leaves, retain_graph=p + 1 < one.prompts)
        own = {**seen, "directions": seen["directions"][:, p : p + 1]}
        maps.append(method(record.with_gradients(own, gradients)))
    return torch.cat(maps, dim=1), similarity


def _blocks(tower: AttentionTower, method: Method, layers: tuple[str, ...]) -> tuple[int, ...]:
    """Indices of the blocks that the layers are in."""
    names = list(tower.layers[: len(tower.attentions)])
    unknown = [name for name in layers if name not in names]
    if unknown:
        raise ConfigError(
            f"{method.name} reads the attention of whole blocks, and {unknown[0]} names none; "
            f"choose from {', '.join(names) or 'no layers: in this tower only the pooling has attention'}, "
            "or a method that maps any layer, such as hirescam."
        )
    return tuple(sorted(names.index(name) for name in layers))


@dataclass
class _Record:
    """What one forward shows of the attention of ``blocks`` and of the pool."""

    tower: AttentionTower
    blocks: tuple[int, ...]
    reads: type
    attentions: dict[int, Attention] = field(default_factory=dict)
    taken: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)  # weights and values of class tokens
    leaves: list[Tensor] = field(default_factory=list)  # what gradients are taken of, in the order of the pass
    calls: dict[nn.Module, Call] = field(default_factory=dict)
    last_tokens: Tensor | None = None

    @property
    def watched(self) -> list[nn.Module]:
        """Modules with the attention that is read: of the blocks, then of the pool."""
        pool = [self.tower.pool] if self.tower.pool is not None else []
        return [*(self.tower.attentions[i] for i in self.blocks), *pool]

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record the one forward that is made inside."""
        replayed = () if self.reads is ClassTokenCapture else self.blocks
        blocks = [self.tower.blocks[i] for i in replayed]
        attentions = [self.tower.attentions[i] for i in replayed]
        handle = self.tower.blocks[-1].register_forward_hook(self._keep_tokens)
        try:
            with torch.no_grad(), calls_of([*blocks, *attentions]) as self.calls, attending(self.watched, self._attend):
                yield
        finally:
            handle.remove()

    def seen(self, one: Pass, features: Float[Tensor, "b e"], directions: Float[Tensor, "b p e"]) -> dict[str, Any]:
        """The fields of what the method reads, but for gradients.

        Raises:
            TowerError: an attention was computed in a way that cannot be seen.
        """
        missed = [module for i, module in enumerate(self.watched) if i not in self.attentions | self.taken]
        if missed or self.last_tokens is None:
            module = missed[0] if missed else self.tower.blocks[-1]
            raise TowerError(
                f"{type(module).__name__} of {type(self.tower).__name__} computes attention in some other way "
                "than torch's scaled_dot_product_attention; methods that read no attention can still map it."
            )
        count = len(self.blocks)
        seen = {
            "tower": self.tower,
            "grid": self.tower.grid(one.size),
            "directions": directions,
            "features": features,
            "blocks": self.blocks,
            "pool": self.attentions.get(count),
            "last_tokens": self.last_tokens.detach(),
        }
        if self.reads is ClassTokenCapture:
            weights, values = zip(*(self.taken[i] for i in range(count)), strict=True)
            return {
                **seen,
                "attentions": (),
                "inputs": (),
                "attention_inputs": (),
                "weights": weights,
                "values": values,
            }
        return {
            **seen,
            "attentions": tuple(self.attentions[i] for i in range(count)),
            "inputs": tuple(self.calls[self.tower.blocks[i]] for i in self.blocks),
            "attention_inputs": tuple(self.calls[self.tower.attentions[i]] for i in self.blocks),
        }

    def with_gradients(self, seen: dict[str, Any], gradients: tuple[Tensor, ...]) -> AttentionCapture:
        """The capture for one prompt."""
        if self.reads is HeadCapture:
            last = self.attentions[len(self.watched) - 1]
            return HeadCapture(**seen, last=last, gradients=gradients[0][:, None, :, 0])
        weights = tuple(leaf.detach() for leaf in self.leaves)
        return WeightCapture(**seen, weights=weights, gradients=tuple(each[:, None] for each in gradients))

    def _attend(self, i: int, attention: Attention) -> Tensor:
        if self.reads is ClassTokenCapture and i < len(self.blocks):
            seen = attention.first().detached()
            self.taken[i] = seen.weights()[:, :, 0], seen.value
            return attention.output()
        self.attentions[i] = attention.detached()
        if self.reads is WeightCapture:
            weights = attention.weights()
            if not self.leaves:  # the graph starts here
                torch.set_grad_enabled(True)
                weights = weights.detach().requires_grad_()
            self.leaves.append(weights)
            return weights @ attention.value
        output = attention.output()
        if self.reads is HeadCapture and i == len(self.watched) - 1:
            torch.set_grad_enabled(True)
            self.leaves.append(output.detach().requires_grad_())
            return self.leaves[0].clone()  # an in-place op downstream must not touch the leaf
        return output

    def _keep_tokens(self, _block: nn.Module, _inputs: object, output: Any) -> None:
        self.last_tokens = self.tower.to_tokens(output)
