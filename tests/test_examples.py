"""The examples run as they are."""

import os
import re
from pathlib import Path

import pytest

from tests.support.warm_python import Program, run_together

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[1] / "examples"


def output_of(example: str, folder: Path) -> str:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    (done,) = run_together([Program(EXAMPLES / example, (), folder, env)], timeout=600)
    assert done.returncode == 0, done.stderr
    assert not list(folder.iterdir()), "an example that only shows something leaves no file behind"
    return done.stdout


def test_a_tower_of_one_s_own_finds_the_corner_that_matters(tmp_path: Path) -> None:
    output = output_of("add_a_tower.py", tmp_path)

    for method in ("gradcam", "hirescam", "scorecam"):
        (map_,) = re.findall(rf"^{method}\ntensor\((.*?)\)", output, flags=re.S | re.M)
        rows = [[float(value) for value in re.findall(r"[\d.]+", row)] for row in map_.split("],")]
        assert [len(row) for row in rows] == [6] * 4
        assert rows[3][0] == max(map(max, rows)) == 1


def test_methods_of_one_s_own_are_drawn_on_the_grid_of_the_model(tmp_path: Path) -> None:
    output = output_of("add_a_method.py", tmp_path)

    drawn = dict(re.findall(r"^(\w+) of '[^']+'\n((?:[ ░▒▓█]{16}\n){8})", output, flags=re.M))
    assert drawn.keys() == {"sensitivity", "last_attention"}
    assert all("█" in drawing for drawing in drawn.values())
    assert drawn["sensitivity"] != drawn["last_attention"]


def test_a_training_stops_on_drift_and_keeps_the_weights_with_the_most_energy_on_objects(tmp_path: Path) -> None:
    output = output_of("stop_and_keep_best.py", tmp_path)

    ((stopped, drift),) = re.findall(r"^stopped in epoch (\d+): mean drift ([\d.]+)$", output, flags=re.M)
    ((kept, energy),) = re.findall(
        r"^kept \S+epoch=(\d+)-step=\d+\.ckpt: energy on the objects ([\d.]+)$", output, flags=re.M
    )
    assert int(stopped) < 7  # 0 was measured
    assert float(drift) >= 0.15  # two digits of a drift above 0.15
    assert int(kept) <= int(stopped)
    assert float(energy) > 0.5  # 0.77


@pytest.mark.parametrize("name", ["a_pytorch_loop", "fabric", "open_clip_training", "transformers_trainer"])
def test_a_training_without_lightning_is_monitored(name: str, tmp_path: Path) -> None:
    output = output_of(f"monitor_{name}.py", tmp_path)

    assert re.search(r"^no alarm at step 8; mean drift 0\.0", output, flags=re.M)
    assert re.search(r"^no alarm at step 16; mean drift 0\.0", output, flags=re.M)


def test_a_sink_of_one_s_own_fills_a_database(tmp_path: Path) -> None:
    output = output_of("add_a_sink.py", tmp_path)

    lines = re.findall(r"^step (\d+): [\w-]+ drifted by (\d\.\d\d)$", output, flags=re.M)
    assert len(lines) == 3
    assert float(lines[0][1]) >= float(lines[1][1]) > 0
