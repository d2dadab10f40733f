"""The pass of methods that read the attention of some blocks, with or without gradients."""

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from clipcam_lightning.cam.attention import Attention, intercepted_attention
from clipcam_lightning.cam.capture import (
    AttentionCapture,
    Call,
    ClassTokenCapture,
    HeadCapture,
    WeightCapture,
    WholeCapture,
    recorded_calls,
)
from clipcam_lightning.cam.methods import Method
from clipcam_lightning.cam.passes.one_pass import Pass, Result
from clipcam_lightning.cam.representation import short_repr
from clipcam_lightning.cam.towers.tower import AttentionTower
from clipcam_lightning.errors import ConfigError, TowerError


def run_attention_pass(method: Method, inputs: Pass) -> Result:
    """Run one forward, and for methods with gradients one vector-Jacobian product per prompt."""
    tower = inputs.clip.tower
    assert isinstance(tower, AttentionTower)  # the method fits
    recorder = _Recorder(tower, _find_blocks(tower, method, inputs.layers), method.reads)
    whole = method.reads is WholeCapture
    with nullcontext() if whole else tower.skipping_unused(()), recorder.recording():
        features = inputs.embed(inputs.images)
        similarity = inputs.compute_similarity(features)
        scores = inputs.compute_scores(similarity)
    fields = recorder.collect_fields(inputs, features.detach(), inputs.compute_directions(similarity))
    if method.reads in (AttentionCapture, WholeCapture, ClassTokenCapture):
        return method(method.reads(**fields)), features
    maps = []
    for p in range(inputs.prompts):
        gradients = torch.autograd.grad(scores[:, p].sum(), recorder.leaves, retain_graph=p + 1 < inputs.prompts)
        own = {**fields, "directions": fields["directions"][:, p : p + 1]}
        maps.append(method(recorder.make_gradient_capture(own, gradients)))
    return torch.cat(maps, dim=1), features


def _find_image_tokens(tower: AttentionTower, inputs: Pass) -> tuple[int, list[int]]:
    """Count the input tokens of the first block, and find which depend on the image: those of prompts do not."""
    image = inputs.images[:1]
    # Within the range of most images, so that a tower that clamps its input cannot make patches equal.
    ramp = torch.linspace(0, 1, image.numel(), dtype=image.dtype, device=image.device).view_as(image)
    with torch.no_grad(), recorded_calls([tower.blocks[0]]) as calls:
        inputs.embed(torch.cat([image, ramp, 1 - ramp]))
    first, *others = tower.to_tokens(calls[tower.blocks[0]].first_argument)
    depends = torch.stack([(first != other).any(dim=-1) for other in others]).any(dim=0)
    return len(first), depends.nonzero().flatten().tolist()


def _find_blocks(tower: AttentionTower, method: Method, layers: tuple[str, ...]) -> tuple[int, ...]:
    """Return the indices of the blocks that the layers belong to."""
    names = list(tower.layers[: len(tower.attentions)])
    unknown = [name for name in layers if name not in names]
    if unknown:
        raise ConfigError(
            f"{method.name} reads the attention of whole blocks (got layer {unknown[0]}); "
            f"choose from {', '.join(names) or 'no layers, since in this tower only the pool has attention'}, "
            "or use a method that maps any layer, such as hirescam."
        )
    return tuple(sorted(names.index(name) for name in layers))


