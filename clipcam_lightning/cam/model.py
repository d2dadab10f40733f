"""A CLIP with what is needed to explain it: tokenize prompts, and embed images and texts."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from clipcam_lightning.cam.adapters import Adapter, Tokenizer, Tokens, find_adapter
from clipcam_lightning.cam.decoding import Images
from clipcam_lightning.cam.nearby import CLIP_VOCABULARY
from clipcam_lightning.cam.precision import find_input_type
from clipcam_lightning.cam.preprocessing import Preprocessing
from clipcam_lightning.cam.representation import short_repr
from clipcam_lightning.cam.towers.tower import Tower
from clipcam_lightning.errors import ConfigError, ModelError, describe_error

__all__ = ["ClipModel", "Tokenizer", "Tokens"]


@dataclass(frozen=True, eq=False, repr=False)
class ClipModel:
    """A CLIP with everything that is needed to explain it.

    Attributes:
        module: the CLIP itself, without any wrapper; or the two encoders of a module as an ``EncoderPair``.
        tower: its image encoder.
        tokenizer: texts to token ids; ``None`` where neither the caller nor the model has one.
        preprocessing: from pixels to model input and back.
        name: dotted name of the CLIP in the module that was searched; empty for that module itself.
        doubt: why more of the module than this may embed images or texts; empty if nothing speaks for it.

    Example:
        >>> from clipcam_lightning import find_clip
        >>> from clipcam_lightning.shapes_world import WordTokenizer, trained_clip
        >>> clip = find_clip(trained_clip("vit"), tokenizer=WordTokenizer())
        >>> clip.embed_texts(["a red circle", "a blue star"]).shape
        torch.Size([2, 64])
    """

    module: nn.Module
    tower: Tower
    tokenizer: Tokenizer | None
    preprocessing: Preprocessing
    name: str = ""
    doubt: str = ""

    __repr__ = short_repr

    @property
    def adapter(self) -> Adapter:
        """The adapter for the API of the CLIP's library."""
        adapter = find_adapter(self.module)
        assert adapter is not None  # find_clip accepts only modules with an adapter
        return adapter

    @property
    def vocabulary_size(self) -> int | None:
        """Number of token ids; ``None`` where neither the model nor a layer with CLIP's vocabulary defines it."""
        layers = (part for part in self.module.modules() if isinstance(part, nn.Embedding))
        is_clips = any(layer.num_embeddings == CLIP_VOCABULARY for layer in layers)
        return self.adapter.vocabulary_size or (CLIP_VOCABULARY if is_clips else None)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.module.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Type in which the image tower takes pixels."""
        return find_input_type(getattr(self.module, self.adapter.vision, self.module))

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits of the architecture: names and shapes of the parameters, not their values."""
        shapes = [f"{name}{tuple(value.shape)}" for name, value in self.module.named_parameters()]
        return hashlib.sha256("\n".join(shapes).encode()).hexdigest()[:16]

    def tokenize(self, prompts: Sequence[str]) -> Tokens:
        """Tokenize prompts.

        A transformers tokenizer truncates to the model's context length. It pads to the full length for SigLIP, which
        reads the last position, and to the longest prompt for other models.

        Raises:
            ModelError: there is no tokenizer.
        """
        if self.tokenizer is None:
            raise ModelError(
                "the CLIP has no tokenizer that could be found. Give the module an attribute tokenizer, or in Python "
                "tokenizer=..., a function from a list of strings to token ids; or prompts as token ids or embeddings."
            )
        # Half a surrogate pair becomes a question mark: transformers tokenizers refuse it.
        texts = [prompt.encode("utf-8", "replace").decode("utf-8") for prompt in prompts]
        return self.adapter.tokenize(self.tokenizer, texts)

    def features(self, images: Float[Tensor, "n 3 y x"]) -> Float[Tensor, "n d"]:
        """Embed images without scaling the embeddings to unit length, in float32.

        Args:
            images: preprocessed, on any device, in any float type.
        """
        return self.tower.encode(images.to(self.device, self.dtype)).float()

    def embed_images(self, images: Images) -> Float[Tensor, "n d"]:
        """Embed images, as unit vectors in float32.

        Args:
            images: of one size, as :meth:`Preprocessing.batch` takes them.

        Raises:
            ConfigError: an image cannot be used, or model input has several sizes.
        """
        return F.normalize(self.features(self.preprocessing.batch(images)), dim=-1)

    def embed_tokens(self, tokens: Tokens) -> Float[Tensor, "n d"]:
        """Embed token ids, or the output of a transformers tokenizer, as unit vectors in float32."""
        if isinstance(tokens, Mapping):
            moved: Tokens = {name: values.to(self.device) for name, values in tokens.items()}
        else:
            moved = tokens.to(self.device)
        return F.normalize(self.adapter.encode_text(moved).to(self.device).float(), dim=-1)

    def embed_texts(self, prompts: Sequence[str]) -> Float[Tensor, "n d"]:
        """Embed prompts, as unit vectors in float32; a prompt that occurs twice is embedded once.

        Raises:
            ConfigError: a single string instead of a list, or no prompt.
            ModelError: there is no tokenizer, and the text encoder does not take strings.
        """
        if isinstance(prompts, str) or not len(prompts):
            raise ConfigError(f"prompts must be a list of strings, at least one (got {prompts!r}).")
        row = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
        if self.tokenizer is None and self.adapter.takes_strings:
            embedded = F.normalize(self._encode_strings(list(row)).to(self.device).float(), dim=-1)
        else:
            embedded = self.embed_tokens(self.tokenize(list(row)))
        return embedded[[row[prompt] for prompt in prompts]]

    def _encode_strings(self, prompts: list[str]) -> Float[Tensor, "n d"]:
        try:
            return self.adapter.encode_text(prompts)
        except Exception as error:  # of any kind: most text encoders take token ids
            raise ModelError(
                f"encode_text cannot embed strings ({describe_error(error)}); if it takes token ids, give "
                "tokenizer=..., a function from a list of strings to them, or the module an attribute tokenizer."
            ) from error
