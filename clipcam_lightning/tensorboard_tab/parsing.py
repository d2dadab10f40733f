"""What the values of an event say, as far as it can be believed: anyone may have written them."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from tensorboard.data.provider import TensorDatum

from clipcam_lightning.tensorboard_tab import events

LONGEST_SIDE = 4096  # of a grid that is believed
KINDS = {  # what a look's JSON must say
    **{"epoch": int, "baseline_step": int, "alarm": bool, "stored_baseline": bool, "notes": list},
    **{"digest": str, "method": str, "target": str, "layers": list, "grid": list},
}


def evaluation_of(datum: TensorDatum) -> Mapping[str, Any] | None:
    """What a look's JSON says, with its grid as a shape; ``None`` if it does not say all or something else."""
    told = _object(datum)
    sound = (
        all(type(told.get(key)) is kind for key, kind in KINDS.items())
        and _are_texts(told["notes"])
        and _are_texts(told["layers"])
        and all(type(side) is int and 0 < side <= LONGEST_SIDE for side in told["grid"])
        and len(told["grid"]) == 2
        and max(abs(told["epoch"]), abs(told["baseline_step"])) < 2**63
    )
    return {**told, "grid": tuple(told["grid"])} if sound else None


def probes_of(datum: TensorDatum) -> Mapping[str, Any] | None:
    """What the JSON of a set says, ``None`` if that is not one of probes."""
    told = _object(datum)
    names, prompts, digests = (told.get(key) for key in ("names", "prompts", "digests"))
    if not (_are_texts(names) and _are_texts(prompts) and _are_texts(digests)):
        return None
    sound = len(names) == len(set(names)) == len(prompts) == len(digests) > 0
    half = re.search(r"[\ud800-\udfff]", "".join(names))  # of a character, which no tag can hold
    return told if sound and not half and "digest" in told else None


def newest_bytes(data: Sequence[TensorDatum]) -> bytes:
    """Content of the newest, empty if there is none."""
    content = data[-1].numpy.item() if data and data[-1].numpy.size == 1 else b""
    return content if isinstance(content, bytes) else b""


def version_problem(metadata: bytes) -> str:
    """Why a series with this metadata cannot be read; empty if it can."""
    version = _parsed(metadata)
    if type(version) is not int:
        return "Its data is damaged: it does not tell the version of its format."
    newer = version > events.VERSION
    return f"It was written by a later version (format {version}): update clipcam-lightning." if newer else ""


def _object(datum: TensorDatum) -> Mapping[str, Any]:
    """An object of this version, or an empty one."""
    told = _parsed(datum.numpy.item()) if datum.numpy.size == 1 else None
    return told if isinstance(told, dict) and told.get("version") == events.VERSION else {}


def _parsed(content: Any) -> Any:
    """What JSON says, ``None`` if it is none."""
    try:
        return json.loads(content)
    except (ValueError, TypeError, RecursionError):
        return None


def _are_texts(values: Any) -> TypeGuard[list[str]]:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)
