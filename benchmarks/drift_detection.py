"""Does the default rule raise an alarm when a model learns a shortcut, and only then?

Small CLIPs of two image worlds are fine-tuned with a shortcut of many kinds (a stamp, the ground, a tint, a frame, a
companion; of all classes, of one, of two), with the same images but cues that tell nothing (*twins*, the fair
control), and harmlessly. A shortcut counts as used from the first epoch in which images with the cue of another class
are assigned to that class. The default rule, with and without masks, is compared with its conditions on the maps alone
and with plain thresholds. These thresholds are those that raise a false alarm in at most 1 % of the harmless
evaluations of class-token ViTs of one seed. The limits of the rule were chosen on these and on the other runs of
benchmarks.limit_choice. Reported are other seeds.

A harmless run whose model forgets its own probes, so that their retrieval falls to a third or to twice the chance, is
no control: it is counted as broken, and not judged.

The scores of all runs are kept beside the results, and as long as the code that they come from is the same, no run is
repeated.

Run it: python -m benchmarks.drift_detection --runs DIR  (many hours on two cores; it goes on where it was stopped, and
what is in DIR already is not trained again; ``--seeds N`` for fewer seeds, ``--judge`` for the runs that are done and
no others, ``--quick`` for a check that writes nothing)
"""

import argparse
import json
import math
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import product
from pathlib import Path
from statistics import fmean, median

from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from benchmarks.detectors import DETECTORS, roc_auc
from benchmarks.drift_runs import CHOICE_SEED, PROBES, REPORT_SEED, Run, Runner, run
from benchmarks.finetunes import FineTune, all_runs

RESULTS = Path(__file__).with_suffix(".json")
TOWERS = ("class token", "attention pool", "resnet", "average pool")
CHOSEN_ON = "class token"  # the tower
FRESH_SEED = 2003  # first scored after the last change of the rule
POOLED = [probes for probes in PROBES if probes.count >= 16 and probes.cued != 0]
SEEDS = 4  # that are reported
FALSE_ALARMS = 0.01  # per evaluation, that a plain threshold may raise on the runs that it is chosen on
PACKAGES = ("clipcam-lightning", "torch", "open_clip_torch", "timm", "numpy", "scikit-image", "scikit-learn")


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


def threshold_of(name: str, probes: str, chosen_on: Sequence[Run]) -> float:
    """Choose the threshold of a plain detector by its false alarms."""
    limit = DETECTORS[name].limit
    if limit is not None:
        return limit
    scores = sorted(
        (score for each in chosen_on if each.role == "harmless" for score in each.scores[probes][name]), reverse=True
    )
    return scores[math.floor(FALSE_ALARMS * len(scores))]


def verdict(name: str, probes: str, threshold: float, runs: Sequence[Run]) -> Verdict:
    """Measure the performance of a detector with some probes."""
    used = [each for each in runs if each.role == "used"]
    harmless = [each for each in runs if each.role == "harmless"]
    highest = {id(each): max(each.scores[probes][name]) for each in runs}
    delays = {id(each): delay(each, name, probes, threshold) for each in used}
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
            100 * fmean(score > threshold for each in harmless for score in each.scores[probes][name]), 2
        ),
    )


def delay(each: Run, name: str, probes: str, threshold: float) -> float:
    """Count the epochs from the first use of the shortcut to the first alarm; negative for an alarm before it."""
    assert each.used is not None
    alarms = [epoch for epoch, score in enumerate(each.scores[probes][name], start=1) if score > threshold]
    return alarms[0] - each.used if alarms else math.inf


def pool(runs: Sequence[Run]) -> dict[str, dict[str, int]]:
    """Count detections and false alarms over all sets of 16 probes or more that show the cue.

    Args:
        runs: of several towers.

    Returns:
        Counts by kind of tower and masks: the used shortcuts, of which are detected and shown; and the harmless
        evaluations, of which are false alarms at the rates of 1 % and of 5 %.
    """
    pooled = {}
    for kind, masks in product(("ViT", "ResNet"), ("masks", "no masks")):
        rule, shown, tolerant = (
            name if masks == "masks" else f"{name}, no masks" for name in ("our rule", "shown", "at a rate of 0.05")
        )
        watched = [
            (each, str(probes))
            for each in runs
            for probes in POOLED
            if str(probes) in each.scores and (each.finetune.tower == "resnet") == (kind == "ResNet")
        ]
        used = [each for each in watched if each[0].role == "used"]
        harmless = [each.scores[probes] for each, probes in watched if each.role == "harmless"]
        pooled[f"{kind}, {masks}"] = {
            "used": len(used),
            "detected": sum(math.isfinite(delay(each, rule, probes, 1.0)) for each, probes in used),
            "shown": sum(math.isfinite(delay(each, shown, probes, 1.0)) for each, probes in used),
            "evaluations": sum(len(scores[rule]) for scores in harmless),
            "false at 1 %": sum(severity > 1 for scores in harmless for severity in scores[rule]),
            "false at 5 %": sum(severity > 1 for scores in harmless for severity in scores[tolerant]),
        }
    return pooled


