"""Run all benchmarks one after the other, and go on where an earlier run stopped.

Run it: python -m benchmarks  (``--list`` says how long each takes; ``--again`` begins anew)
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from time import perf_counter

from rich.console import Console
from rich.table import Table

BENCHMARKS = (
    "gallery", "coverage", "overhead", "scale", "tensorboard_tab", "ranks", "speed", "larger_images", "localisation",
    "default_maps", "map_agreement", "method_ranking", "drift_detection", "boxes",
)  # fmt: skip
MINUTES = Path(__file__).with_name("minutes.json")  # of each benchmark, when it last ran to its end
FINISHED = Path(__file__).with_name(".finished.json")  # those of the round that is under way


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="say how long each takes, and run nothing")
    parser.add_argument("--again", action="store_true", help="run those that are finished, too")
    options = parser.parse_args()

    console = Console(highlight=False)
    if options.again:
        FINISHED.unlink(missing_ok=True)
    finished = read(FINISHED)
    print_plan(console, finished)
    if options.list:
        return
    for name in BENCHMARKS:
        if name in finished:
            continue
        console.print(f"\n[bold]benchmarks.{name}[/bold]")
        start = perf_counter()
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}"]).returncode:
            sys.exit(f"benchmarks.{name} failed; python -m benchmarks goes on with it.")
        finished[name] = round((perf_counter() - start) / 60, 1)
        FINISHED.write_text(json.dumps(finished))
        MINUTES.write_text(json.dumps(read(MINUTES) | finished, indent=2, sort_keys=True) + "\n")
    FINISHED.unlink()


def read(file: Path) -> dict[str, float]:
    """Read minutes by benchmark; empty without file."""
    return dict(json.loads(file.read_text())) if file.exists() else {}


def print_plan(console: Console, finished: dict[str, float]) -> None:
    """Print a table of the benchmarks, how long each took last time, and which are finished."""
    minutes = read(MINUTES)
    table = Table()
    for column in ("benchmark", "minutes, last time", "this round"):
        table.add_column(column)
    for name in BENCHMARKS:
        known = f"{minutes[name]:g}" if name in minutes else "not timed"
        table.add_row(name, known, "finished" if name in finished else "")
    console.print(table)


if __name__ == "__main__":
    main()
