"""Find the CLIP in any module: by its methods, by functions of the user, or by conventional names of two encoders."""

import reprlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn import functional as F

from clipcam_lightning.cam.adapters import Tokenizer, find_adapter
from clipcam_lightning.cam.arguments import suggest
from clipcam_lightning.cam.encoders import EncodeImage, EncodeText
from clipcam_lightning.cam.model import ClipModel
from clipcam_lightning.cam.naming import find_conventional_encoders
from clipcam_lightning.cam.nearby import choose_tokenizer, find_image_processor, make_default_tokenizer
from clipcam_lightning.cam.pairs import make_tokens, measure_widths, read_pair, takes_ids
from clipcam_lightning.cam.preprocessing import Preprocessing
from clipcam_lightning.cam.towers import find_tower
from clipcam_lightning.cam.towers.tower import Tower
from clipcam_lightning.cam.tracing import Encode, depends_on, embed_twice
from clipcam_lightning.cam.verification import verify_head
from clipcam_lightning.errors import ConfigError, ModelError, describe_error

__all__ = ["ModelSpec", "find_clip"]

COPIES = ("teacher", "ema", "momentum", "reference", "frozen")  # names of models that follow the trained one
ADVICE = (
    "Say how it embeds, with functions of the module: encode_image=lambda module, images: ... and encode_text=lambda "
    "module, texts: ..., each of which returns [n, d]."
)
SAME = 1e-4  # distance of unit embeddings below which two functions embed alike


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Where the CLIP is in a module, and how it is read.

    Attributes:
        clip: dotted name of the CLIP below the module, or of a module around it that has ``encode_image`` and
            ``encode_text`` of its own; needed only if there are several.
        tokenizer: a function from strings to token ids, or a transformers tokenizer or processor. By default the
            attribute ``tokenizer`` or ``processor`` of the CLIP or of a module around it, unless it is for another
            vocabulary; else open_clip's own where the vocabulary is CLIP's.
        towers: image towers of your own, tried before the package's.
        encode_image: for a module without such a method: a function of the module (or of the one that ``clip`` names)
            and model input ``[n, 3, y, x]`` that returns embeddings ``[n, d]``, or the name of a method.
        encode_text: the same for texts: token ids ``[n, l]``, the mapping of a transformers tokenizer, or where there
            is no tokenizer a list of strings.

    Raises:
        ConfigError: ``tokenizer`` is no function, ``towers`` is no list of classes, or one of the encode functions is
            neither function nor name.

    Example:
        >>> from clipcam_lightning.shapes_world import WordTokenizer, trained_clip
        >>> ModelSpec(tokenizer=WordTokenizer()).find(trained_clip("vit")).tokenize(["a red circle"]).shape
        torch.Size([1, 12])
    """

    clip: str | None = None
    tokenizer: Tokenizer | None = None
    towers: Sequence[type[Tower]] = ()
    encode_image: EncodeImage | None = None
    encode_text: EncodeText | None = None

    def __post_init__(self) -> None:
        _check_reading(self)

    def find(self, model: nn.Module | ClipModel) -> ClipModel:
        """Find the CLIP in a module, as :func:`find_clip` does.

        Raises:
            ModelError: none found, several found, or nothing under ``clip``.
            TowerError: found, but its image tower is unknown and cannot be traced.
            ConfigError: an encode function does not return embeddings.
        """
        try:
            return _find(model, self)
        except ConfigError as error:
            if self.encode_image is not None or self.encode_text is not None:
                raise
            raise ModelError(f"{error} {ADVICE}") from error


def find_clip(
    module: nn.Module | ClipModel,
    clip: str | None = None,
    tokenizer: Tokenizer | None = None,
    towers: Sequence[type[Tower]] = (),
    encode_image: EncodeImage | None = None,
    encode_text: EncodeText | None = None,
) -> ClipModel:
    """Find the CLIP inside a module, whatever its name and wrappers.

    A CLIP is a submodule with ``encode_image`` and ``encode_text``, or with ``get_image_features`` and
    ``get_text_features``. Of nested ones the innermost is meant, unless a module around it has such methods of its own
    that embed images or texts differently, as with an adapter or a projection after the CLIP: then the outer one is
    meant. Of several the one that is trained is meant, and a copy that follows another model (``teacher``, ``ema``,
    ...) gives way to that model.

    A module without such methods may hold two encoders under conventional names (``image_encoder`` and
    ``text_encoder`` with ``image_projection`` and ``text_projection``, for example), or ``encode_image`` and
    ``encode_text`` say how it embeds.

    Args:
        module: a LightningModule, a CLIP, or any wrapper of one. A :class:`ClipModel` is returned, with ``tokenizer``
            if that is given.
        clip, tokenizer, towers, encode_image, encode_text: as in :class:`ModelSpec`.

    Returns:
        The CLIP with its tower, tokenizer and preprocessing.

    Raises:
        ModelError: none found, several found (they are listed), or nothing under ``clip``.
        TowerError: found, but its image tower is unknown and cannot be traced.
        ConfigError: an argument cannot be used, or an encode function does not return embeddings.

    Example:
        >>> from clipcam_lightning.shapes_world import trained_clip
        >>> find_clip(trained_clip("resnet")).preprocessing.size
        (160, 160)
    """
    spec = ModelSpec(clip=clip, tokenizer=tokenizer, towers=towers, encode_image=encode_image, encode_text=encode_text)
    return spec.find(module)


def _find(module: nn.Module | ClipModel, spec: ModelSpec) -> ClipModel:
    if isinstance(module, ClipModel):
        return replace(module, tokenizer=spec.tokenizer) if spec.tokenizer else module
    if not isinstance(module, nn.Module):
        raise ModelError(
            f"the model must be a torch module that holds a CLIP (got {reprlib.repr(module)}); "
            "open_clip.create_model('ViT-B-32', pretrained=...) makes one."
        )
    if spec.encode_image is not None or spec.encode_text is not None:
        return _find_by_functions(module, spec)
    path = _choose(module, spec.clip)
    if path is None:
        return _find_by_names(module, spec)
    outer, doubt = _find_outer(module, path, spec)
    if outer is not None:
        return _read_outer(module, outer, path, spec)
    part = module.get_submodule(path) if path else module  # a TorchScript program has no get_submodule
    if not _is_of_a_library(part, spec):
        return _read_outer(module, path, path, spec)
    tower = find_tower(part, spec.towers)
    tower.verify = verify_head
    return ClipModel(
        module=part,
        tower=tower,
        tokenizer=spec.tokenizer or choose_tokenizer(module, path, part),
        preprocessing=Preprocessing.of(part, tower.input_size, find_image_processor(module, path)),
        name=path,
        doubt=doubt,
    )


def _check_reading(spec: ModelSpec) -> None:
    if spec.tokenizer is not None and not callable(spec.tokenizer):
        raise ConfigError(
            "tokenizer must be a function from a list of strings to token ids, or a transformers tokenizer (got "
            f"{spec.tokenizer!r}); open_clip.get_tokenizer('ViT-B-32') makes one."
        )
    if isinstance(spec.towers, type) or not all(isinstance(tower, type) for tower in spec.towers):
        raise ConfigError(f"towers must be a list of classes, such as [MyTower] (got {spec.towers!r}).")
    for argument in ("encode_image", "encode_text"):
        function = getattr(spec, argument)
        if function is not None and not callable(function) and not isinstance(function, str):
            raise ConfigError(f"{argument} must be a function or the name of a method (got {function!r}).")


def _choose(module: nn.Module, clip: str | None) -> str | None:
    """Choose among the CLIPs in a module; ``None`` if there is none."""
    found = _candidates(module)
    if clip is not None:
        inside = {path: part for path, part in found.items() if path == clip or path.startswith(f"{clip}.")}
        named = dict(module.named_modules(remove_duplicate=False)).get(clip)
        if named is not None and find_adapter(named) is not None and _has_own_methods(named):
            return clip
        if not inside:
            raise ModelError(
                f"clip={clip!r} names no CLIP in {type(module).__name__}; found: {_listed(found)}."
                f"{suggest(clip, found)}"
            )
        found = inside
    if not found:
        return None
    found = _prefer(found)
    if len(found) > 1:
        if find_adapter(module) is not None and _has_own_methods(module):
            return ""
        raise ModelError(
            f"{len(found)} CLIPs in {type(module).__name__}: {_listed(found)}. Choose one with clip='dotted.name'."
        )
    return next(iter(found))


def _prefer(found: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """Leave out what is not trained, then copies that follow another model, if that leaves anything."""
    found = {path: part for path, part in found.items() if _is_trained(part)} or found
    return {path: part for path, part in found.items() if not _is_copy(path)} or found


def _candidates(module: nn.Module) -> dict[str, nn.Module]:
    """List the innermost submodules that embed both images and texts by dotted name, shared ones once."""
    parts = list(module.named_modules(remove_duplicate=False))  # of a shared one, a metric may be the first owner
    metrics = tuple(f"{path}." for path, part in parts if _is_metric(part))
    paths = {part: path for path, part in reversed(parts) if find_adapter(part) and not path.startswith(metrics)}
    able = {path: part for path, part in parts if paths.get(part) == path}
    return {
        path: clip
        for path, clip in able.items()
        if not any(inner is not clip and inner in set(clip.modules()) for inner in able.values())
    }


def _is_metric(part: nn.Module) -> bool:
    """Whether a module is a metric of torchmetrics: the CLIP in a CLIPScore is not what is trained."""
    return any(kind.__module__.startswith("torchmetrics.") for kind in type(part).__mro__)


def _has_own_methods(module: nn.Module) -> bool:
    """Whether a module embeds by methods of its own, rather than forwarding the calls as a wrapper does."""
    adapter = find_adapter(module)
    return adapter is not None and all(
        getattr(getattr(module, name), "__self__", None) is module for name in adapter.methods
    )


def _is_of_a_library(part: nn.Module, spec: ModelSpec) -> bool:
    """Whether a module has the parts of a CLIP of a library, and not only methods of the same names.

    A LightningModule embeds as its user wrote it, whatever it calls its parts.
    """
    adapter = find_adapter(part)
    if any(kind.__name__ == "LightningModule" for kind in type(part).__mro__):
        return False
    has_parts = hasattr(part, "config" if adapter and adapter.vision == "vision_model" else "visual")
    return has_parts or isinstance(part, torch.jit.ScriptModule) or any(tower.fits(part) for tower in spec.towers)


def _is_trained(part: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in part.parameters())


def _find_outer(module: nn.Module, path: str, spec: ModelSpec) -> tuple[str | None, str]:
    """Find the outermost module around a CLIP that embeds images or texts differently.

    Returns:
        Its dotted name, or ``None`` if there is none; and why there may be one all the same.
    """
    if path in ("", spec.clip):
        return None, ""
    inner, doubt = module.get_submodule(path), ""
    parts = path.split(".")
    for depth in range(len(parts)):
        outer_path = ".".join(parts[:depth])
        if spec.clip is not None and not f"{outer_path}.".startswith(f"{spec.clip}."):
            continue
        outer = module.get_submodule(outer_path)
        if find_adapter(outer) is None or not _has_own_methods(outer):
            continue
        try:
            if _embeds_differently(outer, inner, spec):
                return outer_path, ""
        except Exception as error:  # of any kind: a method of that name may take something else than images
            doubt = (
                f"{type(outer).__name__} has an encode_image of its own, which cannot be called with images alone "
                f"({describe_error(error)}); the CLIP in it is monitored"
            )
    return None, doubt


def _embeds_differently(outer: nn.Module, inner: nn.Module, spec: ModelSpec) -> bool:
    """Whether a module embeds images or texts otherwise than the CLIP in it, or can learn to.

    Raises:
        Exception: the module does not embed images.
    """
    around, own = find_adapter(outer), find_adapter(inner)
    assert around is not None  # both are CLIPs
    assert own is not None
    size = find_tower(inner, spec.towers).input_size
    inside = {id(parameter) for parameter in inner.parameters()}
    outside = [each for each in outer.parameters() if each.requires_grad and id(each) not in inside]

    def differ(encode: Encode, encode_inside: Encode) -> bool:
        first, second = embed_twice(outer, encode, encode_inside, size)
        if first.ndim != 2 or not len(first):
            raise ConfigError(f"it returns {tuple(first.shape)}")
        if first.shape != second.shape:
            return True
        distance = (F.normalize(first, dim=-1) - F.normalize(second, dim=-1)).norm(dim=-1).max()
        return bool(distance > SAME) or depends_on(outer, encode, size, outside)

    if differ(around.encode_image, own.encode_image):
        return True
    try:
        tokens = make_tokens(inner)
        return differ(lambda _images: around.encode_text(tokens), lambda _images: own.encode_text(tokens))
    except Exception:  # of any kind: it may take strings, or numbers of classes
        return False


def _read_outer(module: nn.Module, outer: str, inner: str, spec: ModelSpec) -> ClipModel:
    """Read a module that embeds by methods of its own, with the tokenizer of the CLIP in it."""
    owner = module.get_submodule(outer)
    adapter = find_adapter(owner)
    assert adapter is not None
    found = read_pair(module, outer, *adapter.methods, spec.tokenizer, spec.towers)
    if found.tokenizer is None and inner != outer:
        tokenizer = make_default_tokenizer(module, outer, module.get_submodule(inner))
        return replace(found, tokenizer=tokenizer) if tokenizer and takes_ids(found, tokenizer) else found
    return found


def _find_by_functions(module: nn.Module, spec: ModelSpec) -> ClipModel:
    owner = module
    if spec.clip is not None:
        parts = dict(module.named_modules(remove_duplicate=False))
        if spec.clip not in parts:
            raise ModelError(f"clip={spec.clip!r} names no part of {type(module).__name__}.{suggest(spec.clip, parts)}")
        owner = parts[spec.clip]
    functions = []
    for argument in ("encode_image", "encode_text"):
        function = getattr(spec, argument)
        if function is None:
            if not callable(getattr(owner, argument, None)):
                other = "encode_text" if argument == "encode_image" else "encode_image"
                raise ConfigError(
                    f"{other} is given, but {argument} is not, and {type(owner).__name__} has no such method: "
                    "maps need both."
                )
            function = argument
        functions.append(function)
    found = read_pair(module, spec.clip or "", functions[0], functions[1], spec.tokenizer, spec.towers)
    try:
        widths = measure_widths(found)
    except Exception:  # of any kind: texts may have to be names of classes
        return found
    if widths[0] != widths[1]:
        raise ConfigError(
            f"encode_image and encode_text must return embeddings of one length (got {widths[0]} and {widths[1]} "
            "numbers)."
        )
    return found


def _find_by_names(module: nn.Module, spec: ModelSpec) -> ClipModel:
    """Read two encoders under conventional names.

    Raises:
        ModelError: there are none, or they do not give embeddings of one length.
    """
    owners = {path: owner for path, owner in module.named_modules() if find_conventional_encoders(owner) is not None}
    if spec.clip is not None:
        owners = {path: owner for path, owner in owners.items() if path == spec.clip}
    owners = _prefer(owners)
    if len(owners) > 1:
        raise ModelError(
            f"{len(owners)} pairs of encoders in {type(module).__name__}: {_listed(owners)}. Choose one with "
            "clip='dotted.name'."
        )
    problem = ""
    for path, owner in owners.items():  # one at most
        encoders = find_conventional_encoders(owner)
        assert encoders is not None
        try:
            found = read_pair(module, path, encoders.encode_image, encoders.encode_text, spec.tokenizer, spec.towers)
            widths = measure_widths(found)
            if widths[0] != widths[1]:
                raise ConfigError(f"image embeddings have {widths[0]} numbers, text embeddings {widths[1]}")
        except Exception as error:  # of any kind: the names may mean something else
            problem = f" Its {encoders} could not be used: {describe_error(error)}."
        else:
            unused = ", ".join(encoders.list_unused(owner)[:3])
            doubt = f"{encoders} of {type(owner).__name__} leave out parameters that are trained: {unused}"
            return replace(found, doubt=doubt if unused else "")
    names = ", ".join(name for name, _ in module.named_children()) or "none"
    raise ModelError(
        f"no CLIP in {type(module).__name__}: none of its submodules has both encode_image and encode_text, or "
        f"both get_image_features and get_text_features.{problem} {ADVICE} Its parts are {names}. Without a text "
        "encoder, encode_text may return a row per prompt, such as those of a linear head. Encoders named "
        "image_encoder and text_encoder, with image_projection and text_projection, need no argument. All cases: "
        "https://clipcam-lightning.github.io/clipcam-lightning/guide/modules."
    )


def _is_copy(path: str) -> bool:
    return any(word in part.lower().split("_") for part in path.split(".") for word in COPIES)


def _listed(found: dict[str, nn.Module]) -> str:
    return ", ".join(f"{path or '(itself)'} ({type(clip).__name__})" for path, clip in found.items()) or "none"
