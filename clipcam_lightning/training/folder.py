"""Where the files of a run go."""

from collections.abc import Sequence
from typing import Any

from upath import UPath

from clipcam_lightning.cam.urls import PathLike
from clipcam_lightning.storage.paths import as_path, join

OWN_STORES = ("MLFlowLogger",)  # loggers whose save_dir is a database of theirs, in which other folders are errors


def resolve_folder(trainer: Any, dirpath: PathLike | None, root: str) -> UPath:
    """Resolve the folder of a run as Lightning's ModelCheckpoint does.

    Args:
        trainer: of Lightning.
        dirpath: as the user gave it.
        root: name of the folder, if the user gave none.

    Returns:
        ``dirpath``, or ``<save_dir>/<name>/<version>/<root>`` of the first logger, or ``<root>`` in the trainer's
        default folder if there is no logger or it cannot say.

    Raises:
        ConfigError: ``dirpath`` is no folder or URL.
    """
    if dirpath is not None:
        return as_path(dirpath)
    folder = as_path(trainer.default_root_dir)
    try:
        return _resolve_beside_checkpoints(trainer.loggers, folder) / root
    except Exception:  # a logger may raise anything, which must not stop a training
        return folder / root


def _resolve_beside_checkpoints(loggers: Sequence[Any], folder: UPath) -> UPath:
    if not loggers:
        return folder
    logger = loggers[0]
    if logger.save_dir is not None and not any(kind.__name__ in OWN_STORES for kind in type(logger).__mro__):
        folder = as_path(logger.save_dir)
    version = logger.version if isinstance(logger.version, str | None) else f"version_{logger.version}"
    for part in filter(None, (logger.name, version)):
        folder = join(folder, str(part))
    return folder
