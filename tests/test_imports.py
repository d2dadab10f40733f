"""Modules import only what the contracts in pyproject.toml allow, and importing the package is cheap."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "clipcam_lightning"

LAYERS = "Imports point down"
NO_ROOT = "No module imports from the root package"
LIGHTNING = "Only the callback and the shapes world import Lightning"
TAB = "The tab imports neither torch nor Lightning nor the rest of the package"
DRIFT = "Drift works on arrays and files, without a model"
CAM = "The CAM core reads and writes no file but images, and uses no logger"


def broken_contracts(folder: Path) -> set[str]:
    """Run import-linter on the package in a folder and return the names of the contracts that it reports as broken."""
    program = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    linter = subprocess.run(
        [sys.executable, "-c", program, "--no-cache", "--no-logo"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    results = dict(re.findall(r"^(.+?) (KEPT|BROKEN)(?: \(.+\))?$", linter.stdout, flags=re.M))
    assert set(results) == {LAYERS, NO_ROOT, LIGHTNING, TAB, DRIFT, CAM}, linter.stdout + linter.stderr
    return {name for name, result in results.items() if result == "BROKEN"}


@pytest.fixture
def copied_project(tmp_path: Path) -> Path:
    shutil.copytree(PACKAGE, tmp_path / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_package_keeps_every_import_contract() -> None:
    assert broken_contracts(ROOT) == set()


@pytest.mark.parametrize(
    ("module", "statement", "contract"),
    [
        ("drift/metrics.py", "from clipcam_lightning.callback import ClipCamCallback", LAYERS),
        ("drift/metrics.py", "from clipcam_lightning import callback", LAYERS),
        ("drift/metrics.py", "import clipcam_lightning.callback", LAYERS),
        ("errors.py", "from clipcam_lightning.cam.finding import find_clip", LAYERS),
        ("storage/jpeg.py", "from clipcam_lightning.tensorboard_tab import events", LAYERS),
        ("helpers.py", "import math", LAYERS),  # the contract names every module at the root
        ("drift/metrics.py", "from clipcam_lightning import ClipCamCallback", NO_ROOT),
        ("drift/metrics.py", "from lightning import Trainer", LIGHTNING),
        ("drift/metrics.py", "import lightning.pytorch", LIGHTNING),
        ("training/session.py", "from lightning.pytorch import Trainer", LIGHTNING),
        ("sinks/files.py", "from pytorch_lightning.loggers import Logger", LIGHTNING),
        ("tensorboard_tab/runs.py", "import torch", TAB),
        ("tensorboard_tab/runs.py", "from clipcam_lightning.errors import ClipCamError", TAB),
        ("drift/metrics.py", "from clipcam_lightning.cam.explain import explain", DRIFT),
        ("drift/metrics.py", "from clipcam_lightning.probes.probe import Probe", DRIFT),
        ("drift/metrics.py", "import open_clip", DRIFT),
        ("cam/fuse.py", "from pathlib import Path", CAM),
        ("cam/fuse.py", "from safetensors.torch import load_file", CAM),
        ("cam/fuse.py", "from tensorboard.compat.proto.summary_pb2 import Summary", CAM),
        ("cam/fuse.py", "import rich.console", CAM),
    ],
)
def test_an_import_that_a_contract_forbids_is_reported(
    copied_project: Path, module: str, statement: str, contract: str
) -> None:
    with (copied_project / PACKAGE.name / module).open("a") as file:
        file.write(f"{statement}\n")
    assert contract in broken_contracts(copied_project)


def test_only_entry_points_stand_at_the_root_of_the_package() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= 6


def test_importing_the_package_imports_neither_torch_nor_lightning() -> None:
    program = "import sys, clipcam_lightning; print({'torch', 'lightning', 'numpy', 'open_clip'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
