"""Trace one pass of an image encoder: which modules run, in which order, and what they return."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn

from clipcam_lightning.cam.model_state import evaluation_mode
from clipcam_lightning.cam.precision import find_input_type
from clipcam_lightning.cam.representation import short_repr
from clipcam_lightning.errors import ConfigError, TowerError, describe_error

Encode: TypeAlias = Callable[[Float[Tensor, "n 3 y x"]], Float[Tensor, "n d"]]

COUNT = 2  # images of a trace; a dimension of this length is that of the images
USUAL_SIZES = (224, 256, 384, 336, 299, 64)


@dataclass(frozen=True, eq=False, repr=False)
class Trace:
    """One pass of random images.

    Attributes:
        size: height and width of the images in pixels.
        embeddings: of the images.
        outputs: dotted name of each module that ran, with the tensor that it returned first; in the order in which the
            modules finished, each once.
        read: by the same names, how much the embeddings depend on each number of such a tensor; ``None`` if not at all.
    """

    size: tuple[int, int]
    embeddings: Float[Tensor, "n d"]
    outputs: dict[str, Tensor]
    read: dict[str, Tensor | None]

    __repr__ = short_repr


def trace_encoder(module: nn.Module, encode: Encode) -> Trace:
    """Embed random images of the first size that the encoder takes, and record what its modules return.

    Args:
        module: holds all modules that run.
        encode: embeds model input.

    Raises:
        TowerError: the encoder takes no images of a usual size, or its embeddings have no gradient.
        ConfigError: an encode function of the user does not return embeddings.
    """
    problems = []
    for size in _list_sizes(module):
        try:
            with evaluation_mode(module):
                return _trace(module, encode, size)
        except (ConfigError, TowerError):
            raise
        except Exception as error:  # of any kind: a model has its own way to refuse a size
            problems.append(f"{size[0]}x{size[1]}: {describe_error(error)}")
    raise TowerError(f"{type(module).__name__} could not embed images of any usual size ({problems[0]}).")


def can_embed(module: nn.Module, encode: Encode, size: tuple[int, int]) -> bool:
    """Whether an encoder takes images of ``size`` (height, width)."""
    try:
        with evaluation_mode(module), torch.no_grad():
            encode(_random_images(module, size))
    except Exception:  # of any kind: a model has its own way to refuse a size
        return False
    return True


def embed_twice(module: nn.Module, first: Encode, second: Encode, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Embed the same random images by two functions.

    Raises:
        Exception: of one of the functions.
    """
    with evaluation_mode(module), torch.no_grad():
        images = _random_images(module, size)
        return first(images).float(), second(images).float()


def depends_on(module: nn.Module, encode: Encode, size: tuple[int, int], parameters: Sequence[nn.Parameter]) -> bool:
    """Whether image embeddings depend on any of the parameters, even if it has no effect yet."""
    if not parameters:
        return False
    with evaluation_mode(module), torch.enable_grad():
        embeddings = encode(_random_images(module, size))
        if not embeddings.requires_grad:
            return False
        gradients = torch.autograd.grad(embeddings.sum(), parameters, allow_unused=True)
    return any(gradient is not None for gradient in gradients)


def _trace(module: nn.Module, encode: Encode, size: tuple[int, int]) -> Trace:
    outputs: dict[str, Tensor] = {}
    names = {part: name for name, part in module.named_modules()}

    def record(part: nn.Module, _inputs: object, output: Any) -> None:
        tensor = _find_first_tensor(output)
        if tensor is not None and tensor.is_floating_point():
            outputs.pop(names[part], None)
            outputs[names[part]] = tensor

    with ExitStack() as stack:
        for part in names:
            stack.callback(part.register_forward_hook(record).remove)
        stack.enter_context(torch.enable_grad())
        embeddings = encode(_random_images(module, size).requires_grad_())
        if not embeddings.requires_grad:
            raise TowerError(
                "image embeddings have no gradient, which maps are made of: is the image encoder called under "
                "torch.no_grad(), or its output detached? Leave that out and freeze its parameters instead, with "
                "requires_grad_(False)."
            )
        score = (embeddings.float() * torch.linspace(-1, 1, embeddings.shape[-1], device=embeddings.device)).sum()
        able = [name for name, tensor in outputs.items() if tensor.requires_grad]
        gradients = torch.autograd.grad(score, [outputs[name] for name in able], allow_unused=True)
    read = dict.fromkeys(outputs, None) | dict(zip(able, gradients, strict=True))
    detached = {name: tensor.detach() for name, tensor in outputs.items()}
    return Trace(size, embeddings.detach(), detached, read)


def _random_images(module: nn.Module, size: tuple[int, int]) -> Float[Tensor, "n 3 y x"]:
    device = next(iter(module.parameters()), torch.empty(0)).device
    images = torch.randn(COUNT, 3, *size, generator=torch.Generator().manual_seed(0))
    return images.to(device, find_input_type(module))


def _find_first_tensor(output: Any) -> Tensor | None:
    """The tensor that a module returns, or the first one of a tuple or mapping."""
    if isinstance(output, Tensor):
        return output
    values = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple | list) else ()
    return next((value for value in values if isinstance(value, Tensor)), None)


def _list_sizes(module: nn.Module) -> list[tuple[int, int]]:
    """List the sizes that parts of the module declare, from the outside in, then usual ones."""
    declared = [size for part in module.modules() for size in _declared_sizes(part)]
    return list(dict.fromkeys([*declared, *((side, side) for side in USUAL_SIZES)]))


def _declared_sizes(part: Any) -> Iterator[tuple[int, int]]:
    config, own = getattr(part, "config", None), vars(part)
    values = (
        getattr(getattr(config, "vision_config", None), "image_size", None),
        getattr(config, "image_size", None),
        *(own.get(name) for name in ("image_size", "img_size", "input_resolution")),
        ((own.get("default_cfg") or {}) if isinstance(own.get("default_cfg"), dict) else {}).get("input_size"),
    )
    for value in values:
        sides = tuple(value)[-2:] if isinstance(value, tuple | list) else (value, value)
        if len(sides) == 2 and all(isinstance(side, int) and side > 1 for side in sides):
            yield sides
