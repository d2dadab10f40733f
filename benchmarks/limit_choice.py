"""How does each limit of the default rule trade shortcuts against false alarms, on the runs that it was chosen on?

The limits of ``clipcam_lightning/drift/rule.py`` and ``evidence.py`` are changed one at a time. All runs have seeds
that benchmarks.drift_detection does not report. A shortcut is detected if an evaluation since its first use is an
alarm, of a collapse as well; a run counts once for each set of probes that watched it.

Run it: python -m benchmarks.limit_choice --runs DIR  (some hours on two cores; what is in DIR already is not trained
again; ``--judge`` for the runs that are done and no others)
"""

import argparse
import json
import math
import multiprocessing
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

from rich.box import MARKDOWN
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.drift_runs import CHOICE_SEED, MANY, PROCESSES, USUAL, Run, observe_run
from benchmarks.finetunes import FineTune, ProbeChoice, all_runs
from benchmarks.observations import is_observed
from clipcam_lightning import DriftReport, compare
from clipcam_lightning.drift import evidence, rule

RESULTS = Path(__file__).with_suffix(".json")
FEW = (ProbeChoice(16), USUAL)
CHOSEN_ON = {"class token": (CHOICE_SEED, (*FEW, *MANY)), "attention pool": (1003, FEW), "resnet": (1003, FEW)}
"""Seed and probes by tower."""
FACTORS = (0.7, 0.85, 1.2, 1.4)
LIMITS: dict[ModuleType, tuple[str, ...]] = {
    rule: (
        "PROMPT_LIMIT", "SET_LIMIT", "GAIN_LIMIT", "PULLED_LIMIT", "PROMPT_PULL", "WHOLE_PULL", "KEPT_RECOGNITION"
    ),
    evidence: ("SUSPICION", "OUTSTANDING_SUSPICION", "MIN_PULL"),
}  # fmt: skip
AS_IT_IS = "as it is"
COLUMNS = ("detected", "shown", "collapses detected", "false alarms per 100", "suspicious per 100")


def settings() -> Iterator[tuple[str, ModuleType, str, float]]:
    """List the changes of a limit: a name, and where and what it is."""
    yield AS_IT_IS, rule, "PROMPT_LIMIT", rule.PROMPT_LIMIT
    for module, names in LIMITS.items():
        for name in names:
            value = getattr(module, name)
            yield from ((f"{name} {value:g} * {factor:g}", module, name, factor * value) for factor in FACTORS)


def count(finetune: FineTune, folder: Path) -> Counter[tuple[str, bool, str]]:
    """Count what the changed rules say of a run, by setting, whether masks are given, and what is counted.

    Args:
        finetune: what to run.
        folder: for weights and observations.
    """
    run, observed = observe_run(finetune, folder, CHOSEN_ON[finetune.tower][1])
    counts: Counter[tuple[str, bool, str]] = Counter()
    if run.role not in ("used", "harmless", "collapse"):
        return counts
    for probes, masks in ((probes, masks) for probes in CHOSEN_ON[finetune.tower][1] for masks in (True, False)):
        baseline, *later = observed[probes].snapshots(masks=masks)
        reports = [compare(baseline, each) for each in later]
        for setting, module, name, value in settings():
            with patch.object(module, name, value):
                counted = summarize(run, [replace(report) for report in reports])  # which weigh the evidence anew
            counts.update({(setting, masks, what): number for what, number in counted.items()})
    return counts


def summarize(run: Run, reports: list[DriftReport]) -> dict[str, int]:
    """Count the alarms of a run with some probes."""
    if run.role == "harmless":
        return {
            "evaluations": len(reports),
            "false": sum(report.alarm for report in reports),
            "suspicious": sum(report.suspicious for report in reports),
        }
    if run.role == "collapse":
        return {"collapses": 1, "collapses detected": any(report.alarm for report in reports)}
    assert run.used is not None
    after = [report for report in reports[run.used - 1 :] if report.alarm]
    return {
        "used": 1,
        "detected": bool(after),
        "shown": any(report.evidence is not None and report.evidence.shown for report in after),
    }


def rates(counts: Counter[tuple[str, bool, str]], setting: str, masks: bool) -> dict[str, float]:
    """Compute the columns of the table."""

    def share(what: str, of: str) -> float:
        total = counts[setting, masks, of]
        return counts[setting, masks, what] / total if total else math.nan

    values = (
        share("detected", "used"), share("shown", "used"), share("collapses detected", "collapses"),
        100 * share("false", "evaluations"), 100 * share("suspicious", "evaluations"),
    )  # fmt: skip
    return {column: round(value, 4) for column, value in zip(COLUMNS, values, strict=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, help="folder for weights and observations (default: a temporary one)")
    parser.add_argument("--judge", action="store_true", help="judge the runs in the folder, and run no others")
    options = parser.parse_args()
    if options.judge and not options.runs:
        parser.error("--judge needs --runs, the folder in which the runs are")
    with tempfile.TemporaryDirectory() as temporary:
        report(options.runs or Path(temporary), options.judge)


def report(folder: Path, judge: bool) -> None:
    """Run what is not already done, print the table, and write the JSON.

    Args:
        folder: for weights and observations; each run has a folder of its own in it.
        judge: run nothing, and take what is done.
    """
    runs = [
        each
        for tower, (seed, probes) in CHOSEN_ON.items()
        for each in all_runs(tower, range(seed, seed + 1))
        if not judge or is_observed(each, folder / each.name, (USUAL, *probes))
    ]
    counts: Counter[tuple[str, bool, str]] = Counter()
    folders = [folder / each.name for each in runs]
    with ProcessPoolExecutor(PROCESSES, multiprocessing.get_context("spawn")) as pool:
        for counted in track(pool.map(count, runs, folders), "choice", len(runs), transient=True):
            counts.update(counted)
    table = Table(box=MARKDOWN)
    table.add_column("limit", no_wrap=True)
    for column in COLUMNS:
        for masks in ("masks", "no masks"):
            table.add_column(f"{column}, {masks}")
    measured = {setting: [rates(counts, setting, masks) for masks in (True, False)] for setting, *_ in settings()}
    for setting, (with_masks, without) in measured.items():
        table.add_row(setting, *(f"{each[column]:.3g}" for column in COLUMNS for each in (with_masks, without)))
    Console(width=200, highlight=False).print(table)
    results = {
        "runs": {tower: sum(each.tower == tower for each in runs) for tower in CHOSEN_ON},
        "limits": {
            setting: {"masks": with_masks, "no masks": without} for setting, (with_masks, without) in measured.items()
        },
    }
    RESULTS.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
