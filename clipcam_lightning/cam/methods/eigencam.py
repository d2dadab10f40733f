"""Eigen-CAM."""

import torch
from jaxtyping import Float
from torch import Tensor

from clipcam_lightning.cam.capture import LayerCapture

WITHOUT_FLOAT64 = ("mps",)  # types of devices


def eigencam(capture: LayerCapture) -> Float[Tensor, "b 1 h w"]:
    r"""Project the activations on their first principal component over the cells; the prompts have no influence.

    .. math:: M = \mathrm{relu}(m), \quad m = \bar A v_1, \quad
        \bar A \in \mathbb{R}^{hw \times c} \text{ with centred columns}, \quad \sum_i m_i \lvert m_i \rvert \ge 0

    The sign of a singular vector is arbitrary. It is chosen such that the positive cells have the larger sum of
    squares, so that no single cell decides. As all cells sum to 0, that is usually the side of fewer, larger ones.

    Fits every tower.

    Source: Muhammad & Yeasin 2020, eq. 3, https://arxiv.org/abs/2008.00299; the sign: Bro et al. 2008,
    https://doi.org/10.1002/cem.1122
    """
    projected = project_on_first_component(capture.activations)
    balance = (projected * projected.abs()).sum(dim=(1, 2), keepdim=True)
    return torch.where(balance < 0, -projected, projected).relu()[:, None]


def project_on_first_component(features: Float[Tensor, "b c h w"]) -> Float[Tensor, "b h w"]:
    """Project the cells on the first principal component of their channels; the sign is arbitrary.

    Computed from the Gram matrix of the cells, which is smaller than that of the channels: with ``A = U S V`` the
    projections are ``U S``. That takes float64, which Apple's GPUs do not have; theirs is computed on the CPU.
    """
    cells = features.flatten(2).transpose(1, 2)
    cells = (cells.cpu() if cells.device.type in WITHOUT_FLOAT64 else cells).double()
    centered = cells - cells.mean(dim=1, keepdim=True)
    # A matrix with NaN or infinity has no eigenvectors; the map is then NaN in every cell.
    valid = centered.isfinite().all(dim=2).all(dim=1)[:, None, None]
    gram = torch.where(valid, centered @ centered.transpose(1, 2), 0)
    values, vectors = torch.linalg.eigh(gram)  # ascending
    scores = vectors[..., -1] * values[:, -1:].clamp_min(0).sqrt()
    scores = torch.where(valid[..., 0], scores, torch.nan)
    return scores.to(features).reshape(len(features), *features.shape[-2:])
