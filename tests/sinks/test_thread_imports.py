"""No background thread imports a module: a dataloader that forks at that moment would leave its workers hanging."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.loggers import LOGGERS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys, threading
from pathlib import Path
from tests.support.loggers import LOGGERS, make_alarming_callback
from tests.support.modules import FineTuning, fit

imported = set()

class Recorder:
    def find_spec(self, name, path=None, target=None):
        if threading.current_thread().name == "clipcam":
            imported.add(name)

sys.meta_path.insert(0, Recorder())
kind, folder = sys.argv[1], Path(sys.argv[2])
fit(FineTuning(), folder, make_alarming_callback(), logger=LOGGERS[kind](folder), default_root_dir=folder)
print("imported:", sorted(imported))
"""


@pytest.mark.parametrize("kind", LOGGERS)
def test_all_modules_are_imported_before_the_training_begins(kind: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WANDB_SILENT": "true"}
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, kind, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("imported:"))
    assert line == "imported: []"
