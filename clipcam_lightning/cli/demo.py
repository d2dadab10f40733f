"""``clipcam demo``: the whole thing, without data and network."""

from typing import Any

from clipcam_lightning.cli.outputs import check_folder
from clipcam_lightning.shapes_world.demo import main


def run(options: Any) -> int:
    """Run the demo of the shapes world."""
    check_folder(options.out)
    try:
        main(options.out)
    except SystemExit as stop:  # so ends a Trainer that was interrupted
        raise KeyboardInterrupt from stop
    return 0
