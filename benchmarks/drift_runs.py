"""Run the fine-tunings of the drift benchmark, score them with all detectors, and keep the scores.

Scores are kept beside the results of the benchmark, and hold as long as the code that they come from is the same.
"""

import gzip
import json
import multiprocessing
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from rich.progress import track

import clipcam_lightning
from benchmarks.detectors import DETECTORS, Comparison
from benchmarks.finetunes import FineTune, ProbeChoice, fine_tune
from benchmarks.observations import Observations, is_observed, observe
from benchmarks.sources import hash_sources

BENCHMARKS, PACKAGE = Path(__file__).parent, Path(clipcam_lightning.__file__).parent
SCORES = BENCHMARKS / "drift_detection_scores.json.gz"
# What judges. The maps come from other modules, but hardly change: the tests compare them with oracles.
SOURCES = hash_sources(
    [
        *(PACKAGE / "drift").glob("*.py"),
        PACKAGE / "analysis" / "interventions.py",
        *(PACKAGE / "monitoring" / name for name in ("background.py", "transplants.py")),
        *(
            BENCHMARKS / name
            for name in ("cued_images.py", "detectors.py", "drift_runs.py", "finetunes.py", "observations.py")
        ),
    ]
)
USUAL = ProbeChoice(64)  # which tell whether the model forgets them, and are judged with plain thresholds, too
MANY = (ProbeChoice(256), ProbeChoice(256, cued=5))
PROBES = (ProbeChoice(8), ProbeChoice(16), USUAL, ProbeChoice(64, cued=0), *MANY)
CHOICE_SEED, REPORT_SEED = 1000, 2000  # first seeds of the runs to choose on, and of those that are reported
WATCHED_BY_MANY = (("class token", 2000), ("attention pool", 2001))  # of the reported runs
PROCESSES = 2
BROKEN, CHANCES = 1 / 3, 2  # of the retrieval at the start; of the retrieval by chance


@dataclass(frozen=True)
class Run:
    """The scores of all detectors in one fine-tuning.

    Attributes:
        finetune: what was run.
        used: the first epoch, counted from 1, whose model uses the cue; ``None`` if there is none.
        broken: whether the model forgets its own probes.
        scores: by probes and detector, one per evaluation after the baseline.
    """

    finetune: FineTune
    used: int | None
    broken: bool
    scores: dict[str, dict[str, list[float]]]

    @property
    def role(self) -> str:
        """``"used"``, ``"harmless"``, ``"broken"``, or ``"unclear"`` if the cue is not used although it tells."""
        harm = self.finetune.settings.harm
        if harm == "shortcut":
            return "used" if self.used is not None else "unclear"
        if harm == "" and self.used is not None:
            return "unclear"
        return harm or ("broken" if self.broken else "harmless")


def run(finetune: FineTune, folder: Path) -> Run:
    """Fine-tune and observe, unless that is already done, and score what was observed.

    Args:
        finetune: what to run.
        folder: for weights and observations.
    """
    done, observed = observe_run(finetune, folder, probes_of(finetune))
    return replace(done, scores={str(probes): score(each, plain=probes == USUAL) for probes, each in observed.items()})


def observe_run(
    finetune: FineTune, folder: Path, probe_sets: Sequence[ProbeChoice]
) -> tuple[Run, dict[ProbeChoice, Observations]]:
    """Fine-tune and observe, unless that is already done.

    Args:
        finetune: what to run.
        folder: for weights and observations.
        probe_sets: that watch it, besides the usual one.

    Returns:
        The run without scores, and what was observed.
    """
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    uses = fine_tune(finetune, folder)
    observed = {probes: observe(finetune, folder, probes) for probes in dict.fromkeys((*probe_sets, USUAL))}
    return Run(finetune, uses.first, is_broken(finetune, observed[USUAL]), {}), observed


def is_broken(finetune: FineTune, observed: Observations) -> bool:
    """Whether the model of a run forgets its own probes.

    Args:
        finetune: what was run.
        observed: the usual probes.
    """
    start, *later = observed.accuracy()
    return min(later) <= max(BROKEN * start, CHANCES / finetune.settings.classes)


def score(observed: Observations, plain: bool) -> dict[str, list[float]]:
    """Score each epoch with each detector.

    Args:
        observed: what was observed.
        plain: also with those whose limit is to be chosen.
    """
    compared = {}
    for masks in (True, False):
        baseline, *evaluations = observed.snapshots(masks=masks)
        compared[masks] = [Comparison(baseline, evaluation) for evaluation in evaluations]
    return {
        name: [round(detector.score(each), 4) for each in compared[detector.masks]]
        for name, detector in DETECTORS.items()
        if plain or detector.limit is not None
    }


def probes_of(finetune: FineTune) -> tuple[ProbeChoice, ...]:
    """List the probes that watch a run: many, which take most of the time, watch some of the reported runs alone."""
    if finetune.seed < REPORT_SEED:
        return (USUAL, *MANY)
    return PROBES if (finetune.tower, finetune.seed) in WATCHED_BY_MANY else PROBES[: -len(MANY)]


class Runner:
    """Runs fine-tunings in ``PROCESSES`` processes, unless their scores are known.

    Args:
        folder: for weights and observations; each run has a folder of its own in it.
        judge: run nothing, and take what is done.
    """

    def __init__(self, folder: Path, judge: bool) -> None:
        self.folder = folder
        self.judge = judge

    def __call__(self, finetunes: Sequence[FineTune], title: str) -> list[Run]:
        """Get the runs that are done, in the given order."""
        known = read_scores()
        missing = [each for each in finetunes if each not in known]
        if self.judge:
            missing = [each for each in missing if is_observed(each, self.folder / each.name, probes_of(each))]
        with ProcessPoolExecutor(PROCESSES, multiprocessing.get_context("spawn")) as pool:
            futures = [pool.submit(run, each, self.folder / each.name) for each in missing]
            try:
                for done in track(as_completed(futures), title, len(futures), transient=True):
                    add_score(done.result())
            finally:
                pool.shutdown(cancel_futures=True)  # those that still wait, after an error
        known = read_scores()
        return [known[each] for each in finetunes if each in known]


def read_scores() -> dict[FineTune, Run]:
    """Read the runs that were scored by the present code."""
    if not SCORES.exists():
        return {}
    content = json.loads(gzip.decompress(SCORES.read_bytes()))
    if content["sources"] != SOURCES:
        return {}
    runs = (Run(**{**each, "finetune": FineTune(**each["finetune"])}) for each in content["runs"])
    return {each.finetune: each for each in runs}


def add_score(done: Run) -> None:
    """Write a run beside those that :func:`read_scores` reads."""
    runs = {**read_scores(), done.finetune: done}.values()
    content = {"sources": SOURCES, "runs": [asdict(each) for each in runs]}
    unfinished = SCORES.with_suffix(".part")
    unfinished.write_bytes(gzip.compress(json.dumps(content).encode(), mtime=0))
    unfinished.replace(SCORES)
