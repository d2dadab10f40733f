"""Two encoders of any module, called as a CLIP is."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any, TypeAlias

from jaxtyping import Float
from torch import Tensor, nn

from clipcam_lightning.cam.arguments import suggest
from clipcam_lightning.errors import ConfigError

EncodeImage: TypeAlias = str | Callable[[Any, Any], Any]
"""A function of a module and images ``[n, 3, y, x]`` to embeddings ``[n, d]``, or the name of a method."""

EncodeText: TypeAlias = str | Callable[..., Any]
"""A function of a module and texts to embeddings ``[n, d]``, or the name of a method of the module.

The texts are token ids ``[n, l]``, the mapping of a transformers tokenizer, or without a tokenizer a list of strings.
"""


class EncoderPair(nn.Module):
    """An image encoder and a text encoder of one module, with the methods of a CLIP.

    The module is registered as ``owner``, so that its modes, parameters and buffers are those of the pair.

    Args:
        owner: the module that holds the encoders.
        encode_image, encode_text: functions, or names of methods.
        visual: the part of ``owner`` that is the image tower, if it is of a known kind.

    Raises:
        ConfigError: a name is not that of a method.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> owner = nn.ModuleDict({"image": nn.Conv2d(3, 8, 16, 16), "text": nn.Embedding(100, 8)})
        >>> pair = EncoderPair(
        ...     owner,
        ...     encode_image=lambda module, images: module["image"](images).mean((2, 3)),
        ...     encode_text=lambda module, tokens: module["text"](tokens).mean(1),
        ... )
        >>> pair.encode_image(torch.rand(2, 3, 64, 64)).shape, pair.encode_text(torch.ones(5, 7).long()).shape
        (torch.Size([2, 8]), torch.Size([5, 8]))
    """

    def __init__(
        self, owner: nn.Module, encode_image: EncodeImage, encode_text: EncodeText, visual: nn.Module | None = None
    ) -> None:
        super().__init__()
        if visual is not None:
            self.visual = visual
        self.owner = owner
        self._functions = encode_image, encode_text
        for argument, function in (("encode_image", encode_image), ("encode_text", encode_text)):
            _find_function(owner, function, argument)

    def __str__(self) -> str:
        function = self._functions[0]
        if isinstance(function, str):
            return f"{function} of {type(self.owner).__name__}"
        encoders = getattr(function, "__self__", None)  # of conventional names, which tell what they do
        return f"{encoders or 'a function'} of {type(self.owner).__name__}"

    def with_visual(self, visual: nn.Module) -> "EncoderPair":
        """Return the same pair with one of its parts as the image tower."""
        return EncoderPair(self.owner, *self._functions, visual=visual)

    def encode_image(self, images: Float[Tensor, "n 3 y x"]) -> Float[Tensor, "n d"]:
        """Embed images.

        Raises:
            ConfigError: the function returns something else than ``n`` embeddings.
        """
        encode = _find_function(self.owner, self._functions[0], "encode_image")
        return _require_embeddings(encode(images), len(images), "encode_image")

    def encode_text(self, texts: Any) -> Float[Tensor, "n d"]:
        """Embed token ids, the mapping of a tokenizer, or strings.

        The values of a mapping go to the parameters of their names, and its token ids to the first parameter if that
        has another name. A function of one parameter gets the whole mapping, or if it does not take that, the ids.

        Raises:
            ConfigError: the function cannot take the texts, or returns something else than ``n`` embeddings.
        """
        encode = _find_function(self.owner, self._functions[1], "encode_text")
        if not isinstance(texts, Mapping):
            return _require_embeddings(encode(texts), len(texts), "encode_text")
        ids, parameters = texts["input_ids"], _list_parameters(encode)
        named = {name: texts[name] for name in parameters if name in texts}
        if "input_ids" in named:
            return _require_embeddings(encode(**named), len(ids), "encode_text")
        if named or len(parameters) > 1:
            return _require_embeddings(encode(ids, **named), len(ids), "encode_text")
        try:
            return _require_embeddings(encode(texts), len(ids), "encode_text")
        except Exception as error:  # of any kind: a function of ids raises whatever a mapping leads to
            try:
                return _require_embeddings(encode(ids), len(ids), "encode_text")
            except Exception:
                raise error from None


def name_of(clip: nn.Module) -> str:
    """Name the class of a CLIP, or of the module that holds a pair of encoders, for messages."""
    return type(clip.owner if isinstance(clip, EncoderPair) else clip).__name__


def extract_embedding(output: Any) -> Tensor:
    """Return the embedding in the output of a transformers model, or a tensor as it is.

    transformers 4 returns the tensor itself, transformers 5 an object with ``pooler_output``, or a tuple if the model
    is configured with ``return_dict=False``.
    """
    if isinstance(output, tuple):
        return output[1]  # type: ignore[no-any-return]
    for name in ("image_embeds", "text_embeds"):
        if isinstance(getattr(output, name, None), Tensor):
            return getattr(output, name)  # type: ignore[no-any-return]
    return output if isinstance(output, Tensor) else output.pooler_output


def _find_function(owner: nn.Module, function: EncodeImage | EncodeText, argument: str) -> Callable[..., Any]:
    """Get what embeds: a function that is bound to the owner."""
    if not isinstance(function, str):
        if not callable(function):
            raise ConfigError(
                f"{argument} must be a function of the module and its inputs, such as {_EXAMPLES[argument]}, or the "
                f"name of a method (got {function!r})."
            )
        return _Bound(function, owner)
    try:
        method = attrgetter(function)(owner)
    except AttributeError:
        method = None
    if not callable(method):
        names = [name for name in dir(type(owner)) if not name.startswith("_")]
        raise ConfigError(f"{argument}={function!r} is no method of {type(owner).__name__}.{suggest(function, names)}")
    found: Callable[..., Any] = method
    return found


_EXAMPLES = {
    "encode_image": "lambda module, images: module.image_encoder(images)",
    "encode_text": "lambda module, tokens: module.text_encoder(tokens)",
}


class _Bound:
    """A function of a module and its inputs, with the module as its first argument."""

    def __init__(self, function: Callable[..., Any], owner: nn.Module) -> None:
        self.function, self.owner = function, owner

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        return self.function(self.owner, *inputs, **named)


def _list_parameters(encode: Callable[..., Any]) -> Sequence[str]:
    """List the names of the parameters that a function takes beside the module."""
    try:
        if isinstance(encode, _Bound):
            return list(inspect.signature(encode.function).parameters)[1:]
        return list(inspect.signature(encode).parameters)
    except (TypeError, ValueError):  # a builtin has no signature
        return []


def select_embedding(output: Any) -> Any:
    """Return the embedding in the output of an encoder: a tensor, or the only one of two dimensions in a tuple.

    Of an output of transformers it is ``image_embeds``, ``text_embeds`` or ``pooler_output``.

    Raises:
        ConfigError: a tuple holds several that it may be.
    """
    if isinstance(output, tuple | list) and not hasattr(output, "pooler_output"):
        flat = [each for each in output if isinstance(each, Tensor) and each.ndim == 2]
        if len(flat) > 1:
            raise ConfigError(
                f"an encoder returns a {type(output).__name__} of {len(flat)} tensors that may be its embeddings; say "
                "which with encode_image=lambda module, images: ... and encode_text=lambda module, texts: ..."
            )
        return flat[0] if flat else output
    try:
        return extract_embedding(output)
    except AttributeError:
        return output


def _require_embeddings(output: Any, count: int, argument: str) -> Float[Tensor, "n d"]:
    embeddings = select_embedding(output)
    if (
        not isinstance(embeddings, Tensor)
        or embeddings.ndim != 2
        or len(embeddings) != count
        or not embeddings.is_floating_point()
    ):
        got = (
            f"{embeddings.dtype} {tuple(embeddings.shape)}" if isinstance(embeddings, Tensor) else type(output).__name__
        )
        raise ConfigError(
            f"{argument} must return one embedding per input, floats [{count}, d] (got {got.removeprefix('torch.')})."
        )
    return embeddings
