"""Validate the JSON and bytes in an event file, which anyone may have written."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from tensorboard.data.provider import TensorDatum

from clipcam_lightning.tensorboard_tab import events

MAX_SIDE = 4096  # of a grid
MAX_GROUNDS = 16  # of an evaluation, and tiles of a ground
REQUIRED = {  # keys and types of an evaluation's JSON
    **{"epoch": int, "baseline_step": int, "alarm": bool, "reason": str, "stored_baseline": bool, "notes": list},
    **{"digest": str, "method": str, "target": str, "layers": list, "grid": list},
    **{"states": dict, "baseline_states": dict, "state_words": dict},
}


def parse_evaluation(datum: TensorDatum) -> Mapping[str, Any] | None:
    """Parse the JSON of an evaluation.

    Args:
        datum: of the tag ``evaluation``.

    Returns:
        Its content, with the grid as a tuple; ``None`` if a key is missing or a value is not valid.
    """
    content = _parse_object(datum)
    is_valid = (
        all(type(content.get(key)) is kind for key, kind in REQUIRED.items())
        and _is_text_list(content["notes"])
        and _is_text_list(content["layers"])
        and all(_is_text_list([*content[key].values()]) for key in ("states", "baseline_states", "state_words"))
        and all(type(side) is int and 0 < side <= MAX_SIDE for side in content["grid"])
        and len(content["grid"]) == 2
        and max(abs(content["epoch"]), abs(content["baseline_step"])) < 2**63
    )
    if not is_valid:
        return None
    return {**content, "grid": tuple(content["grid"]), "grounds": _parse_grounds(content.get("grounds"))}


def parse_probes(datum: TensorDatum) -> Mapping[str, Any] | None:
    """Parse the JSON of a probe set.

    Args:
        datum: of the tag ``probes``.

    Returns:
        Its content; ``None`` if it does not describe a probe set.
    """
    content = _parse_object(datum)
    names, prompts, digests = (content.get(key) for key in ("names", "prompts", "digests"))
    if not (_is_text_list(names) and _is_text_list(prompts) and _is_text_list(digests)):
        return None
    is_valid = len(names) == len(set(names)) == len(prompts) == len(digests) > 0
    has_surrogate = re.search(r"[\ud800-\udfff]", "".join(names))  # which a tag cannot hold
    if not is_valid or has_surrogate or "digest" not in content:
        return None
    visible = content.get("visible")
    are_shares = isinstance(visible, list) and all(type(share) in (int, float) and 0 <= share <= 1 for share in visible)
    return {**content, "visible": visible if are_shares else []}


def _parse_grounds(grounds: Any) -> list[Mapping[str, Any]]:
    """Parse the grounds that an alarm rests on, all of numbers; empty if one of them is not valid."""
    if not isinstance(grounds, list) or len(grounds) > MAX_GROUNDS:
        return []
    keys = ("probe", "called", "called_before")
    parsed: list[Mapping[str, Any]] = [
        {key: ground.get(key) for key in keys} for ground in grounds if isinstance(ground, dict)
    ]
    is_valid = len(parsed) == len(grounds) and all(
        type(ground["probe"]) is int
        and _is_number_list(ground["called"])
        and _is_number_list(ground["called_before"])
        and len(ground["called"]) == len(ground["called_before"]) < MAX_GROUNDS
        for ground in parsed
    )
    return parsed if is_valid else []


def newest_bytes(data: Sequence[TensorDatum]) -> bytes:
    """Return the content of the last datum; empty if there is none or it is not one byte string."""
    content = data[-1].numpy.item() if data and data[-1].numpy.size == 1 else b""
    return content if isinstance(content, bytes) else b""


def version_problem(metadata: bytes) -> str:
    """Explain why a series with this metadata cannot be read; empty if it can."""
    version = _parse_json(metadata)
    if type(version) is not int:
        return "Its data is damaged: the format version is missing."
    is_newer = version > events.VERSION
    return f"It was written by a later version (format {version}): update clipcam-lightning." if is_newer else ""


def _parse_object(datum: TensorDatum) -> Mapping[str, Any]:
    """Parse a JSON object of this format version; empty if it is something else."""
    content = _parse_json(datum.numpy.item()) if datum.numpy.size == 1 else None
    return content if isinstance(content, dict) and content.get("version") == events.VERSION else {}


def _parse_json(content: Any) -> Any:
    """Parse JSON; ``None`` if it is not valid."""
    try:
        return json.loads(content)
    except (ValueError, TypeError, RecursionError):
        return None


def _is_number_list(values: Any) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(value) is int and abs(value) < 2**31 for value in values)


def _is_text_list(values: Any) -> TypeGuard[list[str]]:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)
