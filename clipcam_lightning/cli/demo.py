"""``clipcam demo``: fine-tune a small CLIP that learns a shortcut, without data and network."""

from typing import Any

from clipcam_lightning.cli.outputs import check_folder
from clipcam_lightning.shapes_world.demo import main


def run(options: Any) -> int:
    """Run the demo of the shapes world.

    Returns:
        0.
    """
    check_folder(options.out)
    try:
        main(options.out)
    except SystemExit as stop:  # how an interrupted Trainer ends
        raise KeyboardInterrupt from stop
    return 0
