"""Conventional names of two encoders and their projections."""

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from torch import Tensor, nn

from clipcam_lightning.cam.encoders import select_embedding

IMAGE_WORDS = ("image", "img", "vision", "visual")
TEXT_WORDS = ("text", "txt", "language", "caption")
ENCODER_WORDS = ("encoder", "model", "tower", "backbone", "branch", "net")
PROJECTION_WORDS = ("projection", "projection_head", "proj", "projector", "project", "head", "fc", "linear", "embed")


@dataclass(frozen=True)
class ConventionalEncoders:
    """Names of the parts of a module that embed images and texts.

    Printed, it is what they do.

    Attributes:
        image, text: names of the encoders.
        image_projection, text_projection: names of what follows them; empty if nothing does.
    """

    image: str
    text: str
    image_projection: str
    text_projection: str

    def encode_image(self, owner: Any, images: Tensor) -> Tensor:
        """Embed images."""
        return _project(owner, self.image_projection, getattr(owner, self.image)(images))

    def encode_text(self, owner: Any, texts: Any) -> Tensor:
        """Embed token ids or the mapping of a tokenizer."""
        encoder = getattr(owner, self.text)
        output = encoder(**_select(encoder, texts)) if isinstance(texts, Mapping) else encoder(texts)
        return _project(owner, self.text_projection, output)

    def list_unused(self, owner: nn.Module) -> list[str]:
        """List trained parameters of the module that belong to neither encoder nor projection."""
        used = (self.image, self.text, self.image_projection, self.text_projection)
        return [
            name
            for name, parameter in owner.named_parameters()
            if parameter.requires_grad and name.split(".")[0] not in used and "logit" not in name and "temp" not in name
        ]

    def __str__(self) -> str:
        parts = ((self.image, self.image_projection), (self.text, self.text_projection))
        return " and ".join(f"{projection}({encoder})" if projection else encoder for encoder, projection in parts)


def find_conventional_encoders(owner: nn.Module) -> ConventionalEncoders | None:
    """Find two encoders among the children of a module by their names; ``None`` if there are none.

    Args:
        owner: such as a LightningModule with ``image_encoder``, ``text_encoder`` and a projection of each.

    Example:
        >>> from torch import nn
        >>> parts = ("image_encoder", "image_projection", "text_encoder", "text_projection")
        >>> print(find_conventional_encoders(nn.ModuleDict({name: nn.Identity() for name in parts})))
        image_projection(image_encoder) and text_projection(text_encoder)
    """
    children = {name for name, _ in owner.named_children()}
    parts = children | {name for name, _ in owner.named_parameters(recurse=False)}
    for kind in (*ENCODER_WORDS, ""):
        images, texts = (
            [name for word in words for name in _combine(word, kind) if name in children]
            for words in (IMAGE_WORDS, TEXT_WORDS)
        )
        if images and texts:
            image_projection, text_projection = (
                next((name for name in _projections(words) if name in parts), "") for words in (IMAGE_WORDS, TEXT_WORDS)
            )
            return ConventionalEncoders(images[0], texts[0], image_projection, text_projection)
    return None


def _combine(word: str, kind: str) -> tuple[str, ...]:
    return (f"{word}_{kind}", f"{kind}_{word}", f"{word}{kind}") if kind else (word,)


def _projections(words: tuple[str, ...]) -> Iterator[str]:
    return (name for kind, word in product(PROJECTION_WORDS, words) for name in _combine(word, kind))


def _select(encoder: nn.Module, texts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Select what an encoder takes of the output of a tokenizer."""
    parameters = inspect.signature(encoder.forward).parameters
    takes_all = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values())
    return {name: values for name, values in texts.items() if takes_all or name in parameters}


def _project(owner: Any, name: str, output: Any) -> Tensor:
    embedding: Tensor = select_embedding(output)
    if not name:
        return embedding
    projection = getattr(owner, name)
    projected: Tensor = embedding @ projection if isinstance(projection, Tensor) else projection(embedding)
    return projected
