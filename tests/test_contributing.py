"""The how-tos of CONTRIBUTING.md work as they are written, on a copy of the repository."""

import os
import re
import shlex
import shutil
from pathlib import Path

import pytest

from tests.support.warm_python import run_module

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", CONTRIBUTING, flags=re.M | re.S))
HOW_TOS = ["Add a CAM method", "Add a tower", "Add a sink", "Add a command"]
# The paragraph before a block names its file, the first one with an extension.
BLOCK = re.compile(r"((?:[^\n`][^\n]*\n)*)\n?^```(python|diff|sh)\n(.*?)^```$", flags=re.M | re.S)
FILE = re.compile(r"`([\w/]+\.py)`")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A copy of what a clone has."""
    for name in ("benchmarks", "clipcam_lightning", "tests", "pyproject.toml"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tmp_path / name)
    return tmp_path


def apply_diff(file: Path, diff: str) -> None:
    """Apply a diff whose hunks stand apart by lines of ``@@``; each must have exactly one place in the file."""
    text = file.read_text()
    for hunk in re.split(r"^@@\n", diff, flags=re.M):
        lines = hunk.splitlines(keepends=True)
        old, new = ("".join(line[1:] for line in lines if line[0] in kept) for kept in (" -", " +"))
        assert text.count(old) == 1, f"{file} has {text.count(old)} places for\n{hunk}"
        text = text.replace(old, new)
    file.write_text(text)


def run(repository: Path, module: str, *arguments: str) -> str:
    """Run a module in the copy and return what it printed; it must succeed."""
    env = {**os.environ, "PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"}
    process = run_module(module, *arguments, cwd=repository, env=env, timeout=900)
    assert process.returncode == 0, f"{module} {shlex.join(arguments)}\n{process.stdout}\n{process.stderr}"
    return process.stdout


def run_in_environment(repository: Path, line: str) -> str:
    """Run a line of a block, such as ``.venv/bin/pytest tests``, in the environment of this test."""
    program, *arguments = shlex.split(line)
    assert program == ".venv/bin/pytest"
    # What is imported already cannot be rewritten, which pytest warns of.
    return run(repository, "pytest", "-W", "ignore::pytest.PytestAssertRewriteWarning", *arguments)


def blocks(title: str) -> list[tuple[str, str, str]]:
    """Of each block of a section: the paragraph before it, its language, its text."""
    matches = BLOCK.findall(SECTIONS[title])
    assert 2 * len(matches) == len(re.findall("^```", SECTIONS[title], flags=re.M))
    return matches


@pytest.mark.parametrize("title", HOW_TOS)
def test_a_how_to_does_what_it_says(title: str, repository: Path) -> None:
    commands = []
    for paragraph, language, text in blocks(title):
        if language == "sh":
            commands += text.splitlines()
            continue
        file = repository / FILE.findall(paragraph)[0]
        if language == "diff":
            apply_diff(file, text)
        else:
            assert not file.exists()
            file.write_text(text)

    run(repository, "ruff", "check", ".")
    run(repository, "ruff", "format", "--check", ".")
    assert commands
    for command in commands:
        assert re.search(r"\d+ passed", run_in_environment(repository, command))


def test_the_example_of_a_single_case_selects_one_model_and_one_method(repository: Path) -> None:
    (command,) = (text.strip() for _, language, text in BLOCK.findall(SECTIONS["Set up"]) if language == "sh")

    output = run_in_environment(repository, f"{command} --collect-only --quiet")

    assert set(re.findall(r"\[(.+)\]$", output, flags=re.M)) == {"resnet-layercam"}
