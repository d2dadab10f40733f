"""How a CLIP is spoken to: open_clip's way, which OpenAI's layout shares, or that of transformers."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

Tokens: TypeAlias = Int[Tensor, "n l"] | Mapping[str, Int[Tensor, "n l"]]
"""Token ids; or these as ``input_ids`` beside ``attention_mask`` and what else a transformers tokenizer makes."""

Tokenizer: TypeAlias = Callable[..., Any]
"""A function from a list of strings to :data:`Tokens`, or a tokenizer or processor of transformers."""


class Adapter(ABC):
    """The names that a library gives to what every CLIP has.

    Attributes:
        methods: what embeds images, and what embeds texts.
        vision: the submodule with the image tower.
        fills: whether every text is padded to the model's full length, or only to that of the longest.
    """

    methods: ClassVar[tuple[str, str]]
    vision: ClassVar[str]
    fills: bool

    def __init__(self, clip: nn.Module) -> None:
        self.clip: Any = clip

    @classmethod
    def spoken_by(cls, module: nn.Module) -> bool:
        """Whether ``module`` can embed both images and texts in this way."""
        return all(callable(getattr(module, method, None)) for method in cls.methods)

    @property
    @abstractmethod
    def vocabulary(self) -> int | None:
        """How many token ids there are, where the model says so."""

    @property
    @abstractmethod
    def context_length(self) -> int | None:
        """The most tokens of a text, where the model says so."""

    @abstractmethod
    def text_features(self, tokens: Tokens) -> Float[Tensor, "n d"]:
        """Text embeddings of any length."""

    def tokenized(self, tokenizer: Tokenizer, prompts: list[str]) -> Tokens:
        """What ``tokenizer`` makes of ``prompts``; a transformers one is told how long texts are, and cuts them off."""
        maker: Any = tokenizer
        if hasattr(maker, "image_processor"):
            maker = maker.tokenizer  # a processor would take the prompts for images
        if hasattr(maker, "model_max_length"):
            length = self.context_length and min(self.context_length, maker.model_max_length)
            padding = "max_length" if self.fills else True
            made = maker(prompts, padding=padding, truncation=True, max_length=length, return_tensors="pt")
        else:
            made = maker(prompts)
        if isinstance(made, Mapping):
            return {name: torch.as_tensor(values) for name, values in made.items()}
        return torch.as_tensor(made)


class OpenClipAdapter(Adapter):
    """``encode_image`` and ``encode_text``, of open_clip and of OpenAI's ``clip``."""

    methods = ("encode_image", "encode_text")
    vision = "visual"

    def __init__(self, clip: nn.Module) -> None:
        super().__init__(clip)
        self.text: Any = getattr(clip, "text", clip)
        self.fills = self.context_length is not None

    @property
    def vocabulary(self) -> int | None:
        """Of the text tower, or of the CLIP where that holds the parts of its text tower itself."""
        return getattr(self.text, "vocab_size", None)

    @property
    def context_length(self) -> int | None:
        """Likewise."""
        return getattr(self.text, "context_length", None)

    def text_features(self, tokens: Tokens) -> Float[Tensor, "n d"]:
        """The ids alone: these text towers know their padding by its id, or look at nothing that follows the end."""
        features: Tensor = self.clip.encode_text(tokens["input_ids"] if isinstance(tokens, Mapping) else tokens)
        return features


class TransformersAdapter(Adapter):
    """``get_image_features`` and ``get_text_features``."""

    methods = ("get_image_features", "get_text_features")
    vision = "vision_model"

    def __init__(self, clip: nn.Module) -> None:
        super().__init__(clip)
        # SigLIP reads its embedding from the last token, which in training was padding wherever there was room.
        self.fills = has_sigmoid_loss(clip)

    @property
    def vocabulary(self) -> int | None:
        """As the text configuration says."""
        return getattr(self.clip.config.text_config, "vocab_size", None)

    @property
    def context_length(self) -> int | None:
        """As the text configuration says."""
        return getattr(self.clip.config.text_config, "max_position_embeddings", None)

    def text_features(self, tokens: Tokens) -> Float[Tensor, "n d"]:
        """What of ``tokens`` the model has a use for; a mask that is missing where it matters is made."""
        given = dict(tokens) if isinstance(tokens, Mapping) else {"input_ids": tokens}
        padding = self._padding
        if padding is not None:
            given.setdefault("attention_mask", (given["input_ids"] != padding).long())
        known = inspect.signature(self.clip.get_text_features).parameters
        features = self.clip.get_text_features(**{name: given[name] for name in given if name in known})
        return embedding_in(features)

    @property
    def _padding(self) -> int | None:
        # Not the configuration's pad_token_id: CLIP's is 1, in its vocabulary a quotation mark, and a causal tower
        # needs no mask; SigLIP was trained to look at its padding. BERTs must not, and their embeddings set it apart.
        embeddings = (part for part in self.clip.text_model.modules() if isinstance(part, nn.Embedding))
        return next((part.padding_idx for part in embeddings if part.padding_idx is not None), None)


ADAPTERS: tuple[type[Adapter], ...] = (TransformersAdapter, OpenClipAdapter)


def adapter_of(module: nn.Module) -> Adapter | None:
    """The way in which ``module`` is spoken to; ``None`` if it is no CLIP."""
    return next((adapter(module) for adapter in ADAPTERS if adapter.spoken_by(module)), None)


def has_sigmoid_loss(clip: nn.Module) -> bool:
    """Whether ``clip`` is a SigLIP: the sigmoid loss needs a bias, and the model keeps it."""
    return getattr(clip, "logit_bias", None) is not None


def embedding_in(output: Any) -> Float[Tensor, "n d"]:
    """The embedding in what ``get_*_features`` gives: transformers 4 gives itself, 5 gives it as ``pooler_output``."""
    if isinstance(output, tuple):  # of transformers 5 with return_dict=False
        return output[1]  # type: ignore[no-any-return]
    return output if isinstance(output, Tensor) else output.pooler_output
