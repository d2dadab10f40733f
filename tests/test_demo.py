"""The demo tells its story on real output."""

import re
import subprocess
import sys
from pathlib import Path

import open_clip
from PIL import Image


def test_accuracy_stays_high_while_attention_goes_to_the_stamp(shapes_vit: open_clip.CLIP, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "clipcam_lightning", "demo"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=400,
        check=True,
    )

    def figures(line: str) -> list[float]:
        (found,) = re.findall(rf"^{line}(.*)$", done.stdout, flags=re.M)
        return [float(number) for number in re.findall(r"\d\.\d+", found)]

    assert figures("retrieval accuracy with stamp")[0] > 0.95
    assert figures("  the same pictures without stamp")[0] < 0.5
    assert figures("  with the stamp of another caption")[0] < 0.5
    before, now = figures("energy on the stamp")
    assert now > 2 * before
    rows = re.findall(r"│ (\S+) +│[^│]+│ +([\d.]+) │ +([\d.]+) -> ([\d.]+) │ (drifted)? *│", done.stdout)
    assert len(rows) == 8
    assert sum(float(row[3]) for row in rows) < 0.75 * sum(float(row[2]) for row in rows), "energy leaves the objects"
    alarmed = {row[0] for row in rows if row[4]}
    assert len(alarmed) >= 4
    warned = re.findall(r"attention drifted on (\d) of 8 probes at step (\d+) [^:]*: step 0\): (.*)", done.stderr)
    assert [step for _, step, _ in warned] == ["40", "80", "120", "160"][-len(warned) :]
    assert int(warned[-1][0]) == len(alarmed)
    named = set(re.findall(r"([a-z0-9-]+): attention gathers where it does in the other pictures", warned[-1][2]))
    assert named
    assert named <= alarmed

    (sheet,) = re.findall(r"contact sheet: (\S+)", done.stdout)
    with Image.open(tmp_path / sheet) as picture:
        assert min(picture.size) > 600
    assert re.search(r"tensorboard --logdir \S+", done.stdout)
