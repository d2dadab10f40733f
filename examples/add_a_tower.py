"""Explain your own image encoder: a tower describes its grid, and every CAM method works on it.

The encoder below is in no library. It reads its patches column by column, which the package cannot know; the tower
describes it. The weights are random: nothing is downloaded.

Run it:  python examples/add_a_tower.py
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from clipcam_lightning import Tower, explain, find_clip

SIZE, PATCH = (32, 48), 8


class ColumnEncoder(nn.Module):
    """Patches, column by column, through two blocks; their mean is the embedding."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, kernel_size=PATCH, stride=PATCH)
        self.blocks = nn.Sequential(*(nn.Sequential(nn.Linear(width, width), nn.GELU()) for _ in range(2)))

    def forward(self, images: Float[Tensor, "b 3 y x"]) -> Float[Tensor, "b d"]:
        columns = self.patches(images).transpose(2, 3)  # [b, d, w, h]
        tokens = self.blocks(columns.flatten(2).transpose(1, 2))
        features: Tensor = tokens.mean(dim=1)
        return features


class ColumnClip(nn.Module):
    """A CLIP: a module that embeds images and texts."""

    def __init__(self) -> None:
        super().__init__()
        self.visual = ColumnEncoder()
        self.words = nn.EmbeddingBag(100, 32)

    def encode_image(self, images: Float[Tensor, "b 3 y x"]) -> Float[Tensor, "b d"]:
        features: Tensor = self.visual(images)
        return features

    def encode_text(self, tokens: Tensor) -> Float[Tensor, "b d"]:
        features: Tensor = self.words(tokens)
        return features


class ColumnTower(Tower):
    """The four parts of every tower; for attention methods, derive from ``AttentionTower``."""

    layers = ("visual.blocks.0", "visual.blocks.1")
    default_layer = "visual.blocks.1"
    channel_dim = -1  # of the output of these layers; only Ablation-CAM needs it

    @classmethod
    def fits(cls, clip: nn.Module) -> bool:
        return isinstance(getattr(clip, "visual", None), ColumnEncoder)

    @property
    def input_size(self) -> tuple[int, int]:
        return SIZE

    def to_grid(self, features: Float[Tensor, "b t d"], image_size: tuple[int, int]) -> Float[Tensor, "b d h w"]:
        height, width = (side // PATCH for side in image_size)
        columns: Tensor = features.transpose(1, 2).unflatten(2, (width, height))
        return columns.transpose(2, 3)

    def scaled_size(self, size: tuple[int, int], scale: float) -> tuple[int, int]:
        height, width = (PATCH * max(1, round(side * scale / PATCH)) for side in size)
        return height, width


def main() -> None:
    torch.manual_seed(0)
    model = ColumnClip().eval()
    clip = find_clip(model, towers=[ColumnTower])  # ClipCamCallback takes the same argument

    # Only the bottom left corner is not grey, and the prompt is the difference that the corner makes to the embedding.
    grey = torch.zeros(1, 3, *SIZE)
    image = grey.clone()
    image[..., -PATCH:, :PATCH] = torch.randn(3, PATCH, PATCH)
    with torch.no_grad():
        prompt = F.normalize(model.encode_image(image) - model.encode_image(grey), dim=-1)

    torch.set_printoptions(precision=1, sci_mode=False)
    for method in ("gradcam", "hirescam", "scorecam"):
        explanation = explain(clip, image, prompt, method=method)
        print(method, explanation.normalize()[0, 0], sep="\n")

        row, column = divmod(int(explanation.maps[0, 0].argmax()), SIZE[1] // PATCH)
        assert (row, column) == (3, 0), f"expected the bottom left corner, got row {row} and column {column}"


if __name__ == "__main__":
    main()
