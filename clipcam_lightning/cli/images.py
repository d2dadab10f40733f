"""Find the images that a command line names: files, folders and patterns."""

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from upath import UPath

from clipcam_lightning.cam.urls import is_url, store_errors
from clipcam_lightning.cli.outputs import identify
from clipcam_lightning.errors import ConfigError, abridge
from clipcam_lightning.storage.paths import as_path
from clipcam_lightning.storage.reading import exists, is_folder

MAX_NAMED = 3  # skipped files


@dataclass(frozen=True)
class ImageFile:
    """One image to read.

    Attributes:
        path: of its file.
        place: what messages call it, if it was named by itself; empty if it was found in a folder or by a pattern.
    """

    path: UPath
    place: str = ""


@dataclass(frozen=True)
class FoundImages:
    """What a command line names.

    Attributes:
        files: each once, in the order of the command line; of a folder or a pattern by name.
        skipped: files in folders and matches of patterns whose names are no names of images.
    """

    files: list[ImageFile]
    skipped: list[UPath]

    @property
    def note(self) -> str:
        """Which files are skipped; empty if there are none."""
        if not self.skipped:
            return ""
        names = ", ".join(path.name for path in self.skipped[:MAX_NAMED])
        more = f" and {len(self.skipped) - MAX_NAMED} more" if len(self.skipped) > MAX_NAMED else ""
        return f"skipped what is no image: {names}{more}."


def find_images(places: Sequence[str]) -> FoundImages:
    """Find the images that the arguments of a command name.

    Args:
        places: files; folders, whose own files are taken; and patterns with ``*``, ``?``, ``[...]`` or, for all
            subfolders, ``**``. Each is a path or a URL.

    Returns:
        The images, which are not decoded yet.

    Raises:
        ConfigError: a file is missing or no image, a folder holds no images, or a pattern matches none.
        OSError: a store fails.
    """
    files: dict[str, ImageFile] = {}
    skipped: dict[str, UPath] = {}
    for number, place in enumerate(places, start=1):
        path = as_path(place)
        if not (matches := _list_matches(path, place)):
            _require_image(path, f"image {number}")
            files.setdefault(identify(path), ImageFile(path, f"image {number}"))
        for match in matches:
            if _has_image_suffix(match):
                files.setdefault(identify(match), ImageFile(match))
            else:
                skipped[identify(match)] = match
    return FoundImages(list(files.values()), list(skipped.values()))


def _list_matches(path: UPath, place: str) -> list[UPath]:
    """List the files in a folder, or those that a pattern matches; none if the place is neither.

    Raises:
        ConfigError: there is no image among them.
    """
    if is_folder(path):
        matches, problem = _list_folder(path), f"{place} has no images; {str(path / '**')!r} includes its subfolders."
    elif _is_pattern(place) and not exists(path):
        matches, problem = _match(path), f"no image matches {place}."
    else:
        return []
    matches = sorted(match for match in matches if not match.name.startswith("."))
    if not any(map(_has_image_suffix, matches)):
        raise ConfigError(problem)
    return matches


def _is_pattern(place: str) -> bool:
    return "*" in place or "[" in place or ("?" in place and not is_url(place))  # "?" begins the query of a URL


def _list_folder(folder: UPath) -> list[UPath]:
    if isinstance(folder, Path):
        return [path for path in folder.iterdir() if path.is_file()]
    with store_errors(folder):
        entries = folder.fs.ls(folder.path, detail=True)
    return [as_path(folder.fs.unstrip_protocol(entry["name"])) for entry in entries if entry["type"] == "file"]


def _match(pattern: UPath) -> list[UPath]:
    if isinstance(pattern, Path):
        # Before Python 3.13, "**" of pathlib matches only folders.
        names = glob.glob(str(pattern), recursive=True)  # noqa: PTH207
        return [path for path in map(as_path, names) if path.is_file()]
    with store_errors(pattern):
        entries = pattern.fs.glob(pattern.path, detail=True)
    return [as_path(pattern.fs.unstrip_protocol(name)) for name, entry in entries.items() if entry["type"] == "file"]


def _has_image_suffix(path: UPath) -> bool:
    return Image.registered_extensions().get(path.suffix.lower()) in Image.OPEN


def _require_image(path: UPath, place: str) -> None:
    """Refuse a local file that is missing or no image; one that is damaged further on shows when it is decoded.

    Raises:
        ConfigError: the message says which.
    """
    if not isinstance(path, Path):
        return
    if not exists(path):
        raise ConfigError(f"{place}: the image {abridge(path)} does not exist.")
    try:
        if not path.is_file():
            raise ValueError("it is not a file")  # opening a pipe would block
        Image.open(path).close()
    except Exception as error:  # a damaged file can make its reader raise almost anything
        raise ConfigError(f"{place}: the image {abridge(path)} cannot be read: {abridge(error)}") from error
