"""The inputs of one pass."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from clipcam_lightning.cam.fuse import Fusion
from clipcam_lightning.cam.model import ClipModel
from clipcam_lightning.cam.precision import Precision, autocast_to
from clipcam_lightning.cam.representation import short_repr
from clipcam_lightning.cam.targets import Target
from clipcam_lightning.errors import ConfigError, TowerError

Result = tuple[Float[Tensor, "b p h w"], Float[Tensor, "b e"]]
"""Raw maps, and the embeddings of the unchanged images, of any length."""

UnreadLayers = dict[str, list[Bool[Tensor, ""]]]
"""Per layer, one flag per pass on the device: whether other tokens than patches reach the embedding, but no patch."""


@dataclass(frozen=True, eq=False, repr=False)
class Pass:
    """A batch of images, the texts to compare them with, and what to map.

    Attributes:
        clip: the model.
        images: model input.
        texts: unit embeddings of the mapped prompts, then of those that the target compares them with.
        prompts: number of mapped prompts, the first of ``texts``.
        target: converts cosines to scores.
        layers: dotted names of the layers.
        fuse: how maps of several layers are combined.
        batch_size: maximum number of images that a method may send through the model at once.
        score_scale: factor on the cosines before the target.
        precision: in which the image tower computes.
        unread: receives the flags of layers whose gradients were computed.
    """

    clip: ClipModel
    images: Float[Tensor, "b 3 y x"]
    texts: Float[Tensor, "b q e"]
    prompts: int
    target: Target
    layers: tuple[str, ...]
    fuse: Fusion
    batch_size: int
    score_scale: float = 1.0
    precision: Precision = "float32"
    unread: UnreadLayers = field(default_factory=dict)

    __repr__ = short_repr

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images in pixels."""
        return self.images.shape[-2], self.images.shape[-1]

    @property
    def modules(self) -> list[nn.Module]:
        """The modules that ``layers`` names."""
        return [self.clip.module.get_submodule(name) for name in self.layers]

    def select_outputs(self, recorded: dict[nn.Module, Tensor]) -> list[Tensor]:
        """Return the recorded output of each layer.

        Raises:
            ConfigError: a layer was not recorded.
        """
        for name, module in zip(self.layers, self.modules, strict=True):
            if module not in recorded:
                raise ConfigError(f"the layer {name} does not run when images are embedded; choose another layer.")
        return [recorded[module] for module in self.modules]

    def to_grid(self, output: Tensor) -> Float[Tensor, "b c h w"]:
        """Lay out a layer's output, or its gradient, on its grid, in float32.

        Raises:
            TowerError: the output is no grid of patches, or not of each image.
        """
        tower = self.clip.tower
        grid = tower.to_grid(output, self.size).float()
        if len(grid) != len(self.images):
            raise TowerError(
                f"expected the patches of {len(self.images)} images from the layer, got {tuple(output.shape)}; "
                f"choose one of {', '.join(tower.layers)}."
            )
        return grid

    def embed(self, images: Float[Tensor, "k 3 y x"]) -> Float[Tensor, "k e"]:
        """Embed images in the precision of the pass, without scaling the embeddings to unit length, in float32."""
        with autocast_to(self.precision, images.device):
            return self.clip.features(images)

    def compute_similarity(self, features: Float[Tensor, "b e"]) -> Float[Tensor, "b q"]:
        """Compute the cosines of image embeddings of any length with the texts.

        Raises:
            ConfigError: texts and images have embeddings with different numbers of values.
        """
        self.require_fitting(features)
        return torch.einsum("be,bqe->bq", F.normalize(features, dim=-1), self.texts)

    def require_fitting(self, features: Float[Tensor, "b e"]) -> None:
        """Refuse texts whose embeddings have another number of values than those of the images.

        Raises:
            ConfigError: with both numbers.
        """
        if features.shape[-1] != self.texts.shape[-1]:
            raise ConfigError(
                f"prompt embeddings must have {features.shape[-1]} numbers, as this model's image embeddings have "
                f"(got {self.texts.shape[-1]})."
            )

    def compute_scores(self, similarity: Float[Tensor, "b q"]) -> Float[Tensor, "b p"]:
        """Compute the target scores, which are mapped, from the cosines."""
        return self.target(self.score_scale * similarity, self.prompts)

    def compute_directions(self, similarity: Float[Tensor, "b q"]) -> Float[Tensor, "b p e"]:
        """Compute the gradients of the scores with respect to the unit image embedding, which are mixtures of texts."""
        count = self.prompts
        with torch.enable_grad():
            # A row for each prompt of an image, so that one backward gives the gradients of all scores.
            rows = similarity.detach().repeat_interleave(count, dim=0).requires_grad_()
            scores = self.compute_scores(rows).unflatten(0, (-1, count))
            (shares,) = torch.autograd.grad(scores.diagonal(dim1=1, dim2=2).sum(), rows)
        return torch.einsum("bpq,bqe->bpe", shares.unflatten(0, (-1, count)), self.texts)
