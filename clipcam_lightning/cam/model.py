"""Find the CLIP in any module, tokenize prompts for it, and embed images and texts with it."""

import hashlib
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import open_clip
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from clipcam_lightning.cam.adapters import Adapter, Tokenizer, Tokens, find_adapter
from clipcam_lightning.cam.arguments import suggest
from clipcam_lightning.cam.decoding import Images
from clipcam_lightning.cam.precision import find_input_type
from clipcam_lightning.cam.preprocessing import Preprocessing
from clipcam_lightning.cam.representation import short_repr
from clipcam_lightning.cam.towers import find_tower
from clipcam_lightning.cam.towers.tower import Tower
from clipcam_lightning.errors import ConfigError, ModelError

__all__ = ["ClipModel", "ModelSpec", "Tokenizer", "Tokens", "find_clip"]

CLIP_VOCABULARY = 49408
COPIES = ("teacher", "ema", "momentum", "target", "reference", "frozen")  # names of models that follow the trained one


@dataclass(frozen=True, eq=False, repr=False)
class ClipModel:
    """A CLIP with everything that is needed to explain it.

    Attributes:
        module: the CLIP itself, without any wrapper.
        tower: its image encoder.
        tokenizer: texts to token ids; ``None`` where neither the caller nor the model has one.
        preprocessing: from pixels to model input and back.
        name: dotted name of the CLIP in the module that was searched; empty for that module itself.

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

    __repr__ = short_repr

    @property
    def adapter(self) -> Adapter:
        """The adapter for the API of the CLIP's library."""
        adapter = find_adapter(self.module)
        assert adapter is not None  # find_clip accepts only modules with an adapter
        return adapter

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
        return F.normalize(self.adapter.encode_text(moved).float(), dim=-1)

    def embed_texts(self, prompts: Sequence[str]) -> Float[Tensor, "n d"]:
        """Embed prompts, as unit vectors in float32; a prompt that occurs twice is embedded once.

        Raises:
            ConfigError: a single string instead of a list, or no prompt.
            ModelError: there is no tokenizer.
        """
        if isinstance(prompts, str) or not len(prompts):
            raise ConfigError(f"prompts must be a list of strings, at least one (got {prompts!r}).")
        row = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
        return self.embed_tokens(self.tokenize(list(row)))[[row[prompt] for prompt in prompts]]


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Where the CLIP is in a module, and how it is read.

    Attributes:
        clip: dotted name of the CLIP below the module; needed only if there are several.
        tokenizer: a function from strings to token ids, or a transformers tokenizer or processor. By default the
            attribute ``tokenizer`` or ``processor`` of the CLIP or of a module around it, else open_clip's own where
            the vocabulary is CLIP's.
        towers: image towers of your own, tried before the package's.

    Raises:
        ConfigError: ``tokenizer`` is no function, or ``towers`` is no list of classes.

    Example:
        >>> from clipcam_lightning.shapes_world import WordTokenizer, trained_clip
        >>> ModelSpec(tokenizer=WordTokenizer()).find(trained_clip("vit")).tokenize(["a red circle"]).shape
        torch.Size([1, 12])
    """

    clip: str | None = None
    tokenizer: Tokenizer | None = None
    towers: Sequence[type[Tower]] = ()

    def __post_init__(self) -> None:
        _check_reading(self.tokenizer, self.towers)

    def find(self, model: nn.Module | ClipModel) -> ClipModel:
        """Find the CLIP in a module, as :func:`find_clip` does.

        Raises:
            ModelError: none found, several found, or nothing under ``clip``.
            TowerError: found, but its image tower is unknown.
        """
        return find_clip(model, self.clip, self.tokenizer, self.towers)


def find_clip(
    module: nn.Module | ClipModel,
    clip: str | None = None,
    tokenizer: Tokenizer | None = None,
    towers: Sequence[type[Tower]] = (),
) -> ClipModel:
    """Find the CLIP inside a module by its methods, whatever its name and wrappers.

    A CLIP is a submodule with ``encode_image`` and ``encode_text``, or with ``get_image_features`` and
    ``get_text_features``. Of nested ones (a compiled, DDP or PEFT wrapper that forwards the calls, a LightningModule
    that delegates) the innermost is meant. A copy that follows another model (``teacher``, ``ema``, ...) gives way to
    that model.

    Args:
        module: a LightningModule, a CLIP, or any wrapper of one. A :class:`ClipModel` is returned, with ``tokenizer``
            if that is given.
        clip, tokenizer, towers: as in :class:`ModelSpec`.

    Returns:
        The CLIP with its tower, tokenizer and preprocessing.

    Raises:
        ModelError: none found, several found (they are listed), or nothing under ``clip``.
        TowerError: found, but its image tower is unknown.
        ConfigError: ``tokenizer`` is no function, or ``towers`` is no list of classes.

    Example:
        >>> from clipcam_lightning.shapes_world import trained_clip
        >>> find_clip(trained_clip("resnet")).preprocessing.size
        (160, 160)
    """
    _check_reading(tokenizer, towers)
    if isinstance(module, ClipModel):
        return replace(module, tokenizer=tokenizer) if tokenizer else module
    if not isinstance(module, nn.Module):
        raise ModelError(
            f"the model must be a torch module that holds a CLIP (got {reprlib.repr(module)}); "
            "open_clip.create_model('ViT-B-32', pretrained=...) makes one."
        )
    found = _candidates(module)
    if clip is not None:
        inside = {path: part for path, part in found.items() if path == clip or path.startswith(f"{clip}.")}
        if not inside:
            raise ModelError(
                f"clip={clip!r} names no CLIP in {type(module).__name__}; found: {_listed(found)}."
                f"{suggest(clip, found)}"
            )
        found = inside
    found = {path: part for path, part in found.items() if not _is_copy(path)} or found
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
    ((path, part),) = found.items()
    tower = find_tower(part, towers)
    return ClipModel(
        module=part,
        tower=tower,
        tokenizer=tokenizer or _tokenizer_near(module, path) or _default_tokenizer(part),
        preprocessing=Preprocessing.of(part, tower.input_size, _image_processor_near(module, path)),
        name=path,
    )


def _check_reading(tokenizer: Any, towers: Any) -> None:
    if tokenizer is not None and not callable(tokenizer):
        raise ConfigError(
            "tokenizer must be a function from a list of strings to token ids, or a transformers tokenizer (got "
            f"{tokenizer!r}); open_clip.get_tokenizer('ViT-B-32') makes one."
        )
    if isinstance(towers, type) or not all(isinstance(tower, type) for tower in towers):
        raise ConfigError(f"towers must be a list of classes, such as [MyTower] (got {towers!r}).")


def _candidates(module: nn.Module) -> dict[str, nn.Module]:
    """List the innermost submodules that embed both images and texts by dotted name, shared ones once."""
    able = {path: part for path, part in module.named_modules() if find_adapter(part) is not None}
    return {
        path: clip
        for path, clip in able.items()
        if not any(inner is not clip and inner in set(clip.modules()) for inner in able.values())
    }


def _is_copy(path: str) -> bool:
    return any(word in part.lower().split("_") for part in path.split(".") for word in COPIES)


def _listed(found: dict[str, nn.Module]) -> str:
    return ", ".join(f"{path or '(itself)'} ({type(clip).__name__})" for path, clip in found.items()) or "none"


def _owners(module: nn.Module, path: str) -> Iterator[Any]:
    """Iterate over the CLIP and the modules around it, the nearest first."""
    parts = path.split(".") if path else []
    return (module.get_submodule(".".join(parts[:depth])) for depth in range(len(parts), -1, -1))


def _tokenizer_near(module: nn.Module, path: str) -> Tokenizer | None:
    """Find the attribute ``tokenizer``, or the tokenizer of ``processor``, of the nearest module with one."""
    for owner in _owners(module, path):
        tokenizer, processor = getattr(owner, "tokenizer", None), getattr(owner, "processor", None)
        for found in (tokenizer, getattr(processor, "tokenizer", None)):
            if callable(found) and not isinstance(found, nn.Module):
                nearest: Tokenizer = found
                return nearest
    return None


def _image_processor_near(module: nn.Module, path: str) -> Any:
    """Find the attribute ``image_processor``, or that of ``processor``, of the nearest module with one."""
    for owner in _owners(module, path):
        processor = getattr(owner, "processor", None)
        for found in (getattr(owner, "image_processor", None), getattr(processor, "image_processor", None), processor):
            if hasattr(found, "image_mean"):
                return found
    return None


def _default_tokenizer(clip: nn.Module) -> Tokenizer | None:
    """Make CLIP's byte-pair tokenizer for a model with CLIP's vocabulary."""
    adapter = find_adapter(clip)
    if adapter is None or adapter.vocabulary_size != CLIP_VOCABULARY:
        return None
    tokenizer: Tokenizer = open_clip.SimpleTokenizer(context_length=adapter.context_length)
    return tokenizer
