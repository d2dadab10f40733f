"""Find the CLIP in any module, and talk to it: tokenise, embed images and texts."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import open_clip
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from clipcam_lightning.cam.preprocessing import Preprocessing
from clipcam_lightning.cam.towers import tower_of
from clipcam_lightning.cam.towers.tower import Tower
from clipcam_lightning.errors import ModelError

Tokenizer = Callable[[list[str]], Int[Tensor, "n l"]]
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
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.module.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What the image tower computes in."""
        return next(self.module.get_submodule("visual").parameters()).dtype

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits of the architecture: names and shapes of the parameters, not their values."""
        shapes = [f"{name}{tuple(value.shape)}" for name, value in self.module.named_parameters()]
        return hashlib.sha256("\n".join(shapes).encode()).hexdigest()[:16]

    def tokenize(self, prompts: Sequence[str]) -> Int[Tensor, "n l"]:
        """Token ids of ``prompts``.

        Raises:
            ModelError: there is no tokenizer.
        """
        if self.tokenizer is None:
            raise ModelError(
                "the CLIP has no tokenizer that could be found; give tokenizer=..., a function from a list of "
                "strings to token ids, or give prompts as token ids or embeddings."
            )
        tokens = self.tokenizer(list(prompts))
        return tokens if isinstance(tokens, Tensor) else torch.as_tensor(tokens)

    def embed_images(
        self, images: Float[Tensor, "n 3 y x"], replaced: dict[str, Tensor] | None = None
    ) -> Float[Tensor, "n d"]:
        """Unit image embeddings, in float32.

        Args:
            images: preprocessed, on any device, in any float type.
            replaced: parameters to use in place of the model's own, by dotted name.
        """
        images = images.to(self.device, self.dtype)
        encoder = _ImageEncoder(self.module)
        if replaced:
            named = {f"clip.{name}": value for name, value in replaced.items()}
            features = torch.func.functional_call(encoder, named, (images,))
        else:
            features = encoder(images)
        return F.normalize(features.float(), dim=-1)

    def embed_tokens(self, tokens: Int[Tensor, "n l"]) -> Float[Tensor, "n d"]:
        """Unit text embeddings of token ids, in float32."""
        features = self.module.encode_text(tokens.to(self.device))  # type: ignore[operator]
        return F.normalize(features.float(), dim=-1)

    def embed_texts(self, prompts: Sequence[str]) -> Float[Tensor, "n d"]:
        """Unit text embeddings, in float32; a prompt that occurs twice is embedded once."""
        row = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
        return self.embed_tokens(self.tokenize(list(row)))[[row[prompt] for prompt in prompts]]


class _ImageEncoder(nn.Module):
    """``encode_image`` as a module, which is what ``functional_call`` takes."""

    def __init__(self, clip: nn.Module) -> None:
        super().__init__()
        self.clip = clip

    def forward(self, images: Float[Tensor, "n 3 y x"]) -> Float[Tensor, "n d"]:
        features: Tensor = self.clip.encode_image(images)  # type: ignore[operator]
        return features


def find_clip(module: nn.Module, name: str | None = None, tokenizer: Tokenizer | None = None) -> ClipModel:
    """Find the CLIP inside ``module`` by what it can do, whatever it is called and however it is wrapped.

    A CLIP is a submodule with ``encode_image`` and ``encode_text``. Of nested ones (a compiled, DDP or PEFT wrapper
    that hands the calls on, a LightningModule that delegates) the innermost is meant. A copy that only follows
    another (``teacher``, ``ema``, ...) gives way to it.

    Args:
        module: a LightningModule, a CLIP, or any wrapper of one.
        name: dotted name below ``module``; needed only if there are several.
        tokenizer: by default the attribute ``tokenizer`` of the CLIP or of a module around it, else open_clip's
            own where the vocabulary is CLIP's.

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
            f"no CLIP in {type(module).__name__}: none of its submodules has both encode_image and encode_text. "
            "Two separate encoders are not supported; wrap them in a module that has both methods."
        )
    if len(found) > 1:
        raise ModelError(
            f"{len(found)} CLIPs in {type(module).__name__}: {_listed(found)}. Choose one with clip='dotted.name'."
        )
    ((path, clip),) = found.items()
    tower = tower_of(clip)
    return ClipModel(
        module=clip,
        tower=tower,
        tokenizer=tokenizer or _tokenizer_near(module, path) or _default_tokenizer(clip),
        preprocessing=Preprocessing.of(clip, tower.input_size),
        name=path,
    )


def _candidates(module: nn.Module) -> dict[str, nn.Module]:
    """Innermost submodules that can embed both images and texts, by dotted name; shared ones once."""
    able = {path: m for path, m in module.named_modules() if _can(m, "encode_image") and _can(m, "encode_text")}
    return {
        path: clip
        for path, clip in able.items()
        if not any(inner is not clip and inner in set(clip.modules()) for inner in able.values())
    }


def _can(module: nn.Module, method: str) -> bool:
    return callable(getattr(module, method, None))


def _is_second_class(path: str) -> bool:
    return any(word in part.lower().split("_") for part in path.split(".") for word in SECOND_CLASS)


def _listed(found: dict[str, nn.Module]) -> str:
    return ", ".join(f"{path or '(itself)'} ({type(clip).__name__})" for path, clip in found.items()) or "none"


def _tokenizer_near(module: nn.Module, path: str) -> Tokenizer | None:
    """The attribute ``tokenizer`` of the CLIP, or of the nearest module around it that has one."""
    parts = path.split(".") if path else []
    for depth in range(len(parts), -1, -1):
        owner: Any = module.get_submodule(".".join(parts[:depth]))
        if _can(owner, "tokenizer") and not isinstance(owner.tokenizer, nn.Module):
            found: Tokenizer = owner.tokenizer
            return found
    return None


def _default_tokenizer(clip: nn.Module) -> Tokenizer | None:
    """CLIP's byte-pair tokenizer, for a model with CLIP's vocabulary."""
    text: Any = getattr(clip, "text", clip)
    if getattr(text, "vocab_size", None) != CLIP_VOCABULARY:
        return None
    tokenizer: Tokenizer = open_clip.SimpleTokenizer(context_length=text.context_length)
    return tokenizer
