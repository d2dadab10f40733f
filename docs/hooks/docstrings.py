"""Convert the reStructuredText in docstrings to Markdown, so that roles become links and formulas become MathML."""

import re
import textwrap
from typing import Any

from docutils.utils.math.latex2mathml import tex2mathml
from griffe import Extension, Object

import clipcam_lightning

ROLE = re.compile(r":(?:class|func|meth|attr|data):`~?([\w.]+)`")
MATH = re.compile(r":math:`(.+?)`", re.S)
ACCENT = re.compile(r"<munderover>(<mi>\w</mi>)(<mi>\w+</mi>|<mrow>.*?</mrow>)(<mo[^>]*>[ˉ~]</mo>)</munderover>")
MATH_BLOCK = re.compile(r"^\.\. math::[ \n]*(.+(?:\n+ +.+)*)$", re.M)


class Docstrings(Extension):
    """Converts every docstring that the reference shows."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Convert the docstring of one object."""
        if obj.docstring:
            # Griffe reads examples in a section of this name only.
            obj.docstring.value = to_markdown(re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.M))


def to_markdown(text: str) -> str:
    """Convert roles and formulas; a role of a public name becomes a link to its page."""
    text = MATH_BLOCK.sub(lambda math: to_mathml(math[1], block=True), text)
    return ROLE.sub(lambda role: link_to(role[1]), MATH.sub(lambda math: to_mathml(math[1]), text))


def link_to(path: str) -> str:
    """Return a link to the page of a name, or the name alone if the reference does not have it."""
    name = path.rpartition(".")[2]
    return f"[`{name}`][clipcam_lightning.{name}]" if name in clipcam_lightning.__all__ else f"`{name}`"


def to_mathml(formula: str, *, block: bool = False) -> str:
    """Convert LaTeX to MathML, which browsers draw without a script."""
    mathml = re.sub(r"\s*\n\s*", "", tex2mathml(textwrap.dedent(formula), as_block=block))
    # Docutils centres the index of an accented letter below it.
    return ACCENT.sub(r'<msub><mover accent="true">\1\3</mover>\2</msub>', mathml)
