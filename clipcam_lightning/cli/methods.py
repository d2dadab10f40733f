"""``clipcam methods``: list the CAM methods."""

from typing import Any

from rich.table import Table

from clipcam_lightning.cam.methods import METHODS
from clipcam_lightning.cam.towers.tower import ATTENTION, BLOCKS, HEAD, ONE_QUERY, RESIDUAL
from clipcam_lightning.cli.terminal import Output

WIDE = 100  # columns, from which on no cost has to be broken
FITS = {
    (): "every tower",
    (ATTENTION,): "ViTs, attention pools",
    (BLOCKS,): "ViTs",
    (BLOCKS, HEAD): "ViTs of CLIPs",
    (ATTENTION, HEAD): "CLIPs with attention",
    (ONE_QUERY,): "class tokens, attention pools",
    (RESIDUAL,): "class-token ViTs",
    (BLOCKS, ONE_QUERY): "ViTs but average pools",
}
"""What offers the needs of a method, in the words of the docs."""


def run(_options: Any) -> int:
    """Print one row per method: what it fits, what a map costs, and its paper.

    Returns:
        0.
    """
    output = Output()
    table = Table(
        caption="Forwards of the image tower per map, at most: a whole backward counts as two, to a late layer less."
    )
    table.add_column("Method", no_wrap=True)
    table.add_column("Fits", min_width=14)
    table.add_column("Forwards", max_width=11 if output.width < WIDE else None)
    table.add_column("Paper", min_width=20, overflow="fold")
    for name, method in METHODS.items():
        table.add_row(name, FITS[method.needs], method.cost, _shorten_links(method.source))
    output.print(table)
    return 0


def _shorten_links(source: str) -> str:
    """Name papers by their identifiers, which fit on a line of a narrow table, in place of links."""
    return source.replace("https://arxiv.org/abs/", "arXiv:").replace("https://doi.org/", "doi:")
