"""Does the alarm need exact masks, or do boxes around the objects do?

The fine-tunings of one reported seed of benchmarks.drift_detection are watched by the same probes with the box of each
object in place of its mask. They are trained anew, and the table compares them with the stored scores of the same
fine-tunings with masks and without either. A model close to the limit of what counts as use may lie on its other side.

Run it: python -m benchmarks.boxes --runs DIR  (half an hour on two cores; what is in DIR already is not trained again)
"""

import argparse
import json
import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from rich.box import MARKDOWN
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.cued_images import Drawn, Masks
from benchmarks.drift_detection import Verdict, finite, verdict
from benchmarks.drift_runs import PROCESSES, USUAL, Run, observe_run, read_scores, score
from benchmarks.finetunes import FineTune, ProbeChoice, all_runs

RESULTS = Path(__file__).with_suffix(".json")
TOWER, SEED = "class token", 2000
PROBES = (ProbeChoice(16), USUAL)
GIVEN = {"masks": ("masks", ""), "boxes": ("boxes", ""), "neither": ("masks", ", no masks")}
"""Which runs are judged, and how the names of their detectors end."""
DETECTORS = ("our rule", "shown", "at a rate of 0.05")
COLUMNS = (
    "AUC", "twins", "detected", "worst kind", "delay", "shown", "false, all", "false, shown", "false, at 5 %"
)  # fmt: skip


@dataclass(frozen=True)
class BoxedFineTune(FineTune):
    """A run whose probes come with boxes instead of masks."""

    def draw_probes(self, probes: ProbeChoice) -> Drawn:
        """Draw the same images as the run with masks."""
        drawn = super().draw_probes(probes)
        return replace(drawn, masks=fill_boxes(drawn.masks))


def fill_boxes(masks: Masks) -> Masks:
    """Fill the smallest box around each mask; an empty mask stays empty."""
    rows, columns = (masks.any(axis, keepdims=True) for axis in (2, 1))
    return _fill_gaps(rows) & _fill_gaps(columns)


def _fill_gaps(line: Masks) -> Masks:
    """Fill between the first and the last pixel of a line that runs along one of the last two axes."""
    axis = 1 if line.shape[2] == 1 else 2
    return np.logical_or.accumulate(line, axis) & np.flip(np.logical_or.accumulate(np.flip(line, axis), axis), axis)


def run_boxed(finetune: FineTune, folder: Path) -> Run:
    """Fine-tune and observe, unless that is already done, and score what was observed with boxes.

    Args:
        finetune: what to run.
        folder: for weights and observations.
    """
    done, observed = observe_run(BoxedFineTune(**asdict(finetune)), folder, PROBES)
    scores = {str(probes): score(each, plain=False) for probes, each in observed.items()}
    return replace(done, finetune=finetune, scores=scores)


def judge(runs: dict[str, list[Run]]) -> dict[str, dict[str, Verdict]]:
    """Measure alarms with boxes, with masks and with neither.

    Args:
        runs: ``"boxes"`` and ``"masks"``: the same ones.

    Returns:
        Verdicts by probes and what is given, and by detector.
    """
    verdicts = {}
    for probes in map(str, PROBES):
        for given, (scored, suffix) in GIVEN.items():
            verdicts[f"{probes}, {given}"] = {
                name: verdict(f"{name}{suffix}", probes, 1.0, runs[scored]) for name in DETECTORS
            }
    return verdicts


def print_table(console: Console, verdicts: dict[str, dict[str, Verdict]]) -> None:
    """Print one row per set of probes and what is given."""
    table = Table(box=MARKDOWN)
    table.add_column("probes")
    for column in COLUMNS:
        table.add_column(column, justify="right")
    for name, judged in verdicts.items():
        alarm, shown, tolerant = (judged[each] for each in DETECTORS)
        worst = min(alarm.by_kind, key=alarm.by_kind.__getitem__)
        table.add_row(
            name,
            f"{alarm.auc:.2f}",
            f"{alarm.auc_twins:.2f}",
            f"{alarm.detected:.0%}",
            f"{alarm.by_kind[worst]:.0%} ({worst})",
            f"{alarm.delay:g}",
            f"{shown.detected:.0%}",
            f"{alarm.false_alarms:.1f}",
            f"{shown.false_alarms:.1f}",
            f"{tolerant.false_alarms:.1f}",
        )
    console.print(table)


def report(folder: Path) -> None:
    """Run what is not already done, print the table, and write the JSON.

    Args:
        folder: for weights and observations; each run has a folder of its own in it.
    """
    with_masks = read_scores()
    finetunes = [each for each in all_runs(TOWER, range(SEED, SEED + 1)) if each in with_masks]
    folders = [folder / each.name for each in finetunes]
    with ProcessPoolExecutor(PROCESSES, multiprocessing.get_context("spawn")) as pool:
        done = pool.map(run_boxed, finetunes, folders)
        boxed = list(track(done, "boxes", len(finetunes), transient=True))
    verdicts = judge({"masks": [with_masks[each] for each in finetunes], "boxes": boxed})
    print_table(Console(width=160, highlight=False), verdicts)
    roles = [each.role for each in boxed]
    results = {
        "tower": TOWER,
        "seed": SEED,
        "runs": {role: roles.count(role) for role in sorted(set(roles))},
        "verdicts": {
            name: {detector: finite(asdict(each)) for detector, each in judged.items()}
            for name, judged in verdicts.items()
        },
    }
    RESULTS.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, help="folder for weights and observations (default: a temporary one)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        report(options.runs or Path(temporary))


if __name__ == "__main__":
    main()
