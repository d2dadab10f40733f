"""How much a map depends on the wording of its prompt, and whether it depends on the prompt at all."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from clipcam_lightning.cam.explain import explain
from clipcam_lightning.cam.methods import Layers, MethodLike
from clipcam_lightning.cam.model import ClipModel, Tokenizer
from clipcam_lightning.cam.targets import Similarity, TargetLike, target_of
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


@dataclass(frozen=True)
class Sensitivity:
    """One image's map under several wordings of one prompt, and under prompts of things that are not there.

    Attributes:
        prompts: the wordings.
        absent: the prompts of the control.
        maps: raw, one a wording; the absent ones follow in ``absent_maps``.
        similarity: cosine of the image with each wording, -1 to 1.
        absent_similarity: with each absent prompt.
        correlation: mean CC of all pairs of wordings, -1 to 1; NaN if the maps say nothing.
        top_iou: mean top-20 % IoU of all pairs, 0 to 1.
        spread: standard deviation over the wordings, each map divided by its own largest magnitude: 0 where the wording
            changes nothing.
        absent_correlation: mean CC of the wordings' maps with the absent prompts' maps. Near ``correlation`` the map
            does not depend on what is asked for: it shows what the model always looks at.
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


def paraphrases(prompt: str, templates: Sequence[str] = TEMPLATES) -> tuple[str, ...]:
    """What ``prompt`` names in each of ``templates``; one that is worded by a template already is unworded first.

    Raises:
        ConfigError: fewer than two templates, or one without exactly one ``{}``.
    """
    if isinstance(templates, str) or len(set(templates)) < 2 or any(each.count("{}") != 1 for each in templates):
        raise ConfigError(f"templates must be at least two strings with one '{{}}' for the thing (got {templates!r}).")
    if not isinstance(prompt, str) or not prompt.strip():
        raise ConfigError(f"prompt must be a string with something in it (got {prompt!r}).")
    thing = prompt.strip()
    for template in sorted({*templates, *TEMPLATES}, key=len, reverse=True):
        before, after = template.split("{}")
        inside = len(thing) > len(before) + len(after)
        if template != "{}" and inside and thing.startswith(before) and thing.endswith(after):
            thing = thing[len(before) : len(thing) - len(after)]
            break
    return tuple(dict.fromkeys(template.replace("{}", thing) for template in templates))


def sensitivity(
    model: nn.Module | ClipModel,
    image: Float[Tensor, "3 y x"],
    prompt: str,
    *,
    templates: Sequence[str] = TEMPLATES,
    absent: Sequence[str] = ABSENT,
    method: MethodLike = "auto",
    layers: Layers = None,
    target: TargetLike = "similarity",
    tokenizer: Tokenizer | None = None,
) -> Sensitivity:
    """Explain one image under several wordings of a prompt, and under prompts of things that are not in it.

    Drift below the spread between wordings is noise; a map that looks the same for an absent thing explains nothing.

    Args:
        model, method, layers, target, tokenizer: as in :func:`~clipcam_lightning.explain`.
        image: preprocessed as the model expects.
        prompt: what is in the image.
        templates: at least two wordings with one ``{}`` for the thing.
        absent: prompts of things that are not in the image, for the control.

    Raises:
        ConfigError: an argument cannot be used; the message says what can.
    """
    prompts, control = paraphrases(prompt, templates), tuple(absent)
    if isinstance(absent, str) or not control:
        raise ConfigError(f"absent must be at least one prompt, such as ('a trombone',) (got {absent!r}).")
    aim = target_of(target)
    if method == "finercam" or (not isinstance(aim, Similarity) and not len(aim.negatives)):
        raise ConfigError(
            "wordings of one thing must not be set against each other: leave target and method at a similarity, "
            "or give the target negatives=('...',)."
        )
    if image.ndim != 3:
        raise ConfigError(f"image must be one preprocessed image [3, y, x] (got {tuple(image.shape)}).")
    explained = explain(
        model, image[None], [*prompts, *control], method=method, layers=layers, target=target, tokenizer=tokenizer
    )
    maps, similarity = explained.maps[0].cpu(), explained.similarity[0].cpu()
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
