"""Find probes for which the model prefers another prompt, and map both prompts."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from clipcam_lightning.cam.arguments import require_prompts
from clipcam_lightning.cam.encoders import EncodeImage, EncodeText
from clipcam_lightning.cam.explain import BATCH_SIZE, explain_clip
from clipcam_lightning.cam.finding import ModelSpec
from clipcam_lightning.cam.fuse import Fusion
from clipcam_lightning.cam.methods import Layers, MethodLike
from clipcam_lightning.cam.model import ClipModel, Tokenizer
from clipcam_lightning.cam.model_state import evaluation_mode
from clipcam_lightning.cam.precision import Precision
from clipcam_lightning.cam.representation import short_repr
from clipcam_lightning.cam.settings import MapSettings
from clipcam_lightning.cam.targets import TargetLike
from clipcam_lightning.cam.towers.tower import Tower
from clipcam_lightning.errors import ModelError, abridge
from clipcam_lightning.probes.probe_set import ProbeSet, ProbesLike

ROUNDING = 1e-5  # distance of two unit embeddings of one prompt in float32


@dataclass(frozen=True, eq=False, repr=False)
class Confusion:
    """A probe whose image is more similar to another prompt than to its own; see :func:`confusions`.

    Attributes:
        index: of the probe in its set.
        name: of the probe.
        prompt: of the probe.
        preferred: the candidate with the highest similarity.
        similarity: cosine of the image and its own prompt, -1 to 1.
        preferred_similarity: cosine of the image and the preferred prompt; larger than ``similarity``.
        map: raw saliency of its own prompt, float32.
        preferred_map: raw saliency of the preferred prompt, float32, on the same grid.

    Example:
        >>> from clipcam_lightning import confusions
        >>> from clipcam_lightning.shapes_world import CAPTIONS, WordTokenizer, draw_scenes, trained_clip
        >>> probes = ProbeSet([(draw_scenes(1).images[0], "a purple star")])
        >>> (confusion,) = confusions(trained_clip("vit"), probes, CAPTIONS, tokenizer=WordTokenizer())
        >>> confusion.prompt, confusion.preferred
        ('a purple star', 'a green star')
    """

    index: int
    name: str
    prompt: str
    preferred: str
    similarity: float
    preferred_similarity: float
    map: Float[Tensor, "h w"]
    preferred_map: Float[Tensor, "h w"]

    __repr__ = short_repr


def confusions(
    model: nn.Module | ClipModel,
    probes: ProbesLike,
    candidates: Sequence[str],
    *,
    method: MethodLike = "auto",
    layers: Layers = None,
    target: TargetLike = "similarity",
    score_scale: float | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    shift: bool = False,
    fuse: Fusion | None = None,
    batch_size: int | None = None,
    precision: Precision = "float32",
    clip: str | None = None,
    tokenizer: Tokenizer | None = None,
    towers: Sequence[type[Tower]] = (),
    encode_image: EncodeImage | None = None,
    encode_text: EncodeText | None = None,
) -> list[Confusion]:
    """Find the probes that the model would caption with another prompt, and explain both prompts.

    Only the confused probes are explained; the others cost one forward each.

    Args:
        model: any module that holds a CLIP, or a :class:`ClipModel`.
        probes: images with their true prompts; as :class:`ProbeSet` takes them.
        candidates: other possible prompts, such as the names of all classes. A probe's own prompt may be among them, in
            any spelling that the model embeds alike, and is never preferred to itself.
        method, layers, target, score_scale, scales, flip, shift, fuse, batch_size, precision: how maps are made, as in
            :class:`MapSettings`.
        clip, tokenizer, towers, encode_image, encode_text: where the CLIP is and how it is read, as in
            :class:`ModelSpec`.

    Returns:
        One :class:`Confusion` per confused probe, the largest difference of similarities first.

    Raises:
        ConfigError: ``candidates`` is empty or not a list of prompts.
        ModelError: ``model`` holds no CLIP, or several; or it embeds an image or a prompt as NaN or infinity.
        ProbeError: the probes do not fit the model.

    Example:
        An untrained model confuses almost everything:

        >>> from clipcam_lightning import Probe, ProbeSet, confusions, find_clip
        >>> from clipcam_lightning.shapes_world.models import WordTokenizer, build_clip
        >>> from clipcam_lightning.shapes_world.scenes import CAPTIONS, draw_scenes
        >>> scenes = draw_scenes(2)
        >>> probes = ProbeSet(Probe(image, prompt) for image, prompt in zip(scenes.images, scenes.captions))
        >>> clip = find_clip(build_clip("vit"), tokenizer=WordTokenizer())
        >>> confused = confusions(clip, probes, CAPTIONS)
        >>> all(each.preferred_similarity > each.similarity for each in confused)
        True
    """
    captions = require_prompts("candidates", candidates)
    settings = MapSettings(
        method=method,
        layers=layers,
        target=target,
        score_scale=score_scale,
        scales=scales,
        flip=flip,
        shift=shift,
        fuse=fuse,
        batch_size=batch_size,
        precision=precision,
    )
    found = ModelSpec(
        clip=clip, tokenizer=tokenizer, towers=towers, encode_image=encode_image, encode_text=encode_text
    ).find(model)
    probe_set = ProbeSet(probes)
    prepared = probe_set.prepare(found)
    with evaluation_mode(found.module), found.tower.native(), torch.no_grad():
        own = prepared.embed_texts(found)[:, 0]
        others = found.embed_texts(captions)
        images = torch.cat([found.embed_images(batch) for batch in prepared.images.split(batch_size or BATCH_SIZE)])
    _require_finite("images", images, probe_set.names)
    _require_finite("probes' prompts", own, probe_set.prompts)
    _require_finite("candidates", others, captions)
    # A probe's own prompt among the candidates, in any spelling, must not be preferred because of a rounding error.
    is_text = torch.tensor([[prompt == caption for caption in captions] for prompt in probe_set.prompts], device="cpu")
    distance = torch.cdist(own, others, compute_mode="donot_use_mm_for_euclid_dist")
    is_own = is_text.to(distance.device) | (distance < ROUNDING + 2 * torch.finfo(found.dtype).eps)
    similarity = (images * own).sum(dim=1)
    best = (images @ others.T).masked_fill(is_own, -torch.inf).max(dim=1)
    confused = (best.values > similarity).nonzero()[:, 0].tolist()
    if not confused:
        return []
    texts = torch.stack([own[confused], F.normalize(others[best.indices[confused]], dim=-1)], dim=1)
    explanation = explain_clip(found, prepared.images[confused], texts, settings)
    unsorted = [
        Confusion(
            index=i,
            name=probe_set[i].name,
            prompt=probe_set[i].prompt,
            preferred=captions[int(best.indices[i])],
            similarity=float(similarity[i]),
            preferred_similarity=float(best.values[i]),
            map=pair[0].cpu(),
            preferred_map=pair[1].cpu(),
        )
        for i, pair in zip(confused, explanation.maps, strict=True)
    ]
    return sorted(unsorted, key=lambda confusion: confusion.similarity - confusion.preferred_similarity)


def _require_finite(noun: str, embeddings: Float[Tensor, "n d"], names: Sequence[str]) -> None:
    """Refuse embeddings that are not finite: their similarities are NaN, and no prompt would be preferred."""
    broken = [
        name for name, is_finite in zip(names, embeddings.isfinite().all(1).tolist(), strict=True) if not is_finite
    ]
    if broken:
        raise ModelError(
            f"{len(broken)} of {len(names)} embeddings of the {noun} are not finite, the first of them that of "
            f"{abridge(broken[0])!r}; look for NaN or infinity in the model's weights."
        )
