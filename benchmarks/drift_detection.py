"""Does the alarm ring when a model learns a shortcut, and only then?

Small CLIPs of the shapes world are fine-tuned: harmlessly (clean and hazy data, new textures, three learning rates,
parts frozen, marks that mean nothing), and with a stamp in the pictures that gives the caption away. Each run watches
16 probes from its own kind of data. Our default rule is held against plain thresholds on the mean correlation, IoU and
SSIM; these are set where they ring in at most 1 of 100 harmless looks of the runs that the rule was chosen on, which
have other seeds than the runs that are reported.

Which epoch first uses the shortcut is not read off any map: the stamp is covered, then the object, and the shortcut
counts as used once the margin of the true caption loses half as much by the first as by the second.

Run it:  python benchmarks/drift_detection.py  (an hour on two cores; ``--quick``: two runs, writes nothing;
``--runs DIR`` keeps the snapshots there, and does not repeat a run that is there already)
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
FALSE_ALARMS = 0.01  # a look, that the plain thresholds may raise on the runs they are chosen on
PACKAGES = ("clipcam-lightning", "torch", "open_clip_torch", "lightning", "numpy")
OWN = ("our rule", "our rule, no masks")  # whose threshold is 1


@dataclass(frozen=True)
class Run:
    """What a fine-tuning came to.

    Attributes:
        finetune: what was run.
        used: the first epoch, counted from 1, whose model uses the shortcut; ``None`` if none does.
        scores: of each detector, one a look after the baseline.
    """

    finetune: FineTune
    used: int | None
    scores: dict[str, list[float]]


@dataclass(frozen=True)
class Verdict:
    """How a detector did.

    Attributes:
        threshold: above which it rings.
        auc: of the highest score of each run, planted against harmless.
        auc_used: the same without planted shortcuts that no epoch's model uses.
        detected: share of the used shortcuts that were named.
        delay: epochs from the first use to the alarm, the median and the worst; infinite if it never came.
        false_alarms: in 100 looks of harmless runs.
    """

    threshold: float
    auc: float
    auc_used: float
    detected: float
    delay: float
    worst_delay: float
    false_alarms: float


def run(finetune: FineTune, folder: Path) -> Run:
    """Fine-tune, unless that was done, then score the snapshots that the callback left."""
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
    """What the run was about after each epoch: as recorded if it is done, else by running it."""
    record, settings = folder / "run.json", json.loads(json.dumps(asdict(finetune)))
    done = json.loads(record.read_text()) if record.exists() else {}
    if done.get("finetune") != settings:
        shutil.rmtree(folder, ignore_errors=True)
        done = {"finetune": settings, "uses": [asdict(use) for use in fine_tune(finetune, folder)]}
        record.write_text(json.dumps(done))
    return [Use(**use) for use in done["uses"]]


def all_runs(finetunes: Sequence[FineTune], folder: Path) -> list[Run]:
    """All of them, a core each, in folders of their own."""
    with ProcessPoolExecutor(PROCESSES, multiprocessing.get_context("spawn")) as pool:
        begun = [pool.submit(run, each, folder / each.name) for each in finetunes]
        return [each.result() for each in track(begun, folder.name, transient=True)]


def threshold_of(name: str, chosen_on: Sequence[Run]) -> float:
    """Ours is 1; a plain one rings in at most ``FALSE_ALARMS`` of the harmless looks that it is chosen on."""
    if name in OWN:
        return 1.0
    scores = sorted(
        (score for each in chosen_on if not each.finetune.planted for score in each.scores[name]), reverse=True
    )
    return scores[math.floor(FALSE_ALARMS * len(scores))]


def verdict(name: str, threshold: float, runs: Sequence[Run]) -> Verdict:
    """The detector's figures on the reported runs."""
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
    """Epochs from the first use of the shortcut to the first alarm; negative if it came before."""
    assert each.used is not None
    flagged = [epoch for epoch, score in enumerate(each.scores[name], start=1) if score > threshold]
    return flagged[0] - each.used if flagged else math.inf


def finite(figures: dict[str, float]) -> dict[str, float | None]:
    """Without the infinities that JSON does not know."""
    return {name: value if math.isfinite(value) else None for name, value in figures.items()}


def print_table(console: Console, towers: str, verdicts: dict[str, Verdict], runs: Sequence[Run]) -> None:
    """One row a detector."""
    used = sum(each.used is not None for each in runs)
    planted = sum(each.finetune.planted for each in runs)
    title = f"{towers}: {len(runs) - planted} harmless runs, {planted} with a shortcut (used in {used}), {EPOCHS} looks"
    table = Table(title=title, box=MARKDOWN)
    table.add_column("detector")
    for column in ("threshold", "AUC", "AUC, used", "detected", "delay", "worst", "false alarms in 100 looks"):
        table.add_column(column, justify="right")
    for name, found in verdicts.items():
        table.add_row(
            name,
            f"{found.threshold:.2f}",
            f"{found.auc:.3f}",
            f"{found.auc_used:.3f}",
            f"{found.detected:.0%}",
            f"{found.delay:g}",
            f"{found.worst_delay:g}",
            f"{found.false_alarms:g}",
        )
    console.print(table)


def report(folder: Path, quick: bool) -> None:
    """Run what has not been run, print the table, write the JSON."""
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
        found = {name: verdict(name, thresholds[name], own) for name in DETECTORS}
        print_table(console, " and ".join(towers), found, own)
        verdicts[" and ".join(towers)] = {name: finite(asdict(each)) for name, each in found.items()}
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
    parser.add_argument("--quick", action="store_true", help="two runs; nothing is written")
    parser.add_argument("--runs", type=Path, help="folder for the snapshots (default: a temporary one)")
    options = parser.parse_args()
    if options.runs is None:
        with tempfile.TemporaryDirectory() as folder:
            report(Path(folder), options.quick)
    else:
        report(options.runs, options.quick)


if __name__ == "__main__":
    main()
