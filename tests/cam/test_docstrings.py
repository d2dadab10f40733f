"""The examples in the docstrings of the CAM core run and print what they say."""

import doctest
import pkgutil
from importlib import import_module

import pytest

import clipcam_lightning.cam

MODULES = [module.name for module in pkgutil.walk_packages(clipcam_lightning.cam.__path__, "clipcam_lightning.cam.")]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_run(name: str) -> None:
    results = doctest.testmod(import_module(name))

    assert results.failed == 0