@dataclass(eq=False, repr=False)
class _Recorder:
    """Records the attention of ``blocks`` and of the pool in one forward.

    Attributes:
        tower: the image tower.
        blocks: indices of the recorded blocks.
        reads: type of the capture.
        attentions: attention per module, in the order of ``modules``.
        class_token: weights of the class token's query, and values of all tokens, per block.
        leaves: tensors to differentiate by, in the order of the forward.
        calls: arguments of the blocks and of their attention modules.
        last_tokens: output of the last block.
    """

    tower: AttentionTower
    blocks: tuple[int, ...]
    reads: type
    attentions: dict[int, Attention] = field(default_factory=dict)
    class_token: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    leaves: list[Tensor] = field(default_factory=list)
    calls: dict[nn.Module, Call] = field(default_factory=dict)
    last_tokens: Tensor | None = None

    __repr__ = short_repr

    @property
    def modules(self) -> list[nn.Module]:
        """Modules whose attention is recorded: those of the blocks, then the pool."""
        pool = [self.tower.pool] if self.tower.pool is not None else []
        return [*(self.tower.attentions[i] for i in self.blocks), *pool]

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record the forward that runs inside the ``with`` block."""
        replayed = () if self.reads is ClassTokenCapture else self.blocks
        blocks = [self.tower.blocks[i] for i in replayed]
        attentions = [self.tower.attentions[i] for i in replayed]
        handle = self.tower.blocks[-1].register_forward_hook(self._record_tokens)
        try:
            with (
                torch.no_grad(),
                recorded_calls([*blocks, *attentions]) as self.calls,
                intercepted_attention(self.modules, self._attend),
            ):
                yield
        finally:
            handle.remove()

    def collect_fields(
        self, inputs: Pass, features: Float[Tensor, "b e"], directions: Float[Tensor, "b p e"]
    ) -> dict[str, Any]:
        """Collect the fields of the capture, except for gradients.

        Args:
            inputs: the batch.
            features: image embeddings of any length.
            directions: gradients of the scores with respect to the unit image embedding.

        Returns:
            Keyword arguments of the capture.

        Raises:
            TowerError: an attention was not computed by torch's own functions, so it was not recorded.
        """
        missing = [module for i, module in enumerate(self.modules) if i not in self.attentions | self.class_token]
        if missing or self.last_tokens is None:
            module = missing[0] if missing else self.tower.blocks[-1]
            raise TowerError(
                f"{type(module).__name__} of {type(self.tower).__name__} does not compute its attention with torch's "
                "scaled_dot_product_attention; use a method that does not read attention, such as hirescam."
            )
        count = len(self.blocks)
        fields = {
            "tower": self.tower,
            "grid": self.tower.grid(inputs.size),
            "first_patch": self._find_first_patch(inputs),
            "directions": directions,
            "features": features,
            "blocks": self.blocks,
            "pool": self.attentions.get(count),
            "last_tokens": self.last_tokens.detach(),
        }
        if self.reads is ClassTokenCapture:
            weights, values = zip(*(self.class_token[i] for i in range(count)), strict=True)
            return {
                **fields,
                "attentions": (),
                "inputs": (),
                "attention_inputs": (),
                "weights": weights,
                "values": values,
            }
        return {
            **fields,
            "attentions": tuple(self.attentions[i] for i in range(count)),
            "inputs": tuple(self.calls[self.tower.blocks[i]] for i in self.blocks),
            "attention_inputs": tuple(self.calls[self.tower.attentions[i]] for i in self.blocks),
        }

    def _find_first_patch(self, inputs: Pass) -> int:
        """Find how many tokens come before the patches, also where a fork added tokens, such as learned prompts.

        Raises:
            TowerError: there are other tokens than the tower knows, and the patches are not found among them.
        """
        last = len(self.modules) - 1
        value = self.class_token[last][1] if last in self.class_token else self.attentions[last].value
        tokens, patches = value.shape[-2], math.prod(self.tower.grid(inputs.size))
        if tokens in (patches, self.tower.prefix + patches):
            return self.tower.prefix
        count, depending = _find_image_tokens(self.tower, inputs)
        first = min(depending, default=0)
        if count != tokens or depending != [*range(first, first + patches)]:
            raise TowerError(
                f"expected {self.tower.prefix} + {patches} tokens, got {tokens}, and the patches cannot be found among "
                f"them: {len(depending)} of the {count} inputs of the first block depend on the image. Describe the "
                f"image tower with towers=[...]: a class derived from {type(self.tower).__name__}."
            )
        return first

    def make_gradient_capture(self, fields: dict[str, Any], gradients: tuple[Tensor, ...]) -> AttentionCapture:
        """Make the capture for one prompt from its fields and the gradients of its score."""
        if self.reads is HeadCapture:
            last = self.attentions[len(self.modules) - 1]
            return HeadCapture(**fields, last=last, gradients=gradients[0][:, None, :, 0])
        weights = tuple(leaf.detach() for leaf in self.leaves)
        return WeightCapture(**fields, weights=weights, gradients=tuple(each[:, None] for each in gradients))

    def _attend(self, i: int, attention: Attention) -> Tensor:
        if self.reads is ClassTokenCapture and i < len(self.blocks):
            first = attention.first_query().detach()
            self.class_token[i] = first.weights()[:, :, 0], first.value
            return attention.output()
        self.attentions[i] = attention.detach()
        if self.reads is WeightCapture:
            weights = attention.weights()
            if not self.leaves:  # the graph starts here
                torch.set_grad_enabled(True)
                weights = weights.detach().requires_grad_()
            self.leaves.append(weights)
            return weights @ attention.value
        output = attention.output()
        if self.reads is HeadCapture and i == len(self.modules) - 1:
            torch.set_grad_enabled(True)
            self.leaves.append(output.detach().requires_grad_())
            return self.leaves[0].clone()  # an in-place op downstream must not touch the leaf
        return output

    def _record_tokens(self, _block: nn.Module, _inputs: object, output: Any) -> None:
        self.last_tokens = self.tower.to_tokens(output)
