"""Load weights from files of several formats without executing code."""

import io
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, load_file
from torch import Tensor, nn
from upath import UPath

from clipcam_lightning.errors import ModelError
from clipcam_lightning.storage.reading import read_bytes

MAX_NAMES = 3  # names that a message lists


@dataclass(frozen=True)
class Checkpoint:
    """The content of a file of weights.

    Attributes:
        path: of the file.
        content: plain data; a bare state dict is put under ``state_dict``.
    """

    path: Path | UPath
    content: dict[str, Any]

    @property
    def weights(self) -> dict[str, Any]:
        """Tensors by name."""
        weights: dict[str, Any] = self.content["state_dict"]
        return weights

    def counter(self, name: str) -> int:
        """Return a counter of the training, such as ``global_step``; 0 if the file does not hold it."""
        value = self.content.get(name)
        return value if isinstance(value, int) else 0


def read_checkpoint(path: Path | UPath) -> Checkpoint:
    """Read a safetensors file, a state dict, or a checkpoint of Lightning or open_clip, without unpickling objects.

    Raises:
        ModelError: the file is missing, damaged or something else, or reading it would execute code.
    """
    try:
        content = _load(path if isinstance(path, Path) else io.BytesIO(read_bytes(path)), path.suffix)
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise ModelError(f"the checkpoint {path} cannot be read: {error.strerror or error}.") from error
    except Exception as error:  # a damaged file can raise almost anything, such as OSError for an offset past its end
        raise ModelError(_explain_refusal(path, str(error) or type(error).__name__)) from error
    weights = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(weights, dict) or not any(isinstance(value, Tensor) for value in weights.values()):
        content_type = _join(content) if isinstance(content, dict) else type(content).__name__
        raise ModelError(
            f"{path} holds no weights: expected tensors by name, alone or as 'state_dict' (got {content_type})."
        )
    return Checkpoint(path, content if "state_dict" in content else {"state_dict": content})


def _load(file: Path | io.BytesIO, suffix: str) -> Any:
    if suffix == ".safetensors":
        return load_file(file) if isinstance(file, Path) else load(file.getvalue())
    return torch.load(file, map_location="cpu", weights_only=True)


def select_clip_weights(checkpoint: Checkpoint, clip: nn.Module, name: str | None = None) -> dict[str, Any]:
    """Select the weights of ``clip`` from a checkpoint of the CLIP or of a module around it.

    Args:
        checkpoint: all weights of the CLIP lie below one prefix in it, whatever that is.
        clip: the model to load the weights into.
        name: the prefix, without its last dot; needed only if the weights lie below several prefixes.

    Returns:
        The weights under the CLIP's own names.

    Raises:
        ModelError: all weights lie below no prefix, or below several.
    """
    expected = clip.state_dict().keys()
    matches: Counter[str] = Counter()  # number of expected weights below each prefix
    for key in checkpoint.weights:
        starts = [0, *(dot.end() for dot in re.finditer(r"\.", key))]
        matches.update(key[:start] for start in starts if key[start:] in expected)
    if name is not None:
        matches = Counter({prefix: count for prefix, count in matches.items() if prefix.startswith(f"{name}.")})
    complete = [prefix for prefix, count in matches.items() if count == len(expected)]
    if len(complete) > 1:
        names = ", ".join(prefix.rstrip(".") or "(itself)" for prefix in complete)
        raise ModelError(f"{checkpoint.path} holds {len(complete)} such CLIPs: {names}. Choose one with --clip.")
    if not complete:
        raise ModelError(_explain_missing(checkpoint, list(expected), matches, name))
    (prefix,) = complete
    return {key.removeprefix(prefix): value for key, value in checkpoint.weights.items() if key.startswith(prefix)}


def load_weights(module: nn.Module, weights: dict[str, Any], path: Path | UPath) -> None:
    """Load ``weights`` into ``module``; keys and shapes must match exactly.

    A module that declares ``strict_loading = False``, as Lightning allows, may have weights that the file does not
    hold.

    Args:
        module: changed in place.
        weights: tensors by name.
        path: the file they come from, for messages.

    Raises:
        ModelError: the weights do not fit; the message counts and names those that do not.
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
    descriptions = [f"{len(keys)} {what}: {_join(keys)}" for what, keys in problems.items() if keys]
    if descriptions:
        hint = " If it was trained at another image size, build the model for that size (--image-size with --model)."
        raise ModelError(
            f"the weights in {path} do not fit {type(module).__name__}: {'; '.join(descriptions)}."
            + (hint if _only_positions_differ(own, weights) else "")
        )


def _only_positions_differ(own: dict[str, Any], weights: dict[str, Any]) -> bool:
    """Check whether the weights of another shape are positions, of which an image of another size has more or fewer."""
    keys = [key for key in own if key in weights and _shape(weights[key]) != _shape(own[key])]
    return bool(keys) and all("pos" in key.rpartition(".")[2] for key in keys)


def _join(names: Iterable[str]) -> str:
    """Join the first few of many names."""
    names = [str(name) for name in names]
    return ", ".join(names[:MAX_NAMES]) + (", ..." if len(names) > MAX_NAMES else "")


def _explain_refusal(path: Path | UPath, message: str) -> str:
    """Say why a file was not read and what to do; of a long message only the cause."""
    code = re.search(r"GLOBAL (\S+)", message)
    if code:
        return (
            f"{path} is refused: it can only be read by running {code[1]}, and code in a file may do harm. "
            "If you trust it, read it yourself with torch.load(..., weights_only=False), save its weights under "
            "'state_dict' with torch.save, and give that file."
        )
    if "TorchScript" in message:
        return f"{path} is refused: it is a TorchScript program. Save its state_dict() with torch.save instead."
    reason = re.search(r"WeightsUnpickler error:\s+(.+)", message) or re.search(r"(.+)", message)
    return f"{path} is damaged, or no checkpoint: {reason[1] if reason else 'it cannot be read'}"


def _explain_missing(checkpoint: Checkpoint, expected: list[str], matches: Counter[str], name: str | None) -> str:
    """Say which weights are missing below the prefix with the most matches."""
    best = max(matches, key=lambda prefix: matches[prefix], default=f"{name}." if name else "")
    missing = [key for key in expected if best + key not in checkpoint.weights]
    place = f" below {best.rstrip('.')!r}" if best else ""
    return (
        f"{checkpoint.path} does not hold this CLIP: {len(missing)} of its {len(expected)} weights are missing{place} "
        f"({_join(missing)}). The file holds {_join(checkpoint.weights)}. Check --model and --clip."
    )


def _shape(value: Any) -> str:
    return "x".join(map(str, value.shape)) or "a number" if isinstance(value, Tensor) else type(value).__name__
