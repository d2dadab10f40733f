"""``clipcam methods``: list the CAM methods."""

from typing import Any

from rich.table import Table

from clipcam_lightning.cam.methods import METHODS
from clipcam_lightning.cli.terminal import Output


def run(_options: Any) -> int:
    """Print one row per method: what it fits, what a map costs, and its paper.

    Returns:
        0.
    """
    table = Table(
        caption="Forwards of the image tower per map, at most: a whole backward counts as two, to a late layer less."
    )
    table.add_column("Method", no_wrap=True)
    table.add_column("Fits towers with", max_width=44)  # fits each single need; several wrap, to leave the paper room
    table.add_column("Forwards", no_wrap=True)
    table.add_column("Paper", overflow="fold")
    for name, method in METHODS.items():
        table.add_row(name, " and ".join(method.needs) or "anything", method.cost, method.source)
    Output().print(table)
    return 0
