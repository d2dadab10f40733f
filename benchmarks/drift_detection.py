"""Does the default rule raise an alarm when a model learns a shortcut, and only then?

Small CLIPs of two image worlds are fine-tuned with a shortcut of many kinds (a stamp, the ground, a tint, a frame, a
companion; of all classes, of one, of two), with the same images but cues that tell nothing (*twins*, the fair
control), and harmlessly. A shortcut counts as used from the first epoch in which images with the cue of another class
are assigned to that class. The default rule, with and without masks, is compared with its conditions on the maps alone
and with plain thresholds. These thresholds are those that raise a false alarm in at most 1 % of the harmless
evaluations of the runs that everything is chosen on: class-token ViTs of one part of the seeds. Reported are
class-token ViTs of the other part, and both parts of the other towers, on which nothing was chosen.

A harmless run whose model forgets its own probes, so that their retrieval falls to a third or to twice the chance, is
no control: it is counted as broken, and not judged.

Run it: python -m benchmarks.drift_detection --runs DIR  (hours on two cores; what is in DIR already is not repeated;
``--seeds N`` for fewer seeds, ``--judge`` for the runs that are in DIR and no others, ``--quick`` for a check that
writes nothing)
"""

import argparse
import json
import math
import multiprocessing
import tempfile
import warnings
from collections import defaultdict
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
from benchmarks.finetunes import FineTune, all_runs, fine_tune
from benchmarks.observations import Observations, is_observed, observe

RESULTS = Path(__file__).with_suffix(".json")
TOWERS = ("class token", "attention pool", "resnet")
CHOSEN_ON = "class token"  # the tower
CHOICE_SEED, REPORT_SEED, SEEDS = 1000, 2000, 4  # first seeds of the two parts, and how many of each
PROBES = (8, 16, 64)
PROCESSES = 2
FALSE_ALARMS = 0.01  # per evaluation, that a plain threshold may raise on the runs that it is chosen on
BROKEN, CHANCES = 1 / 3, 2  # of the retrieval at the start; of the retrieval by chance
PACKAGES = ("clipcam-lightning", "torch", "open_clip_torch", "timm", "numpy", "scikit-image", "scikit-learn")


@dataclass(frozen=True)
class Run:
    """The scores of all detectors in one fine-tuning.

    Attributes:
        finetune: what was run.
        used: the first epoch, counted from 1, whose model uses the cue; ``None`` if there is none.
        broken: whether the model forgets its own probes.
        scores: by number of probes and detector, one per evaluation after the baseline.
    """

    finetune: FineTune
    used: int | None
    broken: bool
    scores: dict[int, dict[str, list[float]]]

    @property
    def role(self) -> str:
        """``"used"``, ``"harmless"``, ``"broken"``, or ``"unclear"`` if the cue is not used although it tells."""
        harm = self.finetune.settings.harm
        if harm == "shortcut":
            return "used" if self.used is not None else "unclear"
        if harm == "" and self.used is not None:
            return "unclear"
        return harm or ("broken" if self.broken else "harmless")


@dataclass(frozen=True)
class Verdict:
    """The performance of one detector.

    Attributes:
        threshold: a score above it is an alarm.
        auc: of the highest score of each run, for runs that use a shortcut against harmless ones.
        auc_twins: the same against twins alone.
        detected: share of the used shortcuts that are detected, 0 to 1.
        by_kind: the same for each kind of shortcut.
        delay: epochs from the first use to the alarm, the median; infinite if there is no alarm.
        false_alarms: per 100 evaluations of harmless runs.
    """

    threshold: float
    auc: float
    auc_twins: float
    detected: float
    by_kind: dict[str, float]
    delay: float
    false_alarms: float


def run(finetune: FineTune, folder: Path) -> Run:
    """Fine-tune and observe, unless that is already done, and score what was observed.

    Args:
        finetune: what to run.
        folder: for weights and observations.
    """
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    uses = fine_tune(finetune, folder)
    observed = {count: observe(finetune, folder, count) for count in PROBES}
    start, *later = observed[max(PROBES)].accuracy()
    scores = {count: score(each) for count, each in observed.items()}
    broken = min(later) <= max(BROKEN * start, CHANCES / finetune.settings.classes)
    return Run(finetune, uses.first, broken, scores)


def score(observed: Observations) -> dict[str, list[float]]:
    """Score each epoch with each detector."""
    scores = {}
    for name, detector in DETECTORS.items():
        baseline, *evaluations = observed.snapshots(masks=detector.masks)
        scores[name] = [round(detector.score(baseline, evaluation), 4) for evaluation in evaluations]
    return scores


def perform(finetunes: Sequence[FineTune], folder: Path, title: str, judge: bool) -> list[Run]:
    """Run fine-tunings in ``PROCESSES`` processes, each in a folder of its own; or ``judge`` those that are done."""
    if judge:
        finetunes = [each for each in finetunes if is_observed(each, folder / each.name, PROBES)]
    with ProcessPoolExecutor(PROCESSES, multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(run, each, folder / each.name) for each in finetunes]
        return [future.result() for future in track(futures, title, transient=True)]


def threshold_of(name: str, count: int, chosen_on: Sequence[Run]) -> float:
    """Choose the threshold of a plain detector by its false alarms."""
    limit = DETECTORS[name].limit
    if limit is not None:
        return limit
    scores = sorted(
        (score for each in chosen_on if each.role == "harmless" for score in each.scores[count][name]), reverse=True
    )
    return scores[math.floor(FALSE_ALARMS * len(scores))]


