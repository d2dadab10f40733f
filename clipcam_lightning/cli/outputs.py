"""Check output files before the work begins, and name them in the errors of writing."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from upath import UPath
from upath.implementations.cloud import CloudPath

from clipcam_lightning.cam.urls import store_errors
from clipcam_lightning.cam.writing import write_atomically
from clipcam_lightning.cli.terminal import Output, sanitize
from clipcam_lightning.errors import ConfigError
from clipcam_lightning.storage.reading import exists, is_file, is_folder


def check_outputs(*outputs: UPath | None, inputs: Iterable[Path | UPath | None] = ()) -> None:
    """Refuse output files that cannot be written, before minutes are spent on their content.

    Args:
        outputs: files to write; ``None`` for an output that is not requested.
        inputs: files that must not be overwritten; ``None`` for an input that is not used.

    Raises:
        ConfigError: an output is a folder, a link or a device, its folder cannot be made or is read-only, its store
            cannot be reached or has no such bucket, or two files are the same.
    """
    taken = {identify(path) for path in inputs if path is not None}
    for path in filter(None, outputs):
        _refuse_standard_output(path)
        with _reachable(path):
            if is_folder(path):
                raise ConfigError(f"{path} is a folder; give the name of a file.")
        if identify(path) in taken:
            raise ConfigError(f"{path} is named twice; give each file a name of its own.")
        # A rename would replace the device, or the target of the link.
        if isinstance(path, Path) and (path.is_symlink() or (path.exists() and not path.is_file())):
            raise ConfigError(f"{path} is a link or a device; give the name of an ordinary file.")
        taken.add(identify(path))
        check_folder(path.parent)


def check_folder(folder: UPath) -> None:
    """Refuse a folder that cannot be made or written to.

    Raises:
        ConfigError: the message names the file or folder in the way, or says what is wrong with the store.
    """
    _refuse_standard_output(folder)
    if not isinstance(folder, Path):
        _check_store(folder)
        return
    existing = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())
    if not existing.is_dir():
        raise ConfigError(f"nothing can be written to {folder}: {existing} is a file, not a folder.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(f"nothing can be written to {folder}: {existing} is read-only.")


@contextmanager
def writing(path: UPath) -> Iterator[None]:
    """Name ``path`` in the errors of the block that writes it, instead of the temporary file.

    Raises:
        ConfigError: the file cannot be written, for example because the disk is full.
    """
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror or error}.") from error


def write_file(file: UPath, content: bytes) -> None:
    """Write a file that appears whole or not at all, and print its name.

    Raises:
        ConfigError: the file cannot be written.
    """
    with writing(file):
        write_atomically(file, content)
    Output().print(f"wrote {sanitize(str(file))}", soft_wrap=True)


def write_pages(file: UPath, pages: Iterable[tuple[str, str]]) -> None:
    """Write the pages of a report, and print the name of the first.

    Args:
        file: the first page, which comes last.
        pages: path, relative to the folder of the first page, and HTML of each.

    Raises:
        ConfigError: a file cannot be written.
    """
    for path, html in pages:
        place = file.parent / path
        with writing(place):
            write_atomically(place, html.encode())
    Output().print(f"wrote {sanitize(str(file))}", soft_wrap=True)


def _refuse_standard_output(path: UPath) -> None:
    """Refuse the name ``-``, for which other programs write to standard output."""
    if str(path) == "-":
        raise ConfigError("'-' is not standard output here: outputs are written to files; give the name of a file.")


def _check_store(folder: UPath) -> None:
    with _reachable(folder):
        if is_file(folder):
            raise ConfigError(f"nothing can be written to {folder}: it is a file, not a folder.")
        if isinstance(folder, CloudPath) and not exists(bucket := [folder, *folder.parents][-1]):
            raise ConfigError(f"nothing can be written to {folder}: there is no bucket {bucket}.")


@contextmanager
def _reachable(path: UPath) -> Iterator[None]:
    """Name ``path`` in the errors of its store.

    A store that forbids looking up is not refused: whoever may not read may still be allowed to write.

    Raises:
        ConfigError: the store cannot be reached.
    """
    try:
        yield
    except PermissionError:
        return
    except OSError as error:
        raise ConfigError(f"nothing can be written to {path}: {error.strerror or error}.") from error


def identify(path: Path | UPath) -> str:
    """Return a text that is the same for two paths of one file."""
    if isinstance(path, Path):
        return path.resolve().as_posix()
    with store_errors(path):
        return str(path.fs.unstrip_protocol(path.path))
