"""Name probes by slugs that are unique in their set."""

import os
import re
import reprlib
from collections.abc import Sequence
from pathlib import Path

from upath import UPath

from clipcam_lightning.errors import ProbeError
from clipcam_lightning.probes.probe import LoadedProbe, Probe

MAX_LENGTH = 48


def name_probes(probes: Sequence[Probe | LoadedProbe], places: Sequence[str]) -> list[str]:
    """Name every probe: keep the names that probes have, and make unique ones for the others.

    Args:
        probes: a made name is the slug of the image's file name, or else of the prompt, with a number where another
            probe has it.
        places: what error messages call each probe.

    Returns:
        One name per probe: at most 48 of the characters ``a-z0-9_.-``, safe as a file name.

    Raises:
        ProbeError: a name that a probe has is not a slug, or another probe has it too.
    """
    taken: set[str] = set()
    for probe, place in zip(probes, places, strict=True):
        if not probe.name:
            continue
        if probe.name != _slug(probe.name):
            raise ProbeError(
                f"{place}: the name {reprlib.repr(probe.name)} is not a slug; write {_slug(probe.name)!r}."
            )
        if probe.name in taken:
            raise ProbeError(f"{place}: an earlier probe has the name {probe.name!r} too; names must be unique.")
        taken.add(probe.name)
    names = []
    for probe in probes:
        name = probe.name or _make_unique(_default_name(probe), taken)
        taken.add(name)
        names.append(name)
    return names


def _default_name(probe: Probe | LoadedProbe) -> str:
    if isinstance(probe.image, str | os.PathLike | UPath):
        return _slug(Path(str(probe.image)).stem)
    return _slug(probe.prompt)


def _make_unique(name: str, taken: set[str]) -> str:
    """Append the first number from 2 on that makes a name unique; shorten the name to make room for it."""
    unique, number = name, 2
    while unique in taken:
        suffix = f"-{number}"
        unique, number = name[: MAX_LENGTH - len(suffix)].rstrip("-.") + suffix, number + 1
    return unique


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9_.]+", "-", text.lower()).strip("-.")[:MAX_LENGTH].strip("-.") or "probe"
