"""What a package index gets: metadata that it accepts, and every file that is needed or named."""

import re
import subprocess
import sys
import tarfile
from importlib.metadata import distribution
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement

from tests.support.package import ROOT, build

pytestmark = pytest.mark.slow
REPOSITORY = (
    r"https://(?:github\.com|raw\.githubusercontent\.com)/clipcam-lightning/clipcam-lightning/(?:blob/|tree/)?main/"
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("sdist", tmp_path_factory.mktemp("sdist"))


def test_a_package_index_accepts_the_metadata_and_the_readme(wheel: Path, sdist: Path) -> None:
    command = [sys.executable, "-m", "twine", "check", "--strict", str(wheel), str(sdist)]
    checked = subprocess.run(command, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert checked.stdout.count("PASSED") == 2


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs the repository, to know its files")
def test_the_wheel_holds_every_tracked_file_of_the_package_and_nothing_else(wheel: Path) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "clipcam_lightning"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    files = {name for name in ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert files == set(listed.stdout.splitlines())


def test_the_sdist_holds_every_file_that_the_readme_names(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        files = {name.partition("/")[2] for name in archive.getnames()}
    named = set(re.findall(REPOSITORY + r"([^)\s]+)", (ROOT / "README.md").read_text()))
    assert len(named) >= 6
    assert {
        name for name in named if name not in files and not any(file.startswith(f"{name}/") for file in files)
    } == set()


def test_the_readme_has_no_relative_link_that_a_package_index_could_not_follow() -> None:
    links = re.findall(r"\]\(([^)]+)\)", (ROOT / "README.md").read_text())
    assert [link for link in links if not link.startswith(("https://", "#"))] == []


@pytest.mark.parametrize("extra", ["wandb", "mlflow", "comet", "notebook", "video", "docs", "test", "all"])
def test_what_an_extra_needs_is_installed_together(extra: str) -> None:
    package = distribution("clipcam-lightning")
    assert extra in package.metadata.get_all("Provides-Extra", [])
    requirements = [Requirement(text) for text in package.requires or []]
    needed = [each for each in requirements if each.marker is not None and each.marker.evaluate({"extra": extra})]
    assert needed
    for each in needed:
        if each.name != "clipcam-lightning":
            assert each.specifier.contains(distribution(each.name).version, prereleases=True), str(each)
