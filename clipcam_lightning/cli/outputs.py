"""Files to write: refused early where they cannot be written, and never half written."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from clipcam_lightning.errors import ConfigError


def check_outputs(*outputs: Path | None, inputs: Iterable[Path | None] = ()) -> None:
    """Refuse files that could not be written, before minutes are spent on what goes into them.

    Args:
        outputs: files; ``None`` for one that is not wanted.
        inputs: files that must not be overwritten, likewise.

    Raises:
        ConfigError: something else has the name, the folder cannot be made or is read-only, or two files are one.
    """
    taken = {path.resolve() for path in inputs if path is not None}
    for path in filter(None, outputs):
        if path.is_dir():
            raise ConfigError(f"{path} is a folder; give the name of a file.")
        if path.resolve() in taken:
            raise ConfigError(f"{path} is named twice; give each file a name of its own.")
        if path.is_symlink() or (path.exists() and not path.is_file()):  # renamed over, a device would be gone
            raise ConfigError(f"{path} is a link or a device; give the name of an ordinary file.")
        taken.add(path.resolve())
        check_folder(path.parent)


def check_folder(folder: Path) -> None:
    """Refuse a folder that cannot be made or written to.

    Raises:
        ConfigError: with what is in the way.
    """
    existing = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())
    if not existing.is_dir():
        raise ConfigError(f"nothing can be written to {folder}: {existing} is a file, not a folder.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(f"nothing can be written to {folder}: {existing} is read-only.")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Around the writing of one file: what goes wrong is said of this file and not of a temporary one.

    Raises:
        ConfigError: the disk is full, or the like.
    """
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror or error}.") from error
