"""Does the default rule raise an alarm when a model learns a shortcut, and only then?

Small CLIPs of the shapes world are fine-tuned without a shortcut (clean and hazy data, new textures, three learning
rates, frozen parts, meaningless marks), and with one: a stamp in the images that gives the caption away. Each run is
monitored with 16 probes from its own kind of data. The default rule is compared with plain thresholds on the mean
correlation, IoU and SSIM. The thresholds are those that raise a false alarm in at most 1 % of the evaluations of
harmless runs, of the runs that the rule was chosen on. These have other seeds than the runs that are reported.

The epoch that first uses the shortcut is found without any map: the stamp is covered, then the object. The shortcut is
used once the margin of the true caption loses half as much by the first as by the second.

Run it: python -m benchmarks.drift_detection  (an hour on two cores; ``--quick``: two runs, writes nothing; ``--runs
DIR`` keeps the snapshots in DIR and does not repeat runs that are already there)
"""

import argparse
import json
import logging
import math
import multiprocessing
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import fmean, median

import torch
from rich.box import MARKDOWN
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.detectors import DETECTORS, roc_auc
from benchmarks.finetunes import EPOCHS, FineTune, Use, fine_tune, harmless, shortcuts
from clipcam_lightning import Snapshot

RESULTS = Path(__file__).with_suffix(".json")
CHOICE_SEEDS, REPORT_SEED = (500, 900), 1300
PROCESSES = 2
FALSE_ALARMS = 0.01  # per evaluation, that a plain threshold may raise on the runs that it is chosen on
PACKAGES = ("clipcam-lightning", "torch", "open_clip_torch", "lightning", "numpy")
OWN = ("our rule", "our rule, no masks")  # their threshold is 1


@dataclass(frozen=True)
class Run:
    """The scores of all detectors in one fine-tuning.

    Attributes:
        finetune: what was run.
        used: the first epoch, counted from 1, whose model uses the shortcut; ``None`` if there is none.
        scores: of each detector, one per evaluation after the baseline.
    """

    finetune: FineTune
    used: int | None
    scores: dict[str, list[float]]


@dataclass(frozen=True)
class Verdict:
    """The performance of one detector.

    Attributes:
        threshold: a score above it is an alarm.
        auc: of the highest score of each run, for runs with a planted shortcut against harmless ones.
        auc_used: of the highest score of each run, without runs that never use their shortcut.
        detected: share of the used shortcuts that are detected, 0 to 1.
        delay: epochs from the first use to the alarm, the median; infinite if there is no alarm.
        worst_delay: epochs from the first use to the alarm, the maximum.
        false_alarms: per 100 evaluations of harmless runs.
    """

    threshold: float
    auc: float
    auc_used: float
    detected: float
    delay: float
    worst_delay: float
    false_alarms: float


def run(finetune: FineTune, folder: Path) -> Run:
    """Fine-tune, unless that is already done, and score the snapshots of the callback.

    Args:
        finetune: what to run.
        folder: for the snapshots.
    """
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    uses = uses_of(finetune, folder)
    baseline, *evaluations = (Snapshot.load(file) for file in sorted(folder.glob("step-*.safetensors")))
    used = next((epoch for epoch, use in enumerate(uses, start=1) if use.shortcut), None)
    scores = {
        name: [detector(baseline, evaluation) for evaluation in evaluations] for name, detector in DETECTORS.items()
    }
    return Run(finetune, used if finetune.planted else None, scores)


def uses_of(finetune: FineTune, folder: Path) -> list[Use]:
    """Read what each epoch of a run uses, or run it and record that."""
    record, settings = folder / "run.json", json.loads(json.dumps(asdict(finetune)))
    recorded = json.loads(record.read_text()) if record.exists() else {}
    if recorded.get("finetune") != settings:
        shutil.rmtree(folder, ignore_errors=True)
        recorded = {"finetune": settings, "uses": [asdict(use) for use in fine_tune(finetune, folder)]}
        record.write_text(json.dumps(recorded))
    return [Use(**use) for use in recorded["uses"]]


def all_runs(finetunes: Sequence[FineTune], folder: Path) -> list[Run]:
    """Run all fine-tunings in ``PROCESSES`` processes, each in a folder of its own."""
    with ProcessPoolExecutor(PROCESSES, multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(run, each, folder / each.name) for each in finetunes]
        return [future.result() for future in track(futures, folder.name, transient=True)]


def threshold_of(name: str, chosen_on: Sequence[Run]) -> float:
    """Choose the threshold of a plain detector by its false alarms; that of the default rule is 1."""
    if name in OWN:
        return 1.0
    scores = sorted(
        (score for each in chosen_on if not each.finetune.planted for score in each.scores[name]), reverse=True
    )
    return scores[math.floor(FALSE_ALARMS * len(scores))]


