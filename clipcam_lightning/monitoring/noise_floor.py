"""The noise floor: how far each probe's map moves when nothing changes that matters."""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from clipcam_lightning.analysis.prompt_sensitivity import paraphrases
from clipcam_lightning.cam.methods import Layers, MethodLike
from clipcam_lightning.cam.model import ClipModel
from clipcam_lightning.cam.model_state import evaluation_mode
from clipcam_lightning.cam.targets import TargetLike
from clipcam_lightning.drift import metrics
from clipcam_lightning.monitoring.explainer import explain_in_memory
from clipcam_lightning.probes.probe_set import PreparedProbes
from clipcam_lightning.storage.jpeg import as_jpeg
from clipcam_lightning.training.ranks import Explainer

JPEG_QUALITY, BRIGHTNESS = 75, 0.1


def noise_floor(
    clip: ClipModel,
    prepared: PreparedProbes,
    maps: Float[Tensor, "n h w"],
    explainer: Explainer = explain_in_memory,
    *,
    method: MethodLike = "auto",
    layers: Layers = None,
    target: TargetLike = "similarity",
    batch_size: int | None = None,
) -> Float[Tensor, "n"]:
    """Mean drift of each probe's map when its prompt is worded otherwise and its image is hardly changed.

    The prompts are those of :func:`~clipcam_lightning.analysis.prompt_sensitivity.paraphrases`; a probe that came as
    token ids has none. The images are moved by a pixel, compressed as JPEG, made brighter and darker.

    Args:
        clip: the model that the baseline is of.
        prepared: the probes as it is fed with them.
        maps: of the probes as they are.
        explainer: what explains.
        method, layers, target, batch_size: as the maps were made.

    Returns:
        1 - CC, 0 to 2; NaN for a probe whose maps all say nothing.
    """
    settings = {"method": method, "layers": layers, "target": target, "batch_size": batch_size}
    return noise(clip, prepared, maps, explainer, **settings).nanmean(dim=0)


def noise(
    clip: ClipModel,
    prepared: PreparedProbes,
    maps: Float[Tensor, "n h w"],
    explainer: Explainer = explain_in_memory,
    **settings: Any,
) -> Float[Tensor, "k n"]:
    """Drift of each probe's map under each harmless change; NaN where a probe does not know the change."""
    with torch.no_grad(), evaluation_mode(clip.module):
        texts = prepared.embedded(clip)
    distances = []
    for images in input_changes(prepared.images):
        changed = explainer(clip, images, texts, **settings).maps[:, 0].cpu()
        distances.append(1 - metrics.correlation(maps, changed))
    paraphrased = [
        [other for other in paraphrases(text) if other != text] if isinstance(text, str) else []
        for text in prepared.texts
    ]
    for k in range(max(map(len, paraphrased))):
        rows = [i for i, others in enumerate(paraphrased) if len(others) > k]
        prompts = [[paraphrased[i][k]] for i in rows]
        changed = explainer(clip, prepared.images[rows], prompts, **settings).maps[:, 0].cpu()
        distance = torch.full((len(maps),), torch.nan)
        distance[rows] = 1 - metrics.correlation(maps[rows], changed)
        distances.append(distance)
    return torch.stack(distances)


def input_changes(images: Float[Tensor, "n 3 y x"]) -> Iterator[Float[Tensor, "n 3 y x"]]:
    """The images moved by a pixel right and down, as JPEG, brighter and darker, one after the other.

    How they were normalised need not be known: each image is changed within its own range of values.
    """
    yield F.pad(images, (1, 0, 0, 0), mode="replicate")[..., :-1]
    yield F.pad(images, (0, 0, 1, 0), mode="replicate")[..., :-1, :]
    low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    span = (high - low).clamp_min(torch.finfo(images.dtype).tiny)
    unit = (images - low) / span
    yield torch.stack([_compressed(each) for each in unit]).to(images) * span + low
    for factor in (1 + BRIGHTNESS, 1 - BRIGHTNESS):
        yield (unit * factor).clamp(0, 1) * span + low


def _compressed(image: Float[Tensor, "3 y x"]) -> Float[Tensor, "3 y x"]:
    """What a JPEG leaves of an image with values 0 to 1."""
    pixels = (image.cpu() * 255).round().to(torch.uint8).permute(1, 2, 0)
    file = as_jpeg(Image.fromarray(pixels.numpy()), JPEG_QUALITY)
    return torch.from_numpy(np.array(Image.open(io.BytesIO(file)))).permute(2, 0, 1).float() / 255
