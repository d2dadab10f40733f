"""Adapters for the APIs of open_clip, whose method names OpenAI's ``clip`` shares, of transformers, and of a pair."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from clipcam_lightning.cam.encoders import EncoderPair, extract_embedding
from clipcam_lightning.cam.short_texts import leave_out_padding

Tokens: TypeAlias = Int[Tensor, "n l"] | Mapping[str, Int[Tensor, "n l"]]
"""Token ids, or the mapping that a transformers tokenizer returns: ``input_ids``, ``attention_mask``, ..."""

Tokenizer: TypeAlias = Callable[..., Any]
"""A function from a list of strings to :data:`Tokens`, or a tokenizer or processor of transformers."""


class Adapter(ABC):
    """Gives the CLIPs of all libraries one interface.

    Attributes:
        clip: the wrapped model.
        methods: names of the methods that embed images and texts.
        vision: name of the submodule that holds the image tower.
        pads_to_context_length: whether every text is padded to the full context length, or only to the longest text.
        takes_strings: whether texts may be strings where there is no tokenizer.
    """

    methods: ClassVar[tuple[str, str]]
    vision: ClassVar[str]
    pads_to_context_length: bool
    takes_strings: ClassVar[bool] = False

    def __init__(self, clip: nn.Module) -> None:
        self.clip: Any = clip

    @classmethod
    def is_supported_by(cls, module: nn.Module) -> bool:
        """Check whether ``module`` has the methods that embed images and texts."""
        return all(callable(getattr(module, method, None)) for method in cls.methods)

    @property
    @abstractmethod
    def vocabulary_size(self) -> int | None:
        """Number of token ids; ``None`` where the model does not define it."""

    @property
    @abstractmethod
    def context_length(self) -> int | None:
        """Maximum number of tokens per text; ``None`` where the model does not define it."""

    @abstractmethod
    def encode_image(self, images: Float[Tensor, "n 3 y x"]) -> Float[Tensor, "n d"]:
        """Embed images of the model's own size, without scaling the embeddings to unit length."""

    @abstractmethod
    def encode_text(self, tokens: Any) -> Float[Tensor, "n d"]:
        """Embed texts, without scaling the embeddings to unit length."""

    def tokenize(self, tokenizer: Tokenizer, prompts: list[str]) -> Tokens:
        """Tokenize ``prompts`` for this model.

        Args:
            tokenizer: a function, or a tokenizer or processor of transformers. The latter two pad and truncate to the
                model's context length.
            prompts: the texts.

        Returns:
            Token ids, or the tensors that the transformers tokenizer returns.
        """
        text_tokenizer: Any = tokenizer
        if hasattr(text_tokenizer, "image_processor"):
            text_tokenizer = text_tokenizer.tokenizer  # a processor would take the prompts for images
        if hasattr(text_tokenizer, "model_max_length"):
            length = self.context_length and min(self.context_length, text_tokenizer.model_max_length)
            padding = "max_length" if self.pads_to_context_length else True
            tokens = text_tokenizer(prompts, padding=padding, truncation=True, max_length=length, return_tensors="pt")
        else:
            tokens = text_tokenizer(prompts)
        if isinstance(tokens, Mapping):
            return {name: torch.as_tensor(values, device="cpu") for name, values in tokens.items()}
        return torch.as_tensor(tokens, device="cpu")


class OpenClipAdapter(Adapter):
    """``encode_image`` and ``encode_text``, as in open_clip and OpenAI's ``clip``."""

    methods = ("encode_image", "encode_text")
    vision = "visual"

    def __init__(self, clip: nn.Module) -> None:
        super().__init__(clip)
        # Some models have a text tower of their own, others hold its parts themselves.
        self.text: Any = getattr(clip, "text", clip)
        self.pads_to_context_length = self.context_length is not None

    @property
    def vocabulary_size(self) -> int | None:
        """``vocab_size`` of the text tower."""
        return getattr(self.text, "vocab_size", None)

    @property
    def context_length(self) -> int | None:
        """``context_length`` of the text tower."""
        return getattr(self.text, "context_length", None)

    def encode_image(self, images: Float[Tensor, "n 3 y x"]) -> Float[Tensor, "n d"]:
        """Embed images."""
        features: Tensor = self.clip.encode_image(images)
        return features

    def encode_text(self, tokens: Tokens) -> Float[Tensor, "n d"]:
        """Embed texts from the token ids alone.

        No mask is needed: these text towers find padding by its id, or ignore all tokens after the end of the text.
        """
        clip, ids = leave_out_padding(self.clip, tokens["input_ids"] if isinstance(tokens, Mapping) else tokens)
        features: Tensor = clip.encode_text(ids)
        return features


