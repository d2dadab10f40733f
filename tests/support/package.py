"""The package as a package index gets it: built, and installed from the wheel."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def build(kind: str, folder: Path) -> Path:
    """Build the ``"wheel"`` or the ``"sdist"`` of the working tree into ``folder``."""
    command = [sys.executable, "-m", "build", "--no-isolation", f"--{kind}", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, capture_output=True, text=True, check=True)
    (file,) = folder.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return file


def install(wheel: Path, folder: Path) -> None:
    """Unpack a wheel into ``folder``; its requirements are those of the environment."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), str(wheel)]
    subprocess.run(command, capture_output=True, text=True, check=True)
