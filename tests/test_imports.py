"""The house: imports point down, files stay small, importing the package is cheap."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import clipcam_lightning

PACKAGE = Path(clipcam_lightning.__file__).parent
LAYERS = [
    {"errors", "colors", "jpeg", "tab_events"},
    {"checks"},
    {"cam", "tensorfile"},
    {"metrics", "memory", "probe", "probe_folder", "probe_batch"},
    {"probes", "prompts", "ranks"},
    {"snapshot", "confusion", "noise"},
    {"drift_rule"},
    {"drift"},
    {"render"},
    {"evaluation"},
    {"monitor", "report"},
    {"sinks", "fit_checks"},
    {"session"},
    {"callback", "checkpoints", "pytest_plugin"},
    {"shapes_world", "tensorboard_tab"},
    {"cli"},
    {"__main__"},
    {"__init__"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
FILES = sorted(PACKAGE.rglob("*.py"))
PAGE = sorted(PACKAGE.rglob("*.js"))


def imported(path: Path) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            modules.add(node.module or "")
        elif isinstance(node, ast.Import):
            modules |= {name.name for name in node.names}
    return modules


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    here = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for module in imported(path):
        if module.startswith("clipcam_lightning."):
            target = module.split(".")[1]
            assert target == here or RANK[target] < RANK[here], f"{here} must not import {target}"


def test_only_the_callback_and_the_shapes_world_know_lightning() -> None:
    knowing = {path.relative_to(PACKAGE).parts[0] for path in FILES if any("lightning.py" in m for m in imported(path))}
    assert knowing <= {"callback.py", "shapes_world"}


def test_the_core_knows_no_logger_and_no_file() -> None:
    core = set().union(*(imported(path) for path in FILES if "cam" in path.relative_to(PACKAGE).parts))
    assert not {module.split(".")[0] for module in core} & {
        "tensorboard",
        "lightning",
        "pathlib",
        "safetensors",
        "rich",
    }


@pytest.mark.parametrize("path", [*FILES, *PAGE], ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_stay_readable(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 325


def test_importing_the_package_imports_neither_torch_nor_lightning() -> None:
    program = "import sys, clipcam_lightning; print({'torch', 'lightning', 'numpy', 'open_clip'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_every_public_name_resolves_and_is_documented() -> None:
    assert sorted(clipcam_lightning.__all__) == sorted(clipcam_lightning._HOME)
    for name in clipcam_lightning.__all__:
        assert getattr(clipcam_lightning, name) is not None
        assert name in dir(clipcam_lightning)
    with pytest.raises(AttributeError, match="no attribute 'ClipCam'"):
        _ = clipcam_lightning.ClipCam
