"""Every public name resolves, has a complete docstring, and its examples run."""

import ast
import doctest
import inspect
import re
from enum import Enum
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import clipcam_lightning
from clipcam_lightning.cam import explain, finding

NAMES = clipcam_lightning.__all__
MODULES = clipcam_lightning._NAMES  # public names by module


def read_section(docstring: str, title: str) -> str:
    """Return the indented lines below ``title:``; empty without such a section."""
    match = re.search(rf"^{title}:\n((?:    .*\n|\n)*)", f"{docstring}\n", flags=re.M)
    return match[1] if match else ""


def read_names(docstring: str, title: str) -> set[str]:
    """Return the names that a section describes: one or several at the start of a line, before a colon."""
    heads = re.findall(r"^    (\*{0,2}\w+(?:, \w+)*)(?: \(.*?\))?:", read_section(docstring, title), flags=re.M)
    return {name.lstrip("*") for head in heads for name in head.split(", ")}


def list_parameters(value: Any) -> set[str]:
    """List the parameters of a function or class, or the members of an enum; none of an abstract class."""
    if inspect.isclass(value) and (inspect.isabstract(value) or getattr(value, "_is_protocol", False)):
        return set()
    if inspect.isclass(value) and issubclass(value, Enum):
        return set(value.__members__)
    return set(inspect.signature(value).parameters)


def list_missing_parts(name: str) -> list[str]:
    """List what the docstring of a public name lacks."""
    value = getattr(clipcam_lightning, name)
    if not (inspect.isclass(value) or inspect.isroutine(value)):
        return [] if read_comment_below(name) else ["docstring"]
    docstring = inspect.cleandoc(value.__doc__ or "")
    if not docstring:
        return ["docstring"]
    if inspect.isclass(value) and issubclass(value, BaseException):
        return []
    missing = []
    undescribed = list_parameters(value) - read_names(docstring, "Args") - read_names(docstring, "Attributes")
    if undescribed:
        missing.append(f"Args or Attributes: {', '.join(sorted(undescribed))}")
    if inspect.isroutine(value) and not read_section(docstring, "Returns"):
        missing.append("Returns")
    if not re.search(r"^Example:\n.*?^    +>>> ", docstring, flags=re.M | re.S):
        missing.append("Example")
    return missing


def read_comment_below(name: str) -> str:
    """Return the string below the assignment of a public constant, which documentation tools read."""
    module = import_module(f"clipcam_lightning.{clipcam_lightning._MODULES[name]}")
    body = ast.parse(Path(str(module.__file__)).read_text()).body
    for statement, below in pairwise(body):
        targets = [statement.target] if isinstance(statement, ast.AnnAssign) else getattr(statement, "targets", [])
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            is_text = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
            return str(below.value.value) if is_text else ""  # type: ignore[attr-defined]
    return ""


def collect_examples(module: ModuleType) -> list[doctest.DocTest]:
    """Collect the doctests of a module: its own, and those of the functions and classes that it defines."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    # One object at a time: in a whole module, doctest skips functions with a decorator, such as the shape checks.
    objects = [
        value
        for value in vars(module).values()
        if (inspect.isclass(value) or inspect.isroutine(value)) and value.__module__ == module.__name__
    ]
    tests = [test for value in objects for test in finder.find(value, value.__name__, False, dict(vars(module)))]
    tests += doctest.DocTestFinder(recurse=False).find(module, module.__name__)
    return [test for test in tests if test.examples]


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_resolves(name: str) -> None:
    assert getattr(clipcam_lightning, name) is not None
    assert name in dir(clipcam_lightning)


def test_the_public_names_are_those_that_type_checkers_see() -> None:
    tree = ast.parse(Path(str(clipcam_lightning.__file__)).read_text())
    imports = [
        (statement.module, alias.name, alias.asname)
        for block in tree.body
        if isinstance(block, ast.If)
        for statement in block.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    ]

    assert imports == [(f"clipcam_lightning.{module}", name, name) for module in MODULES for name in MODULES[module]]
    assert len(NAMES) == len(set(NAMES))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'clipcam_lightning' has no attribute 'ClipCam'"):
        _ = clipcam_lightning.ClipCam


@pytest.mark.parametrize("name", NAMES)
def test_a_public_object_is_documented(name: str) -> None:
    assert not list_missing_parts(name), f"the docstring of {name} lacks {'; '.join(list_missing_parts(name))}"


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("module", MODULES)
def test_the_examples_of_a_public_module_run(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    values = [getattr(clipcam_lightning, name) for name in MODULES[module]]
    defining_modules = {value.__module__ for value in values if hasattr(value, "__module__")}
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    output: list[str] = []
    for name in defining_modules:
        for test in collect_examples(import_module(name)):
            runner.run(test, out=output.append)
    assert not runner.failures, "".join(output)


def test_examples_of_functions_with_decorators_are_collected() -> None:
    names = {test.name for module in (explain, finding) for test in collect_examples(module)}
    assert {"explain", "find_clip", "ModelSpec"} <= names
