"""Where the model prefers another prompt: what it saw in the one, and what in the other."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from clipcam_lightning.cam.explain import explain
from clipcam_lightning.cam.methods import Layers, MethodLike
from clipcam_lightning.cam.model import ClipModel, Tokenizer, find_clip
from clipcam_lightning.cam.model_state import evaluation_mode
from clipcam_lightning.cam.targets import TargetLike
from clipcam_lightning.errors import ConfigError
from clipcam_lightning.probes.probe_set import ProbeSet

BATCH_SIZE = 32


@dataclass(frozen=True)
class Confusion:
    """A probe whose own prompt is not the one its image resembles most.

    Attributes:
        index: of the probe in its set.
        name: of the probe.
        prompt: its own.
        preferred: the candidate that scores best.
        similarity: cosine with its own prompt, -1 to 1.
        preferred_similarity: with the preferred one; larger.
        map: raw, of its own prompt.
        preferred_map: raw, of the preferred one.
    """

    index: int
    name: str
    prompt: str
    preferred: str
    similarity: float
    preferred_similarity: float
    map: Float[Tensor, "h w"]
    preferred_map: Float[Tensor, "h w"]


def confusions(
    model: nn.Module | ClipModel,
    probes: ProbeSet,
    candidates: Sequence[str],
    *,
    method: MethodLike = "auto",
    layers: Layers = None,
    target: TargetLike = "similarity",
    tokenizer: Tokenizer | None = None,
    batch_size: int | None = None,
) -> list[Confusion]:
    """Find the probes that the model would caption with another of ``candidates``, and explain both prompts.

    Only the confused ones are explained; the others cost a forward. The largest error comes first.

    Args:
        model, method, layers, target, tokenizer, batch_size: as in :func:`~clipcam_lightning.explain`.
        probes: pictures with their true prompts.
        candidates: what else they could be called; a probe's own prompt may be among them.

    Raises:
        ConfigError: ``candidates`` is empty or no list of prompts.
        ModelError, ProbeError: there is no CLIP, or the probes do not fit it.
    """
    if isinstance(candidates, str) or not candidates or not all(isinstance(c, str) and c.strip() for c in candidates):
        raise ConfigError(f"candidates must be a list of prompts, such as ['a fox', 'an owl'] (got {candidates!r}).")
    clip = model if isinstance(model, ClipModel) else find_clip(model)
    clip = replace(clip, tokenizer=tokenizer) if tokenizer else clip
    prepared = probes.prepared(clip)
    with evaluation_mode(clip.module), clip.tower.native(), torch.no_grad():
        own = prepared.embedded(clip)[:, 0]
        others = clip.embed_texts(candidates)
        images = torch.cat([clip.embed_images(batch) for batch in prepared.images.split(batch_size or BATCH_SIZE)])
    same = torch.tensor([[prompt == candidate for candidate in candidates] for prompt in probes.prompts])
    mine = (images * own).sum(dim=1)
    # Its own prompt among the candidates is no other prompt, whatever the rounding of its second embedding.
    best = (images @ others.T).masked_fill(same.to(images.device), -torch.inf).max(dim=1)
    confused = (best.values > mine).nonzero()[:, 0].tolist()
    if not confused:
        return []
    texts = torch.stack([own[confused], F.normalize(others[best.indices[confused]], dim=-1)], dim=1)
    explained = explain(
        clip,
        prepared.images[confused],
        texts,
        method=method,
        layers=layers,
        target=target,
        batch_size=batch_size,
    )
    found = [
        Confusion(
            index=i,
            name=probes.names[i],
            prompt=probes.prompts[i],
            preferred=candidates[int(best.indices[i])],
            similarity=float(mine[i]),
            preferred_similarity=float(best.values[i]),
            map=pair[0].cpu(),
            preferred_map=pair[1].cpu(),
        )
        for i, pair in zip(confused, explained.maps, strict=True)
    ]
    return sorted(found, key=lambda confusion: confusion.similarity - confusion.preferred_similarity)
