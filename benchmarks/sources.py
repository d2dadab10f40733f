"""Tell whether the code changed that a stored result comes from."""

import ast
import hashlib
from collections.abc import Iterable
from pathlib import Path


def hash_sources(files: Iterable[Path]) -> str:
    """Hash code, without its comments and layout."""
    sources = [ast.dump(ast.parse(file.read_text())) for file in sorted(files)]
    return hashlib.sha256("".join(sources).encode()).hexdigest()[:12]
