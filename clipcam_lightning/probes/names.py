"""Name probes by slugs that are unique in their set."""

import os
import reprlib
import unicodedata
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import regex
from upath import UPath

from clipcam_lightning.errors import ProbeError
from clipcam_lightning.probes.probe import LoadedProbe, Probe

MAX_LENGTH, MAX_BYTES = 48, 96  # in UTF-8: a file name of an image and a prompt must stay below 255 bytes


def name_probes(probes: Sequence[Probe | LoadedProbe], places: Sequence[str]) -> list[str]:
    """Name every probe: keep the names that probes have, and make unique ones for the others.

    Args:
        probes: a made name is the slug of the image's file name, or else of the prompt, with a number where another
            probe has it.
        places: what error messages call each probe.

    Returns:
        One name per probe, safe as a file name: lower-case letters and digits of any script, ``_``, ``.`` and ``-``, at
        most 48 characters and 96 bytes.

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
        unique, number = _cut(name, len(suffix)) + suffix, number + 1
    return unique


def _slug(text: str) -> str:
    # NFKC, because some file systems change the form of a name, and twice, because lower case may need it again.
    lower = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).lower())
    marked = regex.sub(r"(?<![\p{L}\p{N}\p{M}])\p{M}+", "", lower)  # a mark belongs to a letter
    return _cut(regex.sub(r"[^\p{L}\p{M}\p{N}_.]+", "-", marked).strip("-.")) or "probe"


def _cut(name: str, reserved: int = 0) -> str:
    """Cut a name to its largest length less ``reserved``, between characters as a reader sees them."""
    characters = regex.findall(r"\X", name)
    lengths = accumulate(map(len, characters))
    sizes = accumulate(len(character.encode()) for character in characters)
    limits = MAX_LENGTH - reserved, MAX_BYTES - reserved
    count = sum(length <= limits[0] and size <= limits[1] for length, size in zip(lengths, sizes, strict=True))
    return "".join(characters[:count]).strip("-.")
