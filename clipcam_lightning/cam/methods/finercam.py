"""Finer-CAM."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from clipcam_lightning.cam.capture import Capture
from clipcam_lightning.cam.methods.gradcam import gradcam
from clipcam_lightning.cam.targets import Target
from clipcam_lightning.errors import ConfigError


@dataclass(frozen=True)
class FinerTarget(Target):
    r"""The difference between the cosine with a prompt and those with the most similar prompts.

    .. math:: y_p = \frac{\sum_{q \in N} \pi_q (s_p - \alpha s_q)}{\sum_{q \in N} \pi_q}

    with ``s`` the cosines, ``N`` the prompts whose cosine is closest to that of ``p``, and :math:`\pi` the softmax over
    all prompts.

    Attributes:
        alpha: factor of the other prompts' cosines.
        compared: number of other prompts in ``N``.
    """

    alpha: float = 1.0
    compared: int = 3

    @property
    def name(self) -> str:
        """``finer``."""
        return "finer"

    def __call__(self, similarity: Float[Tensor, "n q"], prompts: int) -> Float[Tensor, "n p"]:
        """Compute the weighted differences.

        Args:
            similarity: cosines of each image with the mapped prompts, then with the negatives.
            prompts: number of mapped prompts, ``p``.

        Returns:
            Differences of cosines.

        Raises:
            ConfigError: there are neither negatives nor other prompts.
        """
        if similarity.shape[1] < 2:
            raise ConfigError(
                "finercam compares each prompt with others: give at least two prompts per image, "
                "or the target Contrast(negatives=['...'])."
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
    """Apply Grad-CAM to :class:`FinerTarget`, to map what distinguishes a prompt from the most similar prompts.

    It needs other prompts to compare with: several per image, or the negatives of a ``Contrast``. The softmax is that
    of the cosines by default (``score_scale``); on small CLIPs logits, as in the authors' code, were no better.

    Fits every tower.

    Source: Zhang et al. 2025, Finer-CAM, eqs. 4-6, https://arxiv.org/abs/2501.11309
    """
    return gradcam(capture)
