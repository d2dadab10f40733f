"""The noise floor: how far each probe's map moves under changes that should not matter."""

import io
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from clipcam_lightning.analysis.prompt_sensitivity import paraphrases
from clipcam_lightning.cam.model import ClipModel
from clipcam_lightning.cam.model_state import evaluation_mode
from clipcam_lightning.drift import metrics
from clipcam_lightning.monitoring.explainer import Explainer
from clipcam_lightning.probes.prepared import PreparedProbes
from clipcam_lightning.storage.jpeg import encode_jpeg

JPEG_QUALITY, BRIGHTNESS = 75, 0.1
SAMPLE = 8  # probes whose noise floor is measured
PARAPHRASES = 2  # of each prompt: they cost most, where the text tower is as large as that of CLIP


def noise_floor(explainer: Explainer, prepared: PreparedProbes, maps: Float[Tensor, "n h w"]) -> Float[Tensor, "n"]:
    """Measure the mean drift of each probe's map under harmless changes of its prompt and image.

    Of more than 8 probes, 8 are measured, evenly spread over the prompts; the others get the median of these. It takes
    three explanations of a probe, or four where prompts of an image change each other's maps.

    The prompts are the first two of :func:`~clipcam_lightning.analysis.prompt_sensitivity.paraphrases` other than the
    probe's own; a probe that came as token ids has none. The images are moved by a pixel, and made brighter and
    compressed as JPEG.

    Args:
        explainer: the model and the settings that the maps were made with.
        prepared: the probes as the model's input.
        maps: of the unchanged probes.

    Returns:
        1 - CC, 0 to 2; NaN for a probe whose maps are all constant or not finite.
    """
    by_prompt = sorted(range(len(maps)), key=lambda i: text if isinstance(text := prepared.texts[i], str) else "")
    chosen = np.unique(np.linspace(0, len(maps) - 1, SAMPLE).round().astype(int))
    rows = sorted(by_prompt[i] for i in chosen)
    measured = harmless_drifts(explainer, prepared.select(rows), maps[rows]).nanmean(dim=0)
    floor = measured.nanquantile(0.5).repeat(len(maps))
    floor[rows] = measured
    return floor


def harmless_drifts(
    explainer: Explainer, prepared: PreparedProbes, maps: Float[Tensor, "n h w"]
) -> Float[Tensor, "k n"]:
    """Measure the drift of each probe's map under each of ``k`` harmless changes.

    Args:
        explainer, prepared, maps: as in :func:`noise_floor`.

    Returns:
        1 - CC, 0 to 2; NaN where a change does not apply to a probe, or a map is constant or not finite.
    """
    with evaluation_mode(explainer.clip.module), torch.no_grad():
        texts = prepared.embed_texts(explainer.clip)
    drifts = []
    for images in changed_images(prepared.images[:]):
        changed = explainer(images, texts).maps[:, 0].cpu()
        drifts.append(1 - metrics.correlation(maps, changed))
    return torch.stack([*drifts, *_paraphrased_drifts(explainer, prepared, maps)])


def _paraphrased_drifts(
    explainer: Explainer, prepared: PreparedProbes, maps: Float[Tensor, "n h w"]
) -> Float[Tensor, "k n"]:
    """Measure the drift under each paraphrase. All paraphrases of an image share a pass where the method allows it."""
    others = _embed_other_prompts(explainer.clip, prepared.texts)
    count = max(map(len, others))
    drifts = torch.full((count, len(maps)), torch.nan, dtype=maps.dtype, device="cpu")
    rows = [i for i, prompts in enumerate(others) if prompts]
    if not rows:
        return drifts
    # A probe with fewer paraphrases than others has its first one again in the remaining places.
    texts = torch.stack([torch.stack(others[i] + others[i][:1] * (count - len(others[i]))) for i in rows])
    together = 1 if explainer.settings.compares_prompts(explainer.clip.tower) else count
    images = prepared.images[rows]
    changed = torch.cat([explainer(images, each).maps.cpu() for each in texts.split(together, dim=1)], dim=1)
    for k in range(count):
        drift = 1 - metrics.correlation(maps[rows], changed[:, k])
        is_own = torch.tensor([k < len(others[i]) for i in rows], device="cpu")
        drifts[k, rows] = drift.where(is_own, torch.nan)
    return drifts


def changed_images(images: Float[Tensor, "n 3 y x"]) -> Iterator[Float[Tensor, "n 3 y x"]]:
    """Yield the images moved by a pixel to the right and down, and made brighter and compressed as JPEG.

    Each image is changed within its own range of values, so the normalisation need not be known.
    """
    yield F.pad(images, (1, 0, 1, 0), mode="replicate")[..., :-1, :-1]
    low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    span = (high - low).clamp_min(torch.finfo(images.dtype).tiny)
    brighter = ((1 + BRIGHTNESS) * (images - low) / span).clamp_max(1)
    yield torch.stack([_compressed(each) for each in brighter]).to(images) * span + low


def _embed_other_prompts(clip: ClipModel, texts: Sequence[object]) -> list[list[Float[Tensor, "d"]]]:
    """Embed the paraphrases of each prompt; tokens have none, nor a prompt that must be the name of a class."""
    others = [
        [each for each in paraphrases(text) if each != text][:PARAPHRASES] if isinstance(text, str) else []
        for text in texts
    ]
    prompts = list(dict.fromkeys(other for each in others for other in each))
    if not prompts:
        return [[] for _ in texts]
    try:
        with evaluation_mode(clip.module), torch.no_grad():
            embedded = dict(zip(prompts, clip.embed_texts(prompts), strict=True))
    except Exception:
        if not clip.adapter.takes_strings:
            raise
        return [[] for _ in texts]
    return [[embedded[other] for other in each] for each in others]


def _compressed(image: Float[Tensor, "3 y x"]) -> Float[Tensor, "3 y x"]:
    """Compress an image of values 0 to 1 as JPEG and decode it."""
    pixels = (image.cpu() * 255).round().to(torch.uint8).permute(1, 2, 0)
    file = encode_jpeg(Image.fromarray(pixels.numpy()), JPEG_QUALITY)
    return torch.from_numpy(np.array(Image.open(io.BytesIO(file)))).permute(2, 0, 1).float() / 255
