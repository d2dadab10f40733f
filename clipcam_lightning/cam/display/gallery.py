"""The content of a display: tiles with captions, in rows."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from PIL import Image

BEST = "best"  # details of a marked tile say so, because a colour alone is not seen by everybody


@dataclass(frozen=True)
class Tile:
    """One image with its caption.

    Attributes:
        image: at the size at which it is shown.
        caption: text of any length and script, such as a prompt.
        details: a short line below the caption.
        is_marked: whether it stands out among the tiles of its row.
    """

    image: Image.Image
    caption: str
    details: str = ""
    is_marked: bool = False


@dataclass(frozen=True)
class Gallery:
    """Tiles in rows, with the words around them.

    Attributes:
        heading: one line above.
        rows: tiles from left to right; a row that is too long for its place is broken.
        scale: what the colours of the tiles mean, beside a colour bar; without heat on the tiles, empty.
        remark: what the gallery leaves out; empty if it shows everything.
    """

    heading: str
    rows: Sequence[Sequence[Tile]]
    scale: str = ""
    remark: str = ""

    def break_rows(self, columns: int) -> Iterator[Sequence[Tile]]:
        """Break rows that are longer than ``columns`` tiles into lines of about equal lengths."""
        for row in self.rows:
            length = math.ceil(len(row) / math.ceil(len(row) / columns))
            for start in range(0, len(row), length):
                yield row[start : start + length]


def describe_rest(shown: int, total: int, noun: str) -> str:
    """Say how many of the things that ``noun`` names are left out; empty if all are shown.

    Example:
        >>> describe_rest(8, 20, "image"), describe_rest(8, 9, "prompt"), describe_rest(8, 8, "probe")
        ('12 more images', '1 more prompt', '')
    """
    rest = total - shown
    return f"{rest:,} more {noun}{'' if rest == 1 else 's'}" if rest else ""