def count_detected(runs: Sequence[Run]) -> dict[str, dict[str, int]]:
    """Count the used shortcuts of each kind, and those that are detected, over all towers.

    Args:
        runs: of all towers.

    Returns:
        Counts by kind and probes: of those that are used, and of those that are detected with and without masks.
    """
    counts: dict[str, dict[str, int]] = {}
    for probes, each in product(map(str, POOLED), runs):
        if each.role != "used" or probes not in each.scores:
            continue
        counted = counts.setdefault(f"{each.finetune.kind}: {probes}", {"used": 0, "masks": 0, "no masks": 0})
        counted["used"] += 1
        for masks, name in (("masks", "our rule"), ("no masks", "our rule, no masks")):
            counted[masks] += math.isfinite(delay(each, name, probes, 1.0))
    return counts


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


def report(runner: Runner, seeds: int) -> None:
    """Run what is not already done, print the tables, and write the JSON.

    Args:
        runner: of the fine-tunings.
        seeds: that are reported.
    """
    console, verdicts, listed = Console(width=160, highlight=False), {}, []
    to_choose_on = all_runs(CHOSEN_ON, range(CHOICE_SEED, CHOICE_SEED + 1))
    chosen_on = runner([each for each in to_choose_on if each.settings.harm in ("", "shortcut")], "choice")
    if not any(each.role == "harmless" for each in chosen_on):
        sys.exit("No harmless run is done to choose plain thresholds on: run this without --judge.")
    for tower in TOWERS:
        reported = runner([*all_runs(tower, range(REPORT_SEED, REPORT_SEED + seeds))], tower)
        if not any(each.role == "used" for each in reported):
            continue
        for probes in map(str, PROBES):
            watched = [each for each in reported if probes in each.scores]
            if not any(each.role == "used" for each in watched):
                continue
            limits = {name: threshold_of(name, probes, chosen_on) for name in watched[0].scores[probes]}
            judged = {name: verdict(name, probes, limit, watched) for name, limit in limits.items()}
            roles = ", ".join(f"{sum(each.role == role for each in watched)} {role}" for role in ROLES)
            print_table(console, f"{tower}, {probes}: {roles}", judged)
            verdicts[f"{tower}, {probes}"] = {name: finite(asdict(each)) for name, each in judged.items()}
        listed += reported
    pooled = {
        "all seeds": pool(listed),
        f"seed {FRESH_SEED}": pool([each for each in listed if each.finetune.seed == FRESH_SEED]),
    }
    console.print(pooled)
    results = {
        "versions": {package: version(package) for package in PACKAGES},
        "chosen on": {"tower": CHOSEN_ON, "runs": len(chosen_on), "seeds": [CHOICE_SEED]},
        "verdicts": verdicts,
        "pooled": pooled,
        "detected": count_detected(listed),
        "runs": [
            {**asdict(each.finetune), "role": each.role, "used": each.used, "broken": each.broken} for each in listed
        ],
    }
    RESULTS.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")


def check() -> None:
    """Run two fine-tunings and print their scores."""
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("stamp", "twin: stamp"):
            done = run(FineTune("shapes", CHOSEN_ON, kind, REPORT_SEED), Path(folder) / kind)
            print(done.finetune.name, done.role, {name: each["our rule"] for name, each in done.scores.items()})


ROLES = ("used", "harmless", "broken", "unclear", "collapse", "forgetting")


def finite(values: dict[str, object]) -> dict[str, object]:
    """Replace infinities by ``None``, since JSON has no infinity."""
    return {name: None if value == math.inf else value for name, value in values.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two runs; writes nothing")
    parser.add_argument("--runs", type=Path, help="folder for weights and observations (default: a temporary one)")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="reported seeds (default: %(default)s)")
    parser.add_argument("--judge", action="store_true", help="judge the runs in the folder, and run no others")
    options = parser.parse_args()
    if options.quick:
        check()
        return
    with tempfile.TemporaryDirectory() as folder:
        report(Runner(options.runs or Path(folder), options.judge), options.seeds)


if __name__ == "__main__":
    main()
