"""Tell whether the code changed that a stored result comes from."""

import ast
import hashlib
from collections.abc import Iterable
from pathlib import Path


def hash_sources(files: Iterable[Path]) -> str:
    """Hash code, without its comments, docstrings and layout."""
    trees = [ast.parse(file.read_text()) for file in sorted(files)]
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [each for each in node.body if not _is_text(each)]
    return hashlib.sha256("".join(map(ast.dump, trees)).encode()).hexdigest()[:12]


def _is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
