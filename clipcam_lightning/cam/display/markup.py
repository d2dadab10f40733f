"""A gallery as HTML for a notebook: self-contained, without scripts, in the text colour of the page."""

import io
from base64 import b64encode
from collections.abc import Sequence
from html import escape

from PIL import Image

from clipcam_lightning.cam.display.drawing import draw_color_bar
from clipcam_lightning.cam.display.gallery import Gallery, Tile

WIDTH = 200  # of a tile, in pixels of the page
QUALITY = 80  # of JPEG
CAPTION = "display:-webkit-box;-webkit-box-orient:vertical;-webkit-line-clamp:3;overflow:hidden;overflow-wrap:anywhere"
FAINT = "opacity:.75;font-size:85%"


def gallery_html(gallery: Gallery) -> str:
    """Render a gallery as HTML; all its text is escaped.

    It has no colours of its own for text and ground, so that it is legible in a light and in a dark notebook.
    """
    parts = [f"<div><b>{clean_text(gallery.heading)}</b></div>", *map(_render_row, gallery.rows)]
    if gallery.scale:
        bar = f'<img src="{_data_uri(draw_color_bar(128, 10), "PNG")}" width="128" height="10" alt="colour bar">'
        parts.append(
            f'<div style="display:flex;align-items:center;gap:8px">{bar}'
            f'<span style="{FAINT}">{clean_text(gallery.scale)}</span></div>'
        )
    if gallery.remark:
        parts.append(f'<div style="{FAINT}">{clean_text(gallery.remark)}</div>')
    return f'<div style="line-height:1.4;display:grid;gap:8px;text-align:left">{"".join(parts)}</div>'


def clean_text(text: str) -> str:
    """Escape a text for HTML; half a surrogate pair becomes a question mark, which every file can hold."""
    return escape(text.encode("utf-8", "replace").decode("utf-8"))


def _render_row(tiles: Sequence[Tile]) -> str:
    return f'<div style="display:flex;flex-wrap:wrap;gap:12px">{"".join(map(_render_tile, tiles))}</div>'


def _render_tile(tile: Tile) -> str:
    caption = clean_text(tile.caption)
    frame = "outline:3px solid #2f81f7;outline-offset:1px;" if tile.is_marked else ""
    return (
        f'<div style="width:{WIDTH}px"><img src="{_data_uri(tile.image, "JPEG")}" width="{WIDTH}" alt="{caption}" '
        f'style="{frame}display:block;margin:0 0 6px">'
        f'<div dir="auto" title="{caption}" style="{CAPTION}">{caption}</div>'
        f'<div style="{FAINT}">{clean_text(tile.details)}</div></div>'
    )


def _data_uri(image: Image.Image, kind: str) -> str:
    file = io.BytesIO()
    image.save(file, kind, **({"quality": QUALITY} if kind == "JPEG" else {}))
    return f"data:image/{kind.lower()};base64,{b64encode(file.getvalue()).decode()}"
