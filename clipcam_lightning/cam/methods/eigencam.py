"""Eigen-CAM."""

import torch
from jaxtyping import Float
from torch import Tensor

from clipcam_lightning.cam.capture import LayerCapture


def eigencam(capture: LayerCapture) -> Float[Tensor, "b 1 h w"]:
    r"""Project the activations on their first principal component over the cells; no prompt is asked for.

    .. math:: M = \mathrm{relu}(\bar A v_1), \quad \bar A \in \mathbb{R}^{hw \times c} \text{ with centred columns}

    A singular vector has no sign. It is chosen so that the cell of the largest magnitude is positive.

    Fits every tower.

    Source: Muhammad & Yeasin 2020, eq. 3, https://arxiv.org/abs/2008.00299; the sign: Chung et al. 2025, eq. 13,
    https://doi.org/10.3390/app15137562
    """
    projected = first_component(capture.activations)
    extreme = projected.flatten(1).gather(1, projected.flatten(1).abs().argmax(dim=1, keepdim=True))
    return (projected * extreme.sign()[..., None]).relu()[:, None]


def first_component(features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b h w"]:
    """Scores of the cells on the first principal component of their channels; the sign is arbitrary.

    Of the small Gram matrix of the cells and not of the channels': with ``A = U S V`` the scores are ``U S``.
    """
    cells = features.flatten(2).transpose(1, 2).double()
    centered = cells - cells.mean(dim=1, keepdim=True)
    # Not finite: no eigenvector exists, and the map says so in every cell.
    sound = centered.isfinite().all(dim=2).all(dim=1)[:, None, None]
    gram = torch.where(sound, centered @ centered.transpose(1, 2), 0)
    values, vectors = torch.linalg.eigh(gram)  # ascending
    scores = vectors[..., -1] * values[:, -1:].clamp_min(0).sqrt()
    scores = torch.where(sound[..., 0], scores, torch.nan)
    return scores.to(features.dtype).reshape(len(features), *features.shape[-2:])