class TransformersAdapter(Adapter):
    """``get_image_features`` and ``get_text_features``, as in transformers."""

    methods = ("get_image_features", "get_text_features")
    vision = "vision_model"

    def __init__(self, clip: nn.Module) -> None:
        super().__init__(clip)
        # SigLIP reads its embedding from the last position, which was padding in training for all but the longest text.
        self.pads_to_context_length = has_sigmoid_loss(clip)

    @property
    def vocabulary_size(self) -> int | None:
        """``vocab_size`` of the text configuration."""
        return getattr(self.clip.config.text_config, "vocab_size", None)

    @property
    def context_length(self) -> int | None:
        """``max_position_embeddings`` of the text configuration, less those that a RoBERTa keeps for padding."""
        length: int | None = getattr(self.clip.config.text_config, "max_position_embeddings", None)
        positions = (
            part for name, part in self.clip.text_model.named_modules() if name.endswith("position_embeddings")
        )
        padding_id = getattr(next(positions, None), "padding_idx", None)  # the positions of a RoBERTa start after it
        return length if length is None or padding_id is None else length - padding_id - 1

    def encode_image(self, images: Float[Tensor, "n 3 y x"]) -> Float[Tensor, "n d"]:
        """Embed images."""
        return _select_first(extract_embedding(self.clip.get_image_features(pixel_values=images)))

    def encode_text(self, tokens: Tokens) -> Float[Tensor, "n d"]:
        """Embed texts from those tensors in ``tokens`` that the model accepts.

        An attention mask is added if it is missing and the text tower needs one to ignore padding.
        """
        tensors = dict(tokens) if isinstance(tokens, Mapping) else {"input_ids": tokens}
        padding_id = self._padding_id
        if padding_id is not None:
            tensors.setdefault("attention_mask", (tensors["input_ids"] != padding_id).long())
        accepted = inspect.signature(self.clip.get_text_features).parameters
        features = self.clip.get_text_features(**{name: tensors[name] for name in tensors if name in accepted})
        return _select_first(extract_embedding(features))

    @property
    def _padding_id(self) -> int | None:
        # Not the configuration's pad_token_id: CLIP's is 1, a quotation mark in its vocabulary, and a causal tower
        # needs no mask; SigLIP was trained to attend to its padding. A BERT must not, and its embedding layer has a
        # padding_idx.
        embeddings = (part for part in self.clip.text_model.modules() if isinstance(part, nn.Embedding))
        return next((part.padding_idx for part in embeddings if part.padding_idx is not None), None)


def _select_first(features: Float[Tensor, "n *t d"]) -> Float[Tensor, "n d"]:
    """Select the first of a sequence, which is what a FLAVA compares."""
    return features[:, 0] if features.ndim == 3 else features


class PairAdapter(Adapter):
    """The encoders of an :class:`EncoderPair`, which define neither a vocabulary nor a context length."""

    methods = ("encode_image", "encode_text")
    vision = "visual"
    pads_to_context_length = False
    takes_strings = True
    vocabulary_size = None
    context_length = None

    @classmethod
    def is_supported_by(cls, module: nn.Module) -> bool:
        """Check whether ``module`` is such a pair."""
        return isinstance(module, EncoderPair)

    def encode_image(self, images: Float[Tensor, "n 3 y x"]) -> Float[Tensor, "n d"]:
        """Embed images."""
        features: Tensor = self.clip.encode_image(images)
        return features

    def encode_text(self, tokens: Any) -> Float[Tensor, "n d"]:
        """Embed texts from all that the tokenizer returned, or from strings."""
        features: Tensor = self.clip.encode_text(tokens)
        return features


ADAPTERS: tuple[type[Adapter], ...] = (PairAdapter, TransformersAdapter, OpenClipAdapter)


def find_adapter(module: nn.Module) -> Adapter | None:
    """Return the adapter for ``module``, or ``None`` if it is not a CLIP."""
    return next((adapter(module) for adapter in ADAPTERS if adapter.is_supported_by(module)), None)


def has_sigmoid_loss(clip: nn.Module) -> bool:
    """Check whether ``clip`` is a SigLIP, by the bias that only the sigmoid loss needs."""
    return getattr(clip, "logit_bias", None) is not None
