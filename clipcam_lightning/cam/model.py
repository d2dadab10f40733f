"""Find the CLIP in any module, and talk to it: tokenise, embed images and texts."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import open_clip
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from clipcam_lightning.cam.adapters import Adapter, Tokenizer, Tokens, find_adapter
from clipcam_lightning.cam.preprocessing import Preprocessing
from clipcam_lightning.cam.towers import find_tower
from clipcam_lightning.cam.towers.tower import Tower
from clipcam_lightning.errors import ModelError

__all__ = ["ClipModel", "Tokenizer", "Tokens", "find_clip"]

CLIP_VOCABULARY = 49408
SECOND_CLASS = ("teacher", "ema", "momentum", "target", "reference", "frozen")  # copies that follow the trained one


@dataclass(frozen=True)
class ClipModel:
    """A CLIP that was found, and what is needed to use it.

    Attributes:
        module: the CLIP itself, every wrapper taken off.
        tower: its image encoder.
        tokenizer: texts to token ids; ``None`` where neither the caller nor the model has one.
        preprocessing: from pixels to model input and back.
        name: where it was found; empty for the module itself.
    """

    module: nn.Module
    tower: Tower
    tokenizer: Tokenizer | None
    preprocessing: Preprocessing
    name: str = ""

    @property
    def adapter(self) -> Adapter:
        """How the library of this CLIP embeds texts."""
        adapter = find_adapter(self.module)
        assert adapter is not None  # or it would not have been found
        return adapter

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.module.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What the image tower computes in."""
        return next(self.module.get_submodule(self.adapter.vision).parameters()).dtype

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits of the architecture: names and shapes of the parameters, not their values."""
        shapes = [f"{name}{tuple(value.shape)}" for name, value in self.module.named_parameters()]
        return hashlib.sha256("\n".join(shapes).encode()).hexdigest()[:16]

    def tokenize(self, prompts: Sequence[str]) -> Tokens:
        """Tokens of ``prompts``.

        A transformers tokenizer is told the model's context length: it cuts longer prompts off, and pads to the full
        length where the model is a SigLIP, which reads the last position, and to the longest prompt elsewhere.

        Raises:
            ModelError: there is no tokenizer.
        """
        if self.tokenizer is None:
            raise ModelError(
                "the CLIP has no tokenizer that could be found; give tokenizer=..., a function from a list of "
                "strings to token ids, or give prompts as token ids or embeddings."
            )
        # Half a surrogate pair becomes a question mark: tokenizers of transformers refuse it.
        texts = [prompt.encode("utf-8", "replace").decode("utf-8") for prompt in prompts]
        return self.adapter.tokenize(self.tokenizer, texts)

    def features(self, images: Float[Tensor, "n 3 y x"]) -> Float[Tensor, "n d"]:
        """Image embeddings as the tower gives them, before they are scaled to unit length; in float32.

        Args:
            images: preprocessed, on any device, in any float type.
        """
        return self.tower.encode(images.to(self.device, self.dtype)).float()

    def embed_images(self, images: Float[Tensor, "n 3 y x"]) -> Float[Tensor, "n d"]:
        """Unit image embeddings, in float32."""
        return F.normalize(self.features(images), dim=-1)

    def embed_tokens(self, tokens: Tokens) -> Float[Tensor, "n d"]:
        """Unit text embeddings of token ids, or of what a transformers tokenizer makes of texts; in float32."""
        if isinstance(tokens, Mapping):
            moved: Tokens = {name: values.to(self.device) for name, values in tokens.items()}
        else:
            moved = tokens.to(self.device)
        return F.normalize(self.adapter.encode_text(moved).float(), dim=-1)

    def embed_texts(self, prompts: Sequence[str]) -> Float[Tensor, "n d"]:
        """Unit text embeddings, in float32; a prompt that occurs twice is embedded once."""
        row = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
        return self.embed_tokens(self.tokenize(list(row)))[[row[prompt] for prompt in prompts]]


def find_clip(
    module: nn.Module,
    name: str | None = None,
    tokenizer: Tokenizer | None = None,
    towers: Sequence[type[Tower]] = (),
) -> ClipModel:
    """Find the CLIP inside ``module`` by what it can do, whatever it is called and however it is wrapped.

    A CLIP is a submodule with ``encode_image`` and ``encode_text``, or with ``get_image_features`` and
    ``get_text_features``. Of nested ones (a compiled, DDP or PEFT wrapper that hands the calls on, a LightningModule
    that delegates) the innermost is meant. A copy that only follows another (``teacher``, ``ema``, ...) gives way
    to it.

    Args:
        module: a LightningModule, a CLIP, or any wrapper of one.
        name: dotted name below ``module``; needed only if there are several.
        tokenizer: a function from strings to token ids, or a tokenizer or processor of transformers. By default the
            attribute ``tokenizer`` or ``processor`` of the CLIP or of a module around it, else open_clip's own where
            the vocabulary is CLIP's.
        towers: image towers of your own, tried before the package's.

    Raises:
        ModelError: none found, several found (they are listed), or nothing under ``name``.
        TowerError: found, but its image tower is not known.
    """
    found = _candidates(module)
    if name is not None:
        inside = {path: clip for path, clip in found.items() if path == name or path.startswith(f"{name}.")}
        if not inside:
            raise ModelError(f"clip={name!r} names no CLIP in {type(module).__name__}; found: {_listed(found)}.")
        found = inside
    first_class = {path: clip for path, clip in found.items() if not _is_second_class(path)}
    found = first_class or found
    if not found:
        raise ModelError(
            f"no CLIP in {type(module).__name__}: none of its submodules has both encode_image and encode_text, or "
            "both get_image_features and get_text_features. "
            "Two separate encoders are not supported; wrap them in a module that has both methods."
        )
    if len(found) > 1:
        raise ModelError(
            f"{len(found)} CLIPs in {type(module).__name__}: {_listed(found)}. Choose one with clip='dotted.name'."
        )
    ((path, clip),) = found.items()
    tower = find_tower(clip, towers)
    return ClipModel(
        module=clip,
        tower=tower,
        tokenizer=tokenizer or _tokenizer_near(module, path) or _default_tokenizer(clip),
        preprocessing=Preprocessing.of(clip, tower.input_size, _image_processor_near(module, path)),
        name=path,
    )


def _candidates(module: nn.Module) -> dict[str, nn.Module]:
    """Innermost submodules that can embed both images and texts, by dotted name; shared ones once."""
    able = {path: part for path, part in module.named_modules() if find_adapter(part) is not None}
    return {
        path: clip
        for path, clip in able.items()
        if not any(inner is not clip and inner in set(clip.modules()) for inner in able.values())
    }


def _is_second_class(path: str) -> bool:
    return any(word in part.lower().split("_") for part in path.split(".") for word in SECOND_CLASS)


def _listed(found: dict[str, nn.Module]) -> str:
    return ", ".join(f"{path or '(itself)'} ({type(clip).__name__})" for path, clip in found.items()) or "none"


def _owners(module: nn.Module, path: str) -> Iterator[Any]:
    """The CLIP, and the modules around it, the nearest first."""
    parts = path.split(".") if path else []
    return (module.get_submodule(".".join(parts[:depth])) for depth in range(len(parts), -1, -1))


def _tokenizer_near(module: nn.Module, path: str) -> Tokenizer | None:
    """The attribute ``tokenizer``, or ``processor`` if that has a tokenizer, of the nearest module with one."""
    for owner in _owners(module, path):
        tokenizer, processor = getattr(owner, "tokenizer", None), getattr(owner, "processor", None)
        for found in (tokenizer, getattr(processor, "tokenizer", None)):
            if callable(found) and not isinstance(found, nn.Module):
                nearest: Tokenizer = found
                return nearest
    return None


def _image_processor_near(module: nn.Module, path: str) -> Any:
    """The attribute ``image_processor``, or that of the attribute ``processor``, of the nearest module with one."""
    for owner in _owners(module, path):
        processor = getattr(owner, "processor", None)
        for found in (getattr(owner, "image_processor", None), getattr(processor, "image_processor", None), processor):
            if hasattr(found, "image_mean"):
                return found
    return None


def _default_tokenizer(clip: nn.Module) -> Tokenizer | None:
    """CLIP's byte-pair tokenizer, for a model with CLIP's vocabulary."""
    adapter = find_adapter(clip)
    if adapter is None or adapter.vocabulary_size != CLIP_VOCABULARY:
        return None
    tokenizer: Tokenizer = open_clip.SimpleTokenizer(context_length=adapter.context_length)
    return tokenizer
