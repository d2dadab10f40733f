"""``clipcam methods`` lists what each method fits, costs and is based on."""

from pathlib import Path

import pytest

from clipcam_lightning.cam.methods import METHODS
from tests.support.shell import run_clipcam

pytestmark = pytest.mark.slow


def test_every_method_is_listed_with_its_tower_cost_and_paper(tmp_path: Path) -> None:
    process = run_clipcam(tmp_path, "methods")

    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in process.stdout.splitlines() if "│" in line]
    first_lines = {row[0]: row[1:] for row in rows if row[0]}
    assert (process.returncode, process.stderr) == (0, "")
    assert [*first_lines] == [*METHODS]
    assert first_lines["gradcam"] == ["every tower", "3", "Selvaraju et al. 2017, eqs. 1-2, arXiv:1610.02391"]
    assert first_lines["rollout"][:2] == ["ViTs, attention pools", "1"]
    assert first_lines["scorecam"][1] == "1 + 1 per channel"
