"""Small real CLIPs of the shapes world: an ``open_clip.CLIP`` with a ViT, and one with a ResNet."""

from collections.abc import Sequence
from pathlib import Path

import open_clip
import torch
from jaxtyping import Float, Int, UInt8
from open_clip.model import CLIPTextCfg, CLIPVisionCfg, set_model_preprocess_cfg
from open_clip.transform import PreprocessCfg
from torch import Tensor
from torch.nn import functional as F

from clipcam_lightning.shapes_world.scenes import CAPTIONS, SIZE
from clipcam_lightning.storage.tensorfile import load_tensors

WEIGHTS = Path(__file__).with_name("weights")
FILE_KIND = "shapes world weights"
MEAN = STD = (0.5, 0.5, 0.5)
VISION = {
    "vit": CLIPVisionCfg(layers=3, width=128, head_width=32, patch_size=8, image_size=SIZE),
    # The stride is 32, so the image is enlarged to give the last stage a grid of 5x5 cells.
    "resnet": CLIPVisionCfg(layers=(1, 1, 1, 1), width=12, head_width=64, image_size=160),
}


class WordTokenizer:
    """Tokenizes by words.

    Args:
        texts: their words are the vocabulary; by default the captions of the shapes world.
        context_length: tokens per text, padding included.

    The end token has the highest id, because open_clip finds the end of a text by ``argmax``.
    """

    def __init__(self, texts: Sequence[str] | None = None, *, context_length: int = 12) -> None:
        words = sorted({word for text in texts or CAPTIONS for word in text.lower().split()} | {"and"})
        self.words = ["<pad>", "<start>", "<unknown>", *words, "<end>"]
        self.ids = {word: i for i, word in enumerate(self.words)}
        self.context_length = context_length

    def __call__(self, texts: str | Sequence[str]) -> Int[Tensor, "n l"]:
        """Tokenize one text or several."""
        texts = [texts] if isinstance(texts, str) else texts
        tokens = torch.zeros(len(texts), self.context_length, dtype=torch.long)
        for row, text in zip(tokens, texts, strict=True):
            words = text.lower().split()[: self.context_length - 2]
            ids = [self.ids.get(word, self.ids["<unknown>"]) for word in ("<start>", *words, "<end>")]
            row[: len(ids)] = torch.tensor(ids)
        return tokens

    def decode(self, tokens: Sequence[int]) -> str:
        """Join the words of token ids, special ones included."""
        return " ".join(self.words[int(token)] for token in tokens if int(token))


def build_clip(tower: str = "vit") -> open_clip.CLIP:
    """Build an untrained CLIP of the shapes world: ``"vit"`` (8x8 grid) or ``"resnet"`` (5x5)."""
    vision, tokenizer = VISION[tower], WordTokenizer()
    text = CLIPTextCfg(
        context_length=tokenizer.context_length, vocab_size=len(tokenizer.words), width=64, heads=2, layers=2
    )
    model = open_clip.CLIP(embed_dim=64, vision_cfg=vision, text_cfg=text)
    size = int(vision.image_size)
    cfg = PreprocessCfg(size=(size, size), mean=MEAN, std=STD, interpolation="bilinear", resize_mode="squash")
    set_model_preprocess_cfg(model, vars(cfg))
    return model


def trained_clip(tower: str = "vit") -> open_clip.CLIP:
    """Load a small CLIP whose trained weights are part of the package.

    The weights are the same on every machine; ``python -m clipcam_lightning.shapes_world.pretraining`` wrote them.
    Their file holds float16, the model float32.

    Args:
        tower: ``"vit"`` or ``"resnet"``.

    Returns:
        The model in eval mode. The random state stays as it was.

    Raises:
        SnapshotError: the file of the weights is missing or damaged.
    """
    tensors, _ = load_tensors(WEIGHTS / f"{tower}.safetensors", FILE_KIND)
    with torch.random.fork_rng(devices=[]):  # building the model draws its initial weights
        model = build_clip(tower)
    model.load_state_dict(tensors)
    return model.eval()


def model_input(images: UInt8[Tensor, "n y x 3"], size: int) -> Float[Tensor, "n 3 v u"]:
    """Preprocess a batch of scenes at once; the model's own transform takes single images."""
    pixels = images.permute(0, 3, 1, 2).float() / 127.5 - 1  # mean and std 0.5
    if size == SIZE:
        return pixels
    return F.interpolate(pixels, size=(size, size), mode="bilinear", align_corners=False)
