"""Fill in what pages take from the code: the help of each command, and formula, cost and paper of each CAM method.

A page holds ``<!-- commands -->`` where the help of all commands belongs, and ``<!-- method NAME -->`` where a method
of the gallery belongs.
"""

import io
import os
import re
import sys
from contextlib import redirect_stdout, suppress
from inspect import cleandoc
from pathlib import Path
from typing import Any

from clipcam_lightning.cam.methods import METHODS
from clipcam_lightning.cli.methods import FITS
from clipcam_lightning.cli.parser import parse_arguments

sys.path.insert(0, str(Path(__file__).parent))  # MkDocs loads this file by its path

from docstrings import MATH_BLOCK, to_markdown

COLUMNS = "80"  # of the help


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the marks of a page."""
    markdown = re.sub("<!-- commands -->", lambda _mark: describe_commands(), markdown)
    return re.sub(r"<!-- method (\w+) -->", lambda mark: describe_method(mark[1]), markdown)


def describe_commands() -> str:
    """Return one section per command with its help, as the parser prints it."""
    names = re.findall(r"^    (\w+) ", print_help().partition("  COMMAND\n")[2], flags=re.M)
    return "\n".join(f"## clipcam {name}\n\n```text\n{print_help(name)}```\n" for name in names)


def print_help(*command: str) -> str:
    """Return what ``clipcam [COMMAND] --help`` prints."""
    before, os.environ["COLUMNS"] = os.environ.get("COLUMNS"), COLUMNS
    with redirect_stdout(io.StringIO()) as output, suppress(SystemExit):
        parse_arguments([*command, "--help"])
    del os.environ["COLUMNS"]
    if before is not None:
        os.environ["COLUMNS"] = before
    return output.getvalue()


def describe_method(name: str) -> str:
    """Return the first line, maps, formula, towers, cost and paper of a method."""
    method = METHODS[name]
    docstring = cleandoc(method.function.__doc__ or "")
    formula = MATH_BLOCK.search(docstring)
    rows = (
        ("Fits", FITS[method.needs]),
        ("Cost", f"{method.cost} forwards per map, at most"),
        ("Source", re.sub(r"(https://[^\s,;]+[^\s,;.])", r"<\1>", method.source)),
    )
    parts = (
        docstring.partition("\n")[0],
        f"![Maps of {name}](gallery/{name}.jpg)",
        formula[0] if formula else "",
        "\n".join(f"- **{title}:** {text}" for title, text in rows),
    )
    return to_markdown("\n\n".join(filter(None, parts)))
