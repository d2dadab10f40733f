"""The demo, run from the wheel, tells its story on real output."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Browser, expect

from tests.support.boards import tensorboard, wait_for
from tests.support.package import build, install
from tests.support.tab_page import Tab

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Demo:
    """What the demo wrote where it ran, and what it said."""

    folder: Path
    stdout: str
    stderr: str

    @property
    def flagged(self) -> set[str]:
        """Probes that are flagged at the last evaluation."""
        return set(re.findall(r"│ (\S+) +│.*│ its background predicts the prompt *│", self.stdout))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    folder, installed = tmp_path_factory.mktemp("demo"), tmp_path_factory.mktemp("installed")
    install(build("wheel", tmp_path_factory.mktemp("wheel")), installed)
    order = [sys.executable, "-m", "clipcam_lightning", "demo"]
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    ran = subprocess.run(order, cwd=folder, env=environment, capture_output=True, text=True, timeout=900, check=True)
    assert str(installed / "clipcam_lightning") in ran.stderr, "warnings name the file that they are from"
    return Demo(folder, ran.stdout, ran.stderr)


def test_accuracy_stays_high_while_attention_goes_to_the_stamp(done: Demo) -> None:
    """Numbers in comments were measured; threads and vector instructions change drift by 1e-4."""

    def metrics(line: str) -> list[float]:
        (found,) = re.findall(rf"^│ {line}(.*)│$", done.stdout, flags=re.M)
        return [float(number) for number in re.findall(r"\d\.\d+", found)]

    assert metrics("retrieval accuracy with stamp")[0] > 0.95  # 0.98
    assert metrics("  the same images without stamp")[0] < 0.5  # 0.14
    assert metrics("  with the stamp of another caption")[0] < 0.5  # 0.06
    before, now = metrics("energy of the maps on the stamp")
    assert now > 2 * before  # 0.06 -> 0.31
    rows = re.findall(r"│ (\S+) +│[^│]+│ +([\d.]+) │ +([\d.]+) -> ([\d.]+) │ [^│]+│", done.stdout)
    assert len(rows) == 8
    assert sum(float(row[3]) for row in rows) < 0.85 * sum(float(row[2]) for row in rows), "energy leaves the objects"
    flagged = done.flagged  # 0.77 of the energy is left
    assert len(flagged) >= 4  # 6
    assert [row[0] for row in rows[: len(flagged)]] == [row[0] for row in rows if row[0] in flagged], "flagged first"
    shown = re.findall(
        r"the background predicts the prompt at step (\d+) \(baseline: step 0\): (\d+) of 48 other objects now get "
        r"the prompt of the background they are pasted on \((\d) before\)\. Flagged: (.*)\. Report: (.*)\.",
        done.stderr,
    )
    assert len(shown) == 1, "what goes on is not said again"
    assert shown[0][0] == "80"
    assert int(shown[0][1]) >= 10  # 16
    assert int(shown[0][2]) <= 2  # 1
    named = set(re.findall(r"[a-z]+(?:-[a-z0-9]+){2,}", shown[0][3]))
    assert named
    assert named <= flagged
    assert "What other objects are called" in (done.folder / shown[0][4]).read_text()


def test_the_demo_prints_a_line_per_evaluation_and_ends_with_the_alarm_and_where_to_look(done: Demo) -> None:
    lines = re.findall(r"^step (\d+) of 160: accuracy [\d.]+, \d of 8 probes flagged(, ALARM)?$", done.stdout, re.M)
    assert [step for step, _ in lines] == ["40", "80", "120", "160"]
    assert [bool(alarm) for _, alarm in lines] == [False, True, True, True]
    assert re.search(r"ALARM: the background predicts the prompt: \d+ of 48 other objects", done.stdout)
    (report,) = re.findall(r"^What each map looked at, before and now: +(\S+)$", done.stdout, re.M)
    assert "What the flagged maps look at" in (done.folder / report).read_text()
    (sheet,) = re.findall(r"^All maps of all steps in one image: +(\S+)$", done.stdout, re.M)
    with Image.open(done.folder / sheet) as image:
        assert min(image.size) > 600
    assert re.search(r"tensorboard --logdir \S+", done.stdout)


@pytest.mark.parametrize("load_fast", ["false", "true"])
def test_the_tab_shows_what_the_demo_says(done: Demo, browser: Browser, load_fast: str) -> None:
    drift = dict(re.findall(r"│ (\S+) +│[^│]+│ +([\d.]+) │", done.stdout))
    worst = max(drift, key=lambda name: float(drift[name]))
    with tensorboard("--logdir", done.folder / "clipcam_demo", f"--load_fast={load_fast}") as url:
        wait_for(url, "stamped/version_0", [0, 40, 80, 120, 160])
        with Tab(browser, url, viewport={"width": 1500, "height": 1500}) as tab:
            tab.open(size=96)
            expect(tab.headline).to_contain_text(f"{len(done.flagged)} of 8 probes are flagged")
            expect(tab.headline).to_contain_text(f"{worst} moved most: drift {drift[worst]}")
            expect(tab.headline).to_contain_text("to the bottom right")  # where the stamp is
            assert tab.order()[0] == max(done.flagged, key=lambda name: float(drift[name]))
            last = [label for label in tab.labels() if "step 160" in label]
            assert {label.split(",")[0] for label in last if label.endswith(", flagged")} == done.flagged
            assert {label.split(",")[0]: label.split("drift ")[1][:4] for label in last} == drift
            assert tab.noise == []
