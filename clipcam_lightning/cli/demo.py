"""``clipcam demo``: fine-tune a small CLIP that learns a shortcut, without data and network."""

from pathlib import Path
from typing import Any

from clipcam_lightning.cli.outputs import check_folder
from clipcam_lightning.errors import ConfigError
from clipcam_lightning.shapes_world.demo import main
from clipcam_lightning.storage.paths import is_remote


def run(options: Any) -> int:
    """Run the demo of the shapes world.

    Returns:
        0.

    Raises:
        ConfigError: the folder is not on the local disk, or cannot be written to.
    """
    if is_remote(options.out):
        raise ConfigError(
            f"the demo writes to a local folder (got --out {options.out}); copy it to a store afterwards."
        )
    check_folder(options.out)
    try:
        main(Path(options.out))
    except SystemExit as stop:  # how an interrupted Trainer ends
        raise KeyboardInterrupt from stop
    return 0
