"""What is explained in one pass."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from clipcam_lightning.cam.fuse import Fusion
from clipcam_lightning.cam.model import ClipModel
from clipcam_lightning.cam.targets import Target
from clipcam_lightning.errors import ConfigError

Result = tuple[Float[Tensor, "b p h w"], Float[Tensor, "b q"]]
"""Raw maps, and the cosines with all texts."""


@dataclass(frozen=True)
class Pass:
    """A batch of images and what they are asked.

    Attributes:
        clip: the model.
        images: as the model is fed with them.
        texts: unit embeddings: the prompts, then what the target compares them with.
        prompts: how many of ``texts`` are mapped.
        target: scores of similarities.
        layers: dotted names.
        fuse: how maps of several layers are combined.
        batch_size: the most images that a method may send through the model at once.
    """

    clip: ClipModel
    images: Float[Tensor, "b 3 y x"]
    texts: Float[Tensor, "b q e"]
    prompts: int
    target: Target
    layers: tuple[str, ...]
    fuse: Fusion
    batch_size: int

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images."""
        return self.images.shape[-2], self.images.shape[-1]

    def modules(self) -> list[nn.Module]:
        """The layers themselves."""
        return [self.clip.module.get_submodule(name) for name in self.layers]

    def of_layers(self, recorded: dict[nn.Module, Tensor]) -> list[Tensor]:
        """What was recorded of each layer.

        Raises:
            ConfigError: nothing was.
        """
        for name, module in zip(self.layers, self.modules(), strict=True):
            if module not in recorded:
                raise ConfigError(f"the layer {name} does not run when images are embedded.")
        return [recorded[module] for module in self.modules()]

    def similarity(self, features: Float[Tensor, "b e"]) -> Float[Tensor, "b q"]:
        """Cosines of image features of any length with the texts.

        Raises:
            ConfigError: the texts are of another width.
        """
        if features.shape[-1] != self.texts.shape[-1]:
            raise ConfigError(
                f"prompt embeddings must have {features.shape[-1]} numbers, as this model's images have "
                f"(got {self.texts.shape[-1]})."
            )
        return torch.einsum("be,bqe->bq", F.normalize(features, dim=-1), self.texts)

    def scores(self, similarity: Float[Tensor, "b q"]) -> Float[Tensor, "b p"]:
        """What is mapped."""
        return self.target(similarity, self.prompts)

    def directions(self, similarity: Float[Tensor, "b q"]) -> Float[Tensor, "b p e"]:
        """Gradients of the scores with respect to the unit image embedding: mixtures of the texts."""
        with torch.enable_grad():
            similarity = similarity.detach().requires_grad_()
            scores = self.scores(similarity)
            shares = [
                torch.autograd.grad(scores[:, p].sum(), similarity, retain_graph=p + 1 < self.prompts)[0]
                for p in range(self.prompts)
            ]
        return torch.einsum("bpq,bqe->bpe", torch.stack(shares, dim=1), self.texts)
