"""Check output files before the work begins, and name them in the errors of writing."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from clipcam_lightning.errors import ConfigError


def check_outputs(*outputs: Path | None, inputs: Iterable[Path | None] = ()) -> None:
    """Refuse output files that cannot be written, before minutes are spent on their content.

    Args:
        outputs: files to write; ``None`` for an output that is not requested.
        inputs: files that must not be overwritten; ``None`` for an input that is not used.

    Raises:
        ConfigError: an output is a folder, a link or a device, its folder cannot be made or is read-only, or two files
            are the same.
    """
    taken = {path.resolve() for path in inputs if path is not None}
    for path in filter(None, outputs):
        if path.is_dir():
            raise ConfigError(f"{path} is a folder; give the name of a file.")
        if path.resolve() in taken:
            raise ConfigError(f"{path} is named twice; give each file a name of its own.")
        if path.is_symlink() or (path.exists() and not path.is_file()):  # the new file would replace it by a rename
            raise ConfigError(f"{path} is a link or a device; give the name of an ordinary file.")
        taken.add(path.resolve())
        check_folder(path.parent)


def check_folder(folder: Path) -> None:
    """Refuse a folder that cannot be made or written to.

    Raises:
        ConfigError: the message names the file or folder in the way.
    """
    existing = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())
    if not existing.is_dir():
        raise ConfigError(f"nothing can be written to {folder}: {existing} is a file, not a folder.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(f"nothing can be written to {folder}: {existing} is read-only.")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Name ``path`` in the errors of the block that writes it, instead of the temporary file.

    Raises:
        ConfigError: the file cannot be written, for example because the disk is full.
    """
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror or error}.") from error
