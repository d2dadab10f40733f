"""Weights from files, whoever wrote them. Nothing that a file says is run."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from clipcam_lightning.errors import ModelError

EXAMPLES = 3  # names that a message gives of many


@dataclass(frozen=True)
class Checkpoint:
    """What a file of weights holds, as far as it is plain data.

    Attributes:
        path: where it lies.
        content: all of it; a bare state dict is put under ``state_dict``.
    """

    path: Path
    content: dict[str, Any]

    @property
    def weights(self) -> dict[str, Any]:
        """Tensors by name."""
        weights: dict[str, Any] = self.content["state_dict"]
        return weights

    def count(self, name: str) -> int:
        """A counter that trainings keep, such as ``global_step``; 0 where this one did not."""
        value = self.content.get(name)
        return value if isinstance(value, int) else 0


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a safetensors file, a state dict, or a checkpoint of Lightning or open_clip, without unpickling objects.

    Raises:
        ModelError: it is missing, damaged, something else, or more than plain data is needed to read it.
    """
    try:
        safe = path.suffix == ".safetensors"
        content = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise ModelError(f"the checkpoint {path} cannot be read: {error.strerror or error}.") from error
    except Exception as error:  # a damaged file can raise almost anything, such as OSError for a place beyond its end
        raise ModelError(_refusal(path, str(error) or type(error).__name__)) from error
    weights = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(weights, dict) or not any(isinstance(value, Tensor) for value in weights.values()):
        found = listed(content) if isinstance(content, dict) else type(content).__name__
        raise ModelError(f"{path} holds no weights: expected tensors by name, alone or as 'state_dict' (got {found}).")
    return Checkpoint(path, content if "state_dict" in content else {"state_dict": content})


def weights_of_clip(checkpoint: Checkpoint, clip: nn.Module, name: str | None = None) -> dict[str, Any]:
    """The weights of ``clip`` in a checkpoint of the CLIP itself or of a module around it, under the CLIP's own names.

    Args:
        checkpoint: where they are, all below one prefix, whatever that is.
        clip: the model they are for.
        name: the prefix, without its last dot; needed only where several would do.

    Raises:
        ModelError: below no prefix are all weights, or below several.
    """
    wanted = clip.state_dict().keys()
    found: Counter[str] = Counter()
    for key in checkpoint.weights:
        starts = [0, *(dot.end() for dot in re.finditer(r"\.", key))]
        found.update(key[:start] for start in starts if key[start:] in wanted)
    if name is not None:
        found = Counter({prefix: count for prefix, count in found.items() if prefix.startswith(f"{name}.")})
    whole = [prefix for prefix, count in found.items() if count == len(wanted)]
    if len(whole) > 1:
        places = ", ".join(prefix.rstrip(".") or "(itself)" for prefix in whole)
        raise ModelError(f"{checkpoint.path} holds {len(whole)} such CLIPs: {places}. Choose one with --clip.")
    if not whole:
        raise ModelError(_missing(checkpoint, list(wanted), found, name))
    (prefix,) = whole
    return {key.removeprefix(prefix): value for key, value in checkpoint.weights.items() if key.startswith(prefix)}


def fill(module: nn.Module, weights: dict[str, Any], path: Path) -> None:
    """Load ``weights`` into ``module``; each must find its place, and each place its weight.

    A module that declares ``strict_loading = False``, as Lightning lets it, has the weights that are missing from
    elsewhere.

    Raises:
        ModelError: with some of those that do not fit, and how many there are.
    """
    own = module.state_dict()
    problems = {
        "of another shape": [
            f"{key} ({_shape(weights[key])} in the file, {_shape(own[key])} in the model)"
            for key in own
            if key in weights and _shape(weights[key]) != _shape(own[key])
        ]
    }
    if not any(problems.values()):
        missing, unexpected = module.load_state_dict(weights, strict=False)
        problems = {
            "missing": missing if getattr(module, "strict_loading", True) else [],
            "that the model does not have": unexpected,
        }
    told = [f"{len(keys)} {what}: {listed(keys)}" for what, keys in problems.items() if keys]
    if told:
        raise ModelError(f"the weights in {path} do not fit {type(module).__name__}: {'; '.join(told)}.")


def listed(names: Iterable[str]) -> str:
    """The first few of many names."""
    names = [str(name) for name in names]
    return ", ".join(names[:EXAMPLES]) + (", ..." if len(names) > EXAMPLES else "")


def _refusal(path: Path, message: str) -> str:
    """Why a file was not read: of a long message what matters, and what to do."""
    needed = re.search(r"GLOBAL (\S+)", message)
    if needed:
        return (
            f"{path} is refused: it can only be read by running {needed[1]}, and what a file wants to run may do harm. "
            "If you trust it, read it yourself with torch.load(..., weights_only=False), save what it holds under "
            "'state_dict' with torch.save, and give that file."
        )
    if "TorchScript" in message:
        return f"{path} is refused: it is a TorchScript program. Save its state_dict() with torch.save instead."
    reason = re.search(r"WeightsUnpickler error:\s+(.+)", message) or re.search(r"(.+)", message)
    return f"{path} is damaged, or no checkpoint: {reason[1] if reason else 'it cannot be read'}"


def _missing(checkpoint: Checkpoint, wanted: list[str], found: Counter[str], name: str | None) -> str:
    """What the most promising prefix lacks."""
    best = max(found, key=lambda prefix: found[prefix], default=f"{name}." if name else "")
    missing = [key for key in wanted if best + key not in checkpoint.weights]
    where = f" below {best.rstrip('.')!r}" if best else ""
    return (
        f"{checkpoint.path} does not hold this CLIP: {len(missing)} of its {len(wanted)} weights are missing{where} "
        f"({listed(missing)}). The file holds {listed(checkpoint.weights)}. Is it another model, or its --clip wrong?"
    )


def _shape(value: Any) -> str:
    return "x".join(map(str, value.shape)) or "a number" if isinstance(value, Tensor) else type(value).__name__
