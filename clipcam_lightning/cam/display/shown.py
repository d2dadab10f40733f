"""What shows itself in a notebook, in matplotlib and in a viewer."""

import os
import sys
import tempfile
import webbrowser
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any
from urllib.request import pathname2url

from PIL import Image

from clipcam_lightning.cam.display.gallery import Gallery
from clipcam_lightning.cam.display.markup import gallery_html
from clipcam_lightning.cam.display.plot import plot_gallery
from clipcam_lightning.cam.display.sheet import draw_sheet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SMALL, LARGE = 240, 320  # pixels of a tile: of HTML, and of all else
FEW, MANY = 36, 128  # tiles: of HTML, which a notebook stores, and of all else


class Shown(ABC):
    """What is shown as a gallery of images: in Jupyter by itself, elsewhere when it is asked to."""

    @abstractmethod
    def _gallery(self, side: int, limit: int) -> Gallery:
        """Make the gallery.

        Args:
            side: of a tile, in pixels.
            limit: tiles to show, about.
        """

    def draw(self) -> Image.Image:
        """Draw what :meth:`show` shows as one image of at most about 128 tiles; the image says what is left out."""
        return draw_sheet(self._gallery(LARGE, MANY))

    def show(self) -> None:
        """Show it in the notebook, or else in the system's image viewer; without a viewer, print the image's path."""
        if in_notebook():
            display(self)
        else:
            view(self.draw())

    def plot(self) -> "Figure":
        """Plot what :meth:`show` shows with matplotlib.

        Returns:
            A matplotlib Figure that pyplot does not manage: the result of a cell, or written with ``savefig``.

        Raises:
            ConfigError: matplotlib is not installed; it comes with ``pip install 'clipcam-lightning[notebook]'``.
        """
        return plot_gallery(self._gallery(LARGE, MANY))

    def _repr_html_(self) -> str:
        return gallery_html(self._gallery(SMALL, FEW))


def in_notebook() -> bool:
    """Check whether the program runs in a kernel of Jupyter, whose page shows HTML."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return hasattr(shell, "kernel")


def display(value: Any) -> None:
    """Show a value in the notebook."""
    from IPython.display import display as display_in_notebook

    display_in_notebook(value)  # type: ignore[no-untyped-call]


def view(image: Image.Image) -> None:
    """Open an image in the system's viewer; without a viewer, print its path."""
    handle, path = tempfile.mkstemp(prefix="clipcam-", suffix=".png")
    with os.fdopen(handle, "wb") as file:
        image.save(file, "PNG")
    if not webbrowser.open(f"file:{pathname2url(path)}"):
        print(f"no image viewer was found; the image is {path}")