def verdict(name: str, threshold: float, runs: Sequence[Run]) -> Verdict:
    """Measure the performance of a detector.

    Args:
        name: of the detector.
        threshold: a score above it is an alarm.
        runs: harmless ones and ones with a planted shortcut.
    """
    harmless_runs = [each for each in runs if not each.finetune.planted]
    planted = [each for each in runs if each.finetune.planted]
    used = [each for each in planted if each.used is not None]
    delays = [delay(each, name, threshold) for each in used]
    highest = {id(each): max(each.scores[name]) for each in runs}
    negatives = [highest[id(each)] for each in harmless_runs]
    evaluations = [score for each in harmless_runs for score in each.scores[name]]
    return Verdict(
        threshold=round(threshold, 4),
        auc=round(roc_auc([highest[id(each)] for each in planted], negatives), 4),
        auc_used=round(roc_auc([highest[id(each)] for each in used], negatives), 4),
        detected=round(fmean(math.isfinite(each) for each in delays), 4),
        delay=median(delays),
        worst_delay=max(delays),
        false_alarms=round(100 * fmean(score > threshold for score in evaluations), 2),
    )


def delay(each: Run, name: str, threshold: float) -> float:
    """Count the epochs from the first use of the shortcut to the first alarm; negative for an alarm before it."""
    assert each.used is not None
    alarms = [epoch for epoch, score in enumerate(each.scores[name], start=1) if score > threshold]
    return alarms[0] - each.used if alarms else math.inf


def finite(values: dict[str, float]) -> dict[str, float | None]:
    """Replace infinities by ``None``, since JSON has no infinity."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def print_table(console: Console, towers: str, verdicts: dict[str, Verdict], runs: Sequence[Run]) -> None:
    """Print one row per detector."""
    used = sum(each.used is not None for each in runs)
    planted = sum(each.finetune.planted for each in runs)
    counts = f"{len(runs) - planted} harmless runs, {planted} with a shortcut (used in {used}), {EPOCHS} evaluations"
    table = Table(title=f"{towers}: {counts}", box=MARKDOWN)
    table.add_column("detector")
    for column in ("threshold", "AUC", "AUC, used", "detected", "delay", "worst", "false alarms per 100 evaluations"):
        table.add_column(column, justify="right")
    for name, judged in verdicts.items():
        table.add_row(
            name,
            f"{judged.threshold:.2f}",
            f"{judged.auc:.3f}",
            f"{judged.auc_used:.3f}",
            f"{judged.detected:.0%}",
            f"{judged.delay:g}",
            f"{judged.worst_delay:g}",
            f"{judged.false_alarms:g}",
        )
    console.print(table)


def report(folder: Path, quick: bool) -> None:
    """Run what is not already done, print the tables, and write the JSON.

    Args:
        folder: for the snapshots.
        quick: two runs only, and no JSON.
    """
    choice = [kind for seed in CHOICE_SEEDS for kind in (*harmless(seed), *shortcuts(seed))]
    if quick:
        choice = [next(harmless(REPORT_SEED)), next(shortcuts(REPORT_SEED))]
    chosen_on = all_runs(choice, folder / "chosen on")
    reported = chosen_on if quick else all_runs([*harmless(REPORT_SEED), *shortcuts(REPORT_SEED)], folder / "reported")
    thresholds = {name: threshold_of(name, chosen_on) for name in DETECTORS}
    verdicts, console = {}, Console(width=140, highlight=False)
    for towers in (("vit", "resnet"), ("vit",), ("resnet",)):
        own = [each for each in reported if each.finetune.tower in towers]
        if not own:  # in a quick run
            continue
        judged = {name: verdict(name, thresholds[name], own) for name in DETECTORS}
        print_table(console, " and ".join(towers), judged, own)
        verdicts[" and ".join(towers)] = {name: finite(asdict(each)) for name, each in judged.items()}
    if quick:
        return
    content = {
        "versions": {package: version(package) for package in PACKAGES},
        "seeds": {"chosen on": CHOICE_SEEDS, "reported": REPORT_SEED},
        "verdicts": verdicts,
        "runs": [asdict(each) for each in reported],
    }
    RESULTS.write_text(json.dumps(content, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two runs; writes nothing")
    parser.add_argument("--runs", type=Path, help="folder for the snapshots (default: a temporary one)")
    options = parser.parse_args()
    if options.runs is None:
        with tempfile.TemporaryDirectory() as folder:
            report(Path(folder), options.quick)
    else:
        report(options.runs, options.quick)


if __name__ == "__main__":
    main()