def verdict(name: str, count: int, threshold: float, runs: Sequence[Run]) -> Verdict:
    """Measure the performance of a detector with so many probes."""
    used = [each for each in runs if each.role == "used"]
    harmless = [each for each in runs if each.role == "harmless"]
    highest = {id(each): max(each.scores[count][name]) for each in runs}
    delays = {id(each): delay(each, name, count, threshold) for each in used}
    kinds: dict[str, list[bool]] = defaultdict(list)
    for each in used:
        kinds[each.finetune.kind].append(math.isfinite(delays[id(each)]))
    positives = [highest[id(each)] for each in used]
    twins = [highest[id(each)] for each in harmless if each.finetune.settings.twin]
    return Verdict(
        threshold=round(threshold, 4),
        auc=round(roc_auc(positives, [highest[id(each)] for each in harmless]), 4),
        auc_twins=round(roc_auc(positives, twins), 4),
        detected=round(fmean(map(math.isfinite, delays.values())), 4),
        by_kind={kind: round(fmean(each), 4) for kind, each in kinds.items()},
        delay=median(delays.values()),
        false_alarms=round(
            100 * fmean(score > threshold for each in harmless for score in each.scores[count][name]), 2
        ),
    )


def delay(each: Run, name: str, count: int, threshold: float) -> float:
    """Count the epochs from the first use of the shortcut to the first alarm; negative for an alarm before it."""
    assert each.used is not None
    alarms = [epoch for epoch, score in enumerate(each.scores[count][name], start=1) if score > threshold]
    return alarms[0] - each.used if alarms else math.inf


def print_table(console: Console, title: str, verdicts: dict[str, Verdict]) -> None:
    """Print one row per detector."""
    table = Table(title=title, box=MARKDOWN)
    table.add_column("detector")
    for column in ("threshold", "AUC", "AUC, twins", "detected", "worst kind", "delay", "false alarms per 100"):
        table.add_column(column, justify="right")
    for name, judged in verdicts.items():
        worst = min(judged.by_kind, key=judged.by_kind.__getitem__)
        table.add_row(
            name,
            f"{judged.threshold:.2f}",
            f"{judged.auc:.3f}",
            f"{judged.auc_twins:.3f}",
            f"{judged.detected:.0%}",
            f"{judged.by_kind[worst]:.0%} ({worst})",
            f"{judged.delay:g}",
            f"{judged.false_alarms:g}",
        )
    console.print(table)


def report(folder: Path, seeds: int, judge: bool) -> None:
    """Run what is not already done, print the tables, and write the JSON.

    Args:
        folder: for weights and observations.
        seeds: per part.
        judge: run nothing, and take what is done.
    """
    console, verdicts, listed = Console(width=160, highlight=False), {}, []
    choice, rest = range(CHOICE_SEED, CHOICE_SEED + seeds), range(REPORT_SEED, REPORT_SEED + seeds)
    chosen_on = perform([*all_runs(CHOSEN_ON, choice)], folder, f"{CHOSEN_ON}, choice", judge)
    for tower in TOWERS:
        parts = (rest,) if tower == CHOSEN_ON else (choice, rest)
        reported = perform([each for part in parts for each in all_runs(tower, part)], folder, tower, judge)
        if not any(each.role == "used" for each in reported):
            continue
        roles = ", ".join(f"{sum(each.role == role for each in reported)} {role}" for role in ROLES)
        for count in PROBES:
            judged = {name: verdict(name, count, threshold_of(name, count, chosen_on), reported) for name in DETECTORS}
            print_table(console, f"{tower}, {count} probes: {roles}", judged)
            verdicts[f"{tower}, {count} probes"] = {name: finite(asdict(each)) for name, each in judged.items()}
        listed += reported
    head = {
        "versions": {package: version(package) for package in PACKAGES},
        "chosen on": {"tower": CHOSEN_ON, "runs": len(chosen_on), "seeds": [*choice]},
        "verdicts": verdicts,
    }
    write(head, [{**asdict(each), "role": each.role} for each in listed])


def check() -> None:
    """Run two fine-tunings and print their scores."""
    finetunes = [FineTune("shapes", CHOSEN_ON, kind, REPORT_SEED) for kind in ("stamp", "twin: stamp")]
    with tempfile.TemporaryDirectory() as folder:
        for each in perform(finetunes, Path(folder), "quick", judge=False):
            print(each.finetune.name, each.role, each.scores[max(PROBES)]["our rule, no masks"])


def write(head: dict[str, object], runs: Sequence[dict[str, object]]) -> None:
    """Write the results as JSON, with one line per run."""
    lines = ",\n  ".join(json.dumps(each) for each in runs)
    text = json.dumps(head, indent=1).removesuffix("\n}")
    RESULTS.write_text(f'{text},\n "runs": [\n  {lines}\n ]\n}}\n')


ROLES = ("used", "harmless", "broken", "unclear", "collapse", "forgetting")


def finite(values: dict[str, object]) -> dict[str, object]:
    """Replace infinities by ``None``, since JSON has no infinity."""
    return {name: None if value == math.inf else value for name, value in values.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two runs; writes nothing")
    parser.add_argument("--runs", type=Path, help="folder for weights and observations (default: a temporary one)")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="seeds per part (default: %(default)s)")
    parser.add_argument("--judge", action="store_true", help="judge the runs in the folder, and run no others")
    options = parser.parse_args()
    if options.quick:
        check()
        return
    with tempfile.TemporaryDirectory() as folder:
        report(options.runs or Path(folder), options.seeds, options.judge)


if __name__ == "__main__":
    main()
