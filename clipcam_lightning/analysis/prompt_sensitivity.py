"""Measure how much a map depends on the phrasing of its prompt, and whether it depends on the prompt at all."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from clipcam_lightning.cam.arguments import require_prompts
from clipcam_lightning.cam.decoding import ImageLike
from clipcam_lightning.cam.encoders import EncodeImage, EncodeText
from clipcam_lightning.cam.explain import explain_clip
from clipcam_lightning.cam.finding import ModelSpec
from clipcam_lightning.cam.fuse import Fusion
from clipcam_lightning.cam.methods import Layers, MethodLike
from clipcam_lightning.cam.model import ClipModel, Tokenizer
from clipcam_lightning.cam.precision import Precision
from clipcam_lightning.cam.representation import short_repr
from clipcam_lightning.cam.settings import MapSettings
from clipcam_lightning.cam.targets import Similarity, TargetLike, target_of
from clipcam_lightning.cam.towers.tower import Tower
from clipcam_lightning.drift import metrics
from clipcam_lightning.errors import ConfigError

TEMPLATES = (
    "{}",
    "a photo of {}",
    "a picture of {}",
    "an image showing {}",
    "a close look at {}",
    "a snapshot of {}",
    "there is {} here",
    "{} in a scene",
)
ABSENT = ("a lighthouse", "a trombone", "an igloo", "a microscope")


@dataclass(frozen=True, eq=False, repr=False)
class Sensitivity:
    """The maps of one image for paraphrases of one prompt, and for prompts of absent things; see :func:`sensitivity`.

    Attributes:
        prompts: the paraphrases.
        absent: the prompts of absent things, as a control.
        maps: raw saliency, one map per paraphrase.
        absent_maps: raw saliency, one map per absent prompt.
        similarity: cosine of the image and each paraphrase, -1 to 1.
        absent_similarity: cosine of the image and each absent prompt, -1 to 1.
        correlation: mean CC of all pairs of paraphrases, -1 to 1; NaN if a map is degenerate.
        top_iou: mean top-20 % IoU of all pairs of paraphrases, 0 to 1.
        spread: standard deviation over the paraphrases, each map divided by its own largest magnitude; 0 where the
            phrasing changes nothing.
        absent_correlation: mean CC between the maps of paraphrases and those of absent prompts, -1 to 1. If it is
            close to ``correlation``, the map does not depend on the prompt.

    Example:
        >>> from clipcam_lightning import sensitivity
        >>> from clipcam_lightning.shapes_world import WordTokenizer, trained_clip
        >>> image = torch.rand(3, 64, 64)
        >>> sensitivity(trained_clip("vit"), image, "a red circle", tokenizer=WordTokenizer()).spread.shape
        torch.Size([8, 8])
    """

    prompts: tuple[str, ...]
    absent: tuple[str, ...]
    maps: Float[Tensor, "k h w"]
    absent_maps: Float[Tensor, "a h w"]
    similarity: Float[Tensor, "k"]
    absent_similarity: Float[Tensor, "a"]
    correlation: float
    top_iou: float
    spread: Float[Tensor, "h w"]
    absent_correlation: float

    __repr__ = short_repr


def paraphrases(prompt: str, templates: Sequence[str] = TEMPLATES) -> tuple[str, ...]:
    """Put the thing that a prompt names into each of several prompt templates.

    Args:
        prompt: a thing, or a sentence made from one of ``templates`` or :data:`TEMPLATES`, from which the thing is
            taken.
        templates: at least two, each with one ``{}`` for the thing.

    Returns:
        One prompt per template, without duplicates.

    Raises:
        ConfigError: there are fewer than two templates, one has not exactly one ``{}``, or the prompt is empty.

    Example:
        >>> paraphrases("a photo of a fox", ("{}", "a photo of {}", "my {}"))
        ('a fox', 'a photo of a fox', 'my a fox')
    """
    listed = () if isinstance(templates, str) or not isinstance(templates, Iterable) else tuple(templates)
    if len(set(listed)) < 2 or not all(isinstance(each, str) and each.count("{}") == 1 for each in listed):
        raise ConfigError(f"templates must be at least two strings with one '{{}}' for the thing (got {templates!r}).")
    if not isinstance(prompt, str) or not prompt.strip():
        raise ConfigError(f"prompt must be a string that is not blank (got {prompt!r}).")
    thing = prompt.strip()
    for template in sorted({*listed, *TEMPLATES}, key=len, reverse=True):
        before, after = template.split("{}")
        inside = len(thing) > len(before) + len(after)
        if template != "{}" and inside and thing.startswith(before) and thing.endswith(after):
            thing = thing[len(before) : len(thing) - len(after)]
            break
    return tuple(dict.fromkeys(template.replace("{}", thing) for template in listed))


def sensitivity(
    model: nn.Module | ClipModel,
    image: ImageLike,
    prompt: str,
    *,
    templates: Sequence[str] = TEMPLATES,
    absent: Sequence[str] = ABSENT,
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
) -> Sensitivity:
    """Explain one image with paraphrases of a prompt, and with prompts of things that are not in the image.

    Drift below the spread between paraphrases is noise. A map that stays the same for an absent thing explains nothing.

    Args:
        model: any module that holds a CLIP, or a :class:`ClipModel`.
        image: a file or its URL, a PIL image or a uint8 RGB array ``[y, x, 3]``; or model input, a float tensor
            ``[3, y, x]``.
        prompt: what is in the image.
        templates: at least two prompt templates, each with one ``{}`` for the thing.
        absent: prompts of things that are not in the image, as a control.
        method, layers, target, score_scale, scales, flip, shift, fuse, batch_size, precision: how maps are made, as in
            :class:`MapSettings`.
        clip, tokenizer, towers, encode_image, encode_text: where the CLIP is and how it is read, as in
            :class:`ModelSpec`.

    Returns:
        The maps, and how alike they are.

    Raises:
        ConfigError: an argument cannot be used; the message says what can.

    Example:
        >>> import torch
        >>> from clipcam_lightning.shapes_world.models import WordTokenizer, build_clip
        >>> clip, image = build_clip("vit"), torch.rand(3, 64, 64)
        >>> result = sensitivity(clip, image, "a red circle", tokenizer=WordTokenizer(), absent=["a blue star"])
        >>> len(result.prompts), result.maps.shape, result.absent_maps.shape
        (8, torch.Size([8, 8, 8]), torch.Size([1, 8, 8]))
    """
    prompts, control = paraphrases(prompt, templates), require_prompts("absent", absent)
    resolved = target_of(target)
    if method == "finercam" or (not isinstance(resolved, Similarity) and not len(resolved.negatives)):
        raise ConfigError(
            "paraphrases of one thing must not be contrasted with each other: leave target and method at a similarity, "
            "or give the target negatives=('...',)."
        )
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
    explanation = explain_clip(found, [image], [*prompts, *control], settings)
    maps, similarity = explanation.maps[0].cpu(), explanation.similarity[0].cpu()
    count = len(prompts)
    own, others = maps[:count], maps[count:]
    first, second = (list(side) for side in zip(*combinations(range(count), 2), strict=True))
    scaled = own / own.abs().amax((1, 2), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    return Sensitivity(
        prompts=prompts,
        absent=control,
        maps=own,
        absent_maps=others,
        similarity=similarity[:count],
        absent_similarity=similarity[count:],
        correlation=float(metrics.correlation(own[first], own[second]).mean()),
        top_iou=float(metrics.top_iou(own[first], own[second]).mean()),
        spread=scaled.std(dim=0, correction=0),
        absent_correlation=float(
            metrics.correlation(own.repeat_interleave(len(control), 0), others.repeat(count, 1, 1)).mean()
        ),
    )
