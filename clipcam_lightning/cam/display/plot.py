"""A gallery in matplotlib, which is imported when it is first asked for."""

import io
from typing import TYPE_CHECKING, Any

import numpy as np

from clipcam_lightning.cam.display.drawing import draw_color_bar
from clipcam_lightning.cam.display.gallery import Gallery, Tile
from clipcam_lightning.cam.display.sheet import MARK
from clipcam_lightning.cam.lettering import font, wrap
from clipcam_lightning.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 6
TILE = (2.3, 2.9)  # inches, with the caption
MAX_LINES = 3  # of a caption
HEADING, DETAILS = 10, 8  # points
MEASURED = 20  # pixels of the font in which the length of a line is measured


def make_plot(width: float, height: float) -> "Figure":
    """Make an empty matplotlib Figure that a notebook shows once.

    pyplot does not manage it: nothing must be closed, and no window opens.

    Args:
        width: in inches.
        height: in inches.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("plot() needs matplotlib: pip install 'clipcam-lightning[notebook]'.") from error

    class Plot(Figure):
        """A matplotlib Figure that a notebook shows, also before it has imported pyplot."""

        def _repr_png_(self) -> bytes:
            file = io.BytesIO()
            self.savefig(file, format="png")
            return file.getvalue()

    plot = Plot(figsize=(width, height))
    plot.set_layout_engine("constrained", h_pad=0.1)
    return plot


def plot_gallery(gallery: Gallery) -> "Figure":
    """Plot a gallery: one axes per tile, and a colour bar.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    lines = list(gallery.break_rows(COLUMNS))
    columns = max(map(len, lines))
    width = max(TILE[0] * columns, 4.5)
    plot = make_plot(width, TILE[1] * len(lines) + 0.9)
    axes = plot.subplots(len(lines), columns, squeeze=False)
    for i, line in enumerate(lines):
        for j, each in enumerate(axes[i]):
            each.axis("off")
            if j < len(line):
                _plot_tile(each, line[j])
    plot.suptitle(wrap_text(gallery.heading, HEADING, width, 2), **text_style(HEADING))
    if gallery.scale:
        _plot_color_bar(plot, axes, wrap_text(gallery.scale, DETAILS, width, 2))
    if gallery.remark:
        plot.supxlabel(wrap_text(gallery.remark, DETAILS, width, 2), **text_style(DETAILS))
    return plot


def text_style(points: int) -> dict[str, Any]:
    """Return the style of a text that is data: in the font of all images, which has all scripts, and no formula."""
    from matplotlib.font_manager import FontProperties

    return {"fontproperties": FontProperties(fname=str(font(points).path), size=points), "parse_math": False}


def wrap_text(text: str, points: int, inches: float, max_lines: int) -> str:
    """Break a text that is data into lines that fit; what exceeds ``max_lines`` is cut.

    Control characters and halves of surrogate pairs are replaced, because no font of matplotlib can draw them.
    """
    whole = text.encode("utf-8", "replace").decode("utf-8")
    printable = "".join(char if char.isprintable() else " " for char in whole)
    return "\n".join(wrap(printable, MEASURED, int(MEASURED * 72 * inches / points), max_lines))


def _plot_tile(axes: "Axes", tile: Tile) -> None:
    axes.imshow(np.asarray(tile.image))
    caption = wrap_text(tile.caption, DETAILS, 0.9 * TILE[0], MAX_LINES)
    color = MARK if tile.is_marked else "black"
    axes.set_title(f"{caption}\n{tile.details}" if caption else tile.details, color=color, **text_style(DETAILS))


def _plot_color_bar(plot: "Figure", axes: np.ndarray, scale: str) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap

    colors = ListedColormap(np.asarray(draw_color_bar(256, 1))[0] / 255)
    bar = plot.colorbar(ScalarMappable(cmap=colors), ax=axes, location="bottom", shrink=0.5, aspect=40, pad=0.02)
    bar.set_ticks([0, 1], labels=["0", "max"])
    bar.set_label(scale, **text_style(DETAILS))
