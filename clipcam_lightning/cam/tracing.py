"""Trace one pass of an image encoder: which modules run, in which order, and what they return."""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn

from clipcam_lightning.cam.encoders import name_of
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
        ran: dotted name of each module that ran.
        outputs: dotted name of each module that ran and returned one tensor, with that tensor; in the order in which
            the modules finished, each once.
        read: by the same names, how much the embeddings depend on each number of such a tensor; ``None`` for not at
            all.
    """

    size: tuple[int, int]
    ran: frozenset[str]
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
    raise TowerError(f"{name_of(module)} could not embed images of any usual size ({problems[0]}).")


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


def find_moved_tokens(
    module: nn.Module, encode: Encode, trace: Trace, name: str, cell: tuple[int, int], places: Sequence[tuple[int, int]]
) -> list[tuple[int, bool]]:
    """Find which token changes most when a cell of the image changes.

    Args:
        module, encode: as in :func:`trace_encoder`.
        trace: of both.
        name: of a module that returns tokens ``[n, t, d]`` or ``[t, n, d]``, the earlier the better.
        cell: height and width of a cell in pixels.
        places: row and column of the cells.

    Returns:
        The index of the token for each place, and whether it changes more than all others together.
    """
    image, (height, width) = _random_images(module, trace.size)[:1], cell
    found: list[tuple[int, bool]] = []
    outputs: list[Tensor] = []  # of one pass, in which a module may run several times
    handle = module.get_submodule(name).register_forward_hook(
        lambda _module, _inputs, output: outputs.append(output[0] if isinstance(output, tuple) else output)
    )
    try:
        with evaluation_mode(module), torch.no_grad():
            for row, column in places:
                pair = image.repeat(COUNT, 1, 1, 1)
                pair[1, :, row * height : (row + 1) * height, column * width : (column + 1) * width] += 3
                outputs.clear()
                encode(pair)
                before, after = outputs[-1] if len(outputs[-1]) == COUNT else outputs[-1].transpose(0, 1)
                change = (after - before).float().norm(dim=-1)
                found.append((int(change.argmax()), bool(change.max() > change.sum() / 2)))
    finally:
        handle.remove()
    return found


def _trace(module: nn.Module, encode: Encode, size: tuple[int, int]) -> Trace:
    outputs: dict[str, Tensor] = {}
    names, ran = {part: name for name, part in module.named_modules()}, set()

    def record(part: nn.Module, _inputs: object, output: Any) -> None:
        ran.add(names[part])
        tensor = _find_only_tensor(output)
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
        weights = torch.linspace(-1, 1, embeddings.shape[-1], dtype=torch.float32, device=embeddings.device)
        score = (embeddings.float() * weights).sum()
        able = [name for name, tensor in outputs.items() if tensor.requires_grad]
        gradients = torch.autograd.grad(score, [outputs[name] for name in able], allow_unused=True)
    read = dict.fromkeys(outputs, None) | dict(zip(able, gradients, strict=True))
    detached = {name: tensor.detach() for name, tensor in outputs.items()}
    return Trace(size, frozenset(ran), detached, read)


def _random_images(module: nn.Module, size: tuple[int, int]) -> Float[Tensor, "n 3 y x"]:
    device = next(iter(module.parameters()), torch.empty(0, device="cpu")).device
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(COUNT, 3, *size, generator=generator, dtype=torch.float32, device="cpu")
    return images.to(device, find_input_type(module))


def _find_only_tensor(output: Any) -> Tensor | None:
    """The tensor that a module returns, alone or first in a tuple without others: what a layer can be cut at."""
    first, *others = output if isinstance(output, tuple) and output else (output,)
    return first if isinstance(first, Tensor) and not any(isinstance(other, Tensor) for other in others) else None


def _list_sizes(module: nn.Module) -> list[tuple[int, int]]:
    """List the sizes that parts of the module declare, from the outside in, then usual ones."""
    declared = [size for part in module.modules() for size in _declared_sizes(part)]
    derived = _derive_sizes(module)
    return list(dict.fromkeys([*declared, *((side, side) for side in (*derived, *USUAL_SIZES))]))


def _derive_sizes(module: nn.Module) -> list[int]:
    """Derive the side of a square image from the number of learned positions and the size of a patch."""
    positions = [
        each.shape[-2]
        for name, each in module.named_parameters()
        if re.search("pos.*emb", name) and not re.search("te?xt|bert|language|word", name) and each.ndim in (2, 3)
    ]
    patches = [
        part.kernel_size[0]
        for part in module.modules()
        if isinstance(part, nn.Conv2d) and part.kernel_size == part.stride and part.stride[0] > 1
    ]
    sides = ((math.isqrt(count - prefix), count - prefix) for count in positions for prefix in (0, 1) if count > 1)
    return [side * patch for side, cells in sides if side**2 == cells and side > 1 for patch in patches]


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
