"""What all HTML pages share: templates that escape every text, images inside the page, links to probes."""

import io
from base64 import b64encode
from collections.abc import Iterable
from functools import cache
from importlib.resources import files
from typing import Any
from urllib.parse import quote

import torch
from jinja2 import DictLoader, Environment, StrictUndefined, Template
from PIL import Image

from clipcam_lightning.cam.colors import CHANGE, HEAT
from clipcam_lightning.drift.probe_drift import format_drift, format_loss
from clipcam_lightning.storage.jpeg import encode_jpeg
from clipcam_lightning.visualization.drawing import draw_heat

JPEG_QUALITY = 85
SHARED = ("page.html.jinja", "parts.html.jinja")  # the layout that every page extends, and its macros


@cache
def load_page(name: str) -> Template:
    """Load the template of a page and all that it uses.

    Reading a resource of a package imports modules when it first happens, so this must happen before a training begins.

    Args:
        name: of the file in this folder.
    """
    folder = files(__package__)
    sources = {each: folder.joinpath(each).read_text("utf-8") for each in (*SHARED, name)}
    environment = Environment(
        loader=DictLoader(sources), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        uri=jpeg_uri,
        probes=_count,
        drift=format_drift,
        loss=format_loss,
        capitalized=_capitalized,
        anchor=probe_anchor,
    )
    for each in sources:
        environment.get_template(each)  # compiled once, and kept by the environment
    return environment.get_template(name)


def render(name: str, **values: Any) -> str:
    """Render a page.

    Args:
        name: of its template.
        values: by the names that the template uses.

    Returns:
        HTML, to be written as UTF-8.
    """
    html = load_page(name).render(**values)
    return html.encode("utf-8", "replace").decode("utf-8")  # a prompt may hold half a surrogate pair


def probe_anchor(name: str) -> str:
    """Return the id of a probe on every page, for links such as ``report.html#probe-cat``.

    Example:
        >>> probe_anchor("a-red-circle")
        'probe-a-red-circle'
    """
    return "probe-" + quote(name, safe="", errors="replace")


def jpeg_uri(image: Image.Image) -> str:
    """Encode an image as a data URI."""
    return _data_uri("jpeg", encode_jpeg(image, JPEG_QUALITY))


def draw_scales() -> dict[str, str]:
    """Draw the colour scales of heat and change, as data URIs by name."""
    return {"heat": _draw_scale(HEAT), "change": _draw_scale(CHANGE)}


def _draw_scale(colors: str) -> str:
    """Draw a colour scale from 0 to 1, one pixel high."""
    file = io.BytesIO()
    draw_heat(torch.linspace(0, 1, 256, dtype=torch.float32, device="cpu")[None], (1, 256), colors).save(file, "PNG")
    return _data_uri("png", file.getvalue())


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{b64encode(content).decode()}"


def _count(probes: Iterable[object]) -> str:
    count = len(list(probes))
    return "1 probe" if count == 1 else f"{count:,} probes"


def _capitalized(text: str) -> str:
    return text[:1].upper() + text[1:]
