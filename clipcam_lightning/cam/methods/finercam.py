"""Finer-CAM."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from clipcam_lightning.cam.capture import Capture
from clipcam_lightning.cam.methods.gradcam import gradcam
from clipcam_lightning.errors import ConfigError


@dataclass(frozen=True)
class FinerTarget:
    r"""What tells a prompt from the ones most like it.

    .. math:: y_p = \frac{\sum_{q \in N} \pi_q (s_p - \alpha s_q)}{\sum_{q \in N} \pi_q}

    with ``N`` the prompts whose similarity is closest to that of ``p``, and :math:`\pi` the softmax over all.

    Attributes:
        alpha: how strongly the others are subtracted.
        compared: how many others.
    """

    alpha: float = 1.0
    compared: int = 3
    name: str = "finer"
    negatives: tuple[str, ...] = ()

    def __call__(self, similarity: Float[Tensor, "n q"], prompts: int) -> Float[Tensor, "n p"]:
        """The weighted differences.

        Raises:
            ConfigError: there is nothing to compare with.
        """
        if similarity.shape[1] < 2:
            raise ConfigError(
                "finercam compares each prompt with others: give at least two prompts an image, "
                "or the target Contrast(negatives=('...',))."
            )
        shares = similarity.softmax(dim=1)
        columns = []
        for p in range(prompts):
            own = similarity[:, p : p + 1]
            distance = (similarity.detach() - own.detach()).abs()
            distance[:, p] = torch.inf
            others = distance.argsort(dim=1)[:, : min(self.compared, similarity.shape[1] - 1)]
            weights = shares.gather(1, others)
            differences = own - self.alpha * similarity.gather(1, others)
            columns.append((weights * differences).sum(dim=1) / weights.sum(dim=1))
        return torch.stack(columns, dim=1)


def finercam(capture: Capture) -> Float[Tensor, "b p h w"]:
    """Grad-CAM of :class:`FinerTarget`: where an image differs from the prompts it is nearly as similar to.

    It needs other prompts to compare with: several an image, or the negatives of a ``Contrast``.

    Fits every tower.

    Source: Zhang et al. 2025, Finer-CAM, eqs. 4-6, https://arxiv.org/abs/2501.11309
    """
    return gradcam(capture)
