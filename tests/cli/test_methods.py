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
    assert first_lines["gradcam"] == ["anything", "3", METHODS["gradcam"].source]
    assert first_lines["rollout"][:2] == ["attention", "1"]
    assert first_lines["scorecam"][1] == "1 + 1 per channel"
