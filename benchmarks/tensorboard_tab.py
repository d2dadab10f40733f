"""Measure what the CLIP CAM tab of TensorBoard costs: event files, first screen, scrolling, memory of the server.

The benchmark writes a run of 1,024 probes and 200 evaluations on a grid of 14x14 cells, and one of 10,000 probes and 50
evaluations of 7x7 cells, with photographs and random maps. TensorBoard shows each, with each of its loaders, in a
headless Chromium of 1440x900 pixels. The page measures how long after its start no cell in sight waits for its map and,
in each frame while scrolling, how long a cell has waited.

Run it:  python -m benchmarks.tensorboard_tab  (``--quick``: 64 probes and 20 evaluations, writes nothing)
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from time import perf_counter, sleep
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import urlopen

import numpy as np
from PIL import Image
from playwright.sync_api import Browser, Frame, sync_playwright
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table
from safetensors.numpy import load
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from benchmarks.goals import Verdict
from benchmarks.photographs import photographs
from benchmarks.speed import cpu_name, print_verdicts
from clipcam_lightning.sinks.tensorboard_tab import IMAGE_QUALITY, IMAGE_SIDE
from clipcam_lightning.storage.jpeg import encode_jpeg
from clipcam_lightning.tensorboard_tab import events

RESULTS = Path(__file__).with_suffix(".json")
RUNS = ((1024, 200, 14), (10_000, 50, 7))  # probes, evaluations, and cells per side of a map
ROUNDS = 3
NAME = "a-photo-of-thing-{}"
REQUESTS = 1000
SMALL = (50, 100)  # probes and evaluations of the event files whose size is measured
LOADERS = {"fast": "true", "legacy": "false"}  # --load_fast
PACKAGES = ("clipcam-lightning", "tensorboard", "tensorboard-data-server", "playwright")
GOALS = {"first_screen": 2000, "blank": 200, "megabytes": 3.0}

PAINTED = """() => new Promise(done => {
    const check = () => document.querySelector('.cell') && !document.querySelector('.waiting')
        ? done([performance.now(), performance.timeOrigin]) : requestAnimationFrame(check);
    check();
})"""
# Scrolls by some rows in each frame, or to a share of the way, and then rests for some frames. Returns the longest time
# that a row in sight was blank, the slowest frame, and the share of rows that left sight before they were painted.
SCROLL = """([by, frames, rest]) => new Promise(done => {
    const grid = document.querySelector('.grid'), since = new Map(), painted = new Map();
    const [row, head] = ['--row', '--head'].map(name => parseInt(getComputedStyle(grid).getPropertyValue(name)));
    let [left, worst, before, slowest] = [frames + rest, 0, performance.now(), 0];
    const tick = now => {
        slowest = Math.max(slowest, now - before);
        before = now;
        const rows = new Map([...grid.querySelectorAll('.row')].map(node => [node.ariaRowIndex - 2, node]));
        const first = Math.floor(grid.scrollTop / row);
        const last = Math.min(grid.ariaRowCount - 2, Math.floor((grid.scrollTop + grid.clientHeight - head - 1) / row));
        const blank = new Set();
        for (let i = first; i <= last; i++) {
            const node = rows.get(i);
            if (!node || !node.querySelector('.cell') || node.querySelector('.waiting')) blank.add(i);
            painted.set(i, painted.get(i) || !blank.has(i));
        }
        for (const i of since.keys()) if (!blank.has(i)) since.delete(i);
        for (const i of blank) {
            if (!since.has(i)) since.set(i, now);
            worst = Math.max(worst, now - since.get(i));
        }
        if (left-- > rest) grid.scrollTop = by.rows ? grid.scrollTop + by.rows * row : by.to * grid.scrollHeight;
        if (left > 0) requestAnimationFrame(tick);
        else done([worst, slowest, [...painted.values()].filter(was => !was).length / painted.size]);
    };
    requestAnimationFrame(tick);
})"""


@dataclass(frozen=True)
class Result:
    """Measurements of a run with one of TensorBoard's loaders.

    Attributes:
        run: of so many probes and evaluations.
        loader: its name.
        loaded: seconds until TensorBoard has read the run.
        first_screen: milliseconds from the start of the page until everything in sight is painted; median of the
            rounds.
        with_tensorboard: milliseconds from the start of TensorBoard's own page until then; median of the rounds.
        blank: longest time in milliseconds that a row in sight waited for its maps in any round, by way of scrolling.
        slowest_frame: longest time in milliseconds between two frames in any round, by way of scrolling.
        passed_blank: largest share of rows, in any round, that left sight before they were painted, by way of
            scrolling.
        megabytes: the server's memory after loading, after each round, and after ``REQUESTS`` requests for rows.
    """

    run: str
    loader: str
    loaded: float
    first_screen: float
    with_tensorboard: float
    blank: dict[str, float]
    slowest_frame: dict[str, float]
    passed_blank: dict[str, float]
    megabytes: list[float]


def write_run(folder: Path, probes: int, evaluations: int, grid: int) -> float:
    """Write a run as the callback does, and return its size in megabytes."""
    rng = np.random.default_rng(0)
    names = [NAME.format(i) for i in range(probes)]
    writer = EventFileWriter(str(folder))
    start, end = rng.random((2, probes, grid, grid), dtype=np.float32) ** 4
    content = {"epoch": 0, "baseline_step": 0, "alarm": False, "stored_baseline": True, "notes": [], "digest": "0"}
    content |= {"method": "hirescam", "target": "similarity", "layers": ["visual.ln_1"], "grid": [grid, grid]}
    content |= {"reason": "", "states": {}, "baseline_states": {}, "state_words": {}, "grounds": []}
    for evaluation in range(evaluations):
        maps, scale = events.scale_maps(start + (end - start) * evaluation / evaluations)
        metrics = rng.random((probes, len(events.COLUMNS)), dtype=np.float32)
        values_of = dict(zip(events.COLUMNS, metrics.T, strict=True))
        values_of["drift"][:] = evaluation / evaluations * np.linspace(0.1, 1, probes)
        values_of["flagged"][:] = evaluation > evaluations / 2
        values_of["note"][:] = -1
        values_of["scale"][:] = scale
        values = []
        if evaluation == 0:
            described = {"digest": "0", "names": names, "prompts": names, "digests": names}
            values.append(events.json_value(events.tag("clipcam", events.PROBES), described))
            values.append(events.array_value(events.tag("clipcam", events.BASELINE), start))
            values += [
                events.image_value(
                    events.tag("clipcam", events.IMAGE, name), encode_jpeg(Image.fromarray(photo), IMAGE_QUALITY)
                )
                for name, photo in zip(names, photographs(probes, IMAGE_SIDE), strict=True)
            ]
        values += [
            events.array_value(events.tag("clipcam", events.MAP, name), map_)
            for name, map_ in zip(names, maps, strict=True)
        ]
        values.append(events.array_value(events.tag("clipcam", events.METRICS), metrics))
        values.append(events.json_value(events.tag("clipcam", events.EVALUATION), {**content, "epoch": evaluation}))
        writer.add_event(Event(step=10 * evaluation, wall_time=float(evaluation), summary=Summary(value=values)))
    writer.close()
    return sum(file.stat().st_size for file in folder.iterdir()) / 1e6


@contextmanager
def tensorboard(logs: Path, loader: str) -> Iterator[tuple[str, int]]:
    """Start TensorBoard, and yield its address and process id."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logs), "--port", "0", "--host", "127.0.0.1"]
    process = subprocess.Popen(
        [*command, "--load_fast", LOADERS[loader]], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        assert process.stdout is not None
        address = next(match[1] for line in process.stdout if (match := re.search(r"(http://\S+/)", line)))
        yield address, process.pid
    finally:
        process.kill()
        process.wait()


def wait_until_read(address: str, evaluations: int) -> None:
    """Wait until TensorBoard has read all evaluations of the run."""
    while True:
        try:
            with urlopen(f"{address}data/plugin/clipcam/evaluations?run=run&root=clipcam") as response:
                if len(load(response.read())["step"]) == evaluations:
                    return
        except HTTPError:
            pass
        sleep(0.2)


def memory(pid: int) -> float:
    """Return the resident memory of a process and its children, in megabytes."""
    table = subprocess.run(["ps", "-Ao", "pid,ppid,rss"], capture_output=True, text=True, check=True).stdout
    rows = [[int(value) for value in line.split()] for line in table.splitlines()[1:]]
    return sum(size for own, parent, size in rows if pid in (own, parent)) / 1e3


def request_rows(address: str, probes: int) -> None:
    """Send many more requests than the pages did, for eight rows each, all over the run."""
    for i in range(REQUESTS):
        rows = {(i * 37 + j) % probes for j in range(8)}
        query = urlencode([("run", "run"), ("root", "clipcam"), *(("probe", NAME.format(row)) for row in rows)])
        with urlopen(f"{address}data/plugin/clipcam/rows?{query}") as response:
            response.read()


def open_page(browser: Browser, address: str) -> tuple[Frame, float, float]:
    """Open the tab in a new window.

    Returns:
        Its frame, and the milliseconds from the start of the frame and of TensorBoard's page until it was painted.
    """
    page = browser.new_context(viewport={"width": 1440, "height": 900}).new_page()
    page.goto(f"{address}#clipcam", wait_until="commit")
    while not (frames := [frame for frame in page.frames if "plugin_entry" in frame.url]):
        page.wait_for_timeout(5)
    painted, began = frames[0].evaluate(PAINTED)
    return frames[0], painted, began + painted - page.evaluate("performance.timeOrigin")


def scroll(frame: Frame, probes: int) -> dict[str, tuple[float, ...]]:
    """Scroll in several ways, and return for each the longest blank, slowest frame and share of rows passed blank."""
    ways = {
        "a row in four frames": ({"rows": 1 / 4}, 240, 30),
        "a row in two frames": ({"rows": 1 / 2}, min(400, probes), 30),
        "three rows a frame": ({"rows": 3}, min(200, probes // 4), 60),
    }
    measured = {way: tuple(frame.evaluate(SCROLL, how)) for way, how in ways.items()}
    jumps = [frame.evaluate(SCROLL, [{"to": share}, 1, 60]) for share in (0.2, 0.9, 0.05, 0.5, 0.7)]
    return {**measured, "a jump": tuple(map(max, zip(*jumps, strict=True)))}


def measure(browser: Browser, logs: Path, run: str, loader: str, probes: int, evaluations: int) -> Result:
    """Show the run several times with one of TensorBoard's loaders."""
    start = perf_counter()
    with tensorboard(logs, loader) as (address, pid):
        wait_until_read(address, evaluations)
        loaded, megabytes = perf_counter() - start, [memory(pid)]
        times, rounds = [], []
        for _ in range(ROUNDS):
            frame, alone, whole = open_page(browser, address)
            times.append((alone, whole))
            rounds.append(scroll(frame, probes))
            frame.page.context.close()
            megabytes.append(memory(pid))
        request_rows(address, probes)
        megabytes.append(memory(pid))
    return Result(
        run=run,
        loader=loader,
        loaded=loaded,
        first_screen=median(alone for alone, _ in times),
        with_tensorboard=median(whole for _, whole in times),
        blank={way: max(ways[way][0] for ways in rounds) for way in rounds[0]},
        slowest_frame={way: max(ways[way][1] for ways in rounds) for way in rounds[0]},
        passed_blank={way: max(ways[way][2] for ways in rounds) for way in rounds[0]},
        megabytes=megabytes,
    )


def verdicts(results: list[Result], sizes: dict[int, float]) -> list[Verdict]:
    """Compare the measurements with the goals."""
    verdicts = []
    for each in results:
        worst = max(each.blank.values())
        first, blank = GOALS["first_screen"], GOALS["blank"]
        measured = (
            (f"first screen under {first} ms", each.first_screen, first),
            (f"no cell blank for {blank} ms", worst, blank),
        )
        where = f"{each.run}, {each.loader}"
        verdicts += [Verdict(where, goal, f"{value:.0f} ms", value < limit) for goal, value, limit in measured]
    for grid, size in sizes.items():
        where = f"{SMALL[0]} probes, {SMALL[1]} evaluations, {grid}x{grid} cells"
        goal = f"at most {GOALS['megabytes']:g} MB"
        verdicts.append(Verdict(where, goal, f"{size:.2f} MB", size <= GOALS["megabytes"]))
    return verdicts


def print_results(console: Console, results: list[Result], title: str) -> None:
    """Print one row per run and loader."""
    table = Table(title=title, box=MARKDOWN)
    for column in ("run", "loader", "read, s", "first screen, ms", "with TensorBoard's own page", "server, MB"):
        table.add_column(column)
    for way in results[0].blank:
        table.add_column(f"{way}: blank, ms / slowest frame / passed blank")
    for each in results:
        times = f"{each.loaded:.1f}", f"{each.first_screen:.0f}", f"{each.with_tensorboard:.0f}"
        scrolls = [
            f"{each.blank[way]:.0f} / {each.slowest_frame[way]:.0f} / {each.passed_blank[way]:.0%}"
            for way in each.blank
        ]
        table.add_row(each.run, each.loader, *times, " ".join(f"{size:.0f}" for size in each.megabytes), *scrolls)
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small run that checks the benchmark; writes nothing")
    quick = parser.parse_args().quick
    runs = ((64, 20, 14),) if quick else RUNS
    console, results, megabytes = Console(width=160), [], []
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        sizes = {grid: write_run(Path(folder) / f"grid-{grid}", *SMALL, grid) for grid in (7, 14)}
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for probes, evaluations, grid in runs:
            logs, name = Path(folder) / f"logs-{probes}", f"{probes:,} probes x {evaluations} evaluations"
            megabytes.append(write_run(logs / "run", probes, evaluations, grid))
            results += [measure(browser, logs, name, loader, probes, evaluations) for loader in LOADERS]
            shutil.rmtree(logs)
        browser.close()
    print_results(console, results, f"event files: {', '.join(f'{size:.0f}' for size in megabytes)} MB")
    goals = verdicts(results, sizes)
    print_verdicts(console, goals)
    if not quick:
        content = {
            "cpu": cpu_name(),
            "versions": {package: version(package) for package in PACKAGES},
            "runs": [
                {"probes": probes, "evaluations": evaluations, "grid": grid, "megabytes": size}
                for (probes, evaluations, grid), size in zip(runs, megabytes, strict=True)
            ],
            "results": [asdict(each) for each in results],
            "goals": [asdict(goal) for goal in goals],
        }
        RESULTS.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
