"""The public names: each resolves, is documented, and its example runs."""

import ast
import doctest
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import clipcam_lightning

PUBLIC = {name: getattr(clipcam_lightning, name) for name in clipcam_lightning.__all__}
ERRORS = {name for name, each in PUBLIC.items() if inspect.isclass(each) and issubclass(each, Exception | Warning)}
DOCUMENTED = {name: each for name, each in PUBLIC.items() if name not in ERRORS | {"METHODS"}}


def test_every_public_name_is_listed_by_dir() -> None:
    assert set(PUBLIC) <= set(dir(clipcam_lightning))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'ClipCam'"):
        _ = clipcam_lightning.ClipCam


def test_type_checkers_see_the_names_that_are_resolved_lazily() -> None:
    tree = ast.parse(Path(clipcam_lightning.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    imported = {
        alias.asname: str(node.module).removeprefix("clipcam_lightning.")
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert imported == clipcam_lightning._MODULE_OF


@pytest.mark.parametrize("name", DOCUMENTED)
def test_a_public_object_documents_its_parameters_and_its_result(name: str) -> None:
    each = DOCUMENTED[name]
    text = inspect.getdoc(each) or ""
    parameters = own_parameters(each)
    if len(parameters) > 1:
        assert "Args:" in text or "Attributes:" in text
    for parameter in parameters:
        assert f"{parameter}:" in text or f"{parameter}," in text, f"{parameter} is not described"
    if inspect.isfunction(each):
        assert "Returns:" in text
        assert inspect.signature(each).return_annotation is not inspect.Signature.empty


@pytest.mark.parametrize("name", DOCUMENTED)
def test_the_example_of_a_public_object_runs(name: str, unchecked: None) -> None:
    finder = doctest.DocTestFinder(recurse=False)
    examples = [test for test in finder.find(DOCUMENTED[name], name) if test.examples]
    assert examples, f"{name} has no example"
    for example in examples:
        assert doctest.DocTestRunner().run(example).failed == 0


def own_parameters(each: Callable[..., Any]) -> list[str]:
    if inspect.isclass(each) and getattr(each, "_is_protocol", False):
        return []
    return [name for name in inspect.signature(each).parameters if name not in ("self", "args", "kwargs")]
