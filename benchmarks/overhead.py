"""What does an evaluation cost a training? Time, size of the event file, and memory.

Lightning trains the whole ViT-B-32 of open_clip contrastively on batches of 32 pairs, with AdamW in float32. Each epoch
has one step, and every third epoch has an evaluation. So steps with and without an evaluation alternate in one process,
and the unit is the median step of the epochs in which no part of an evaluation runs. The parts of an evaluation are
timed by wrapping the functions that do the work. Weights are random, which does not change the time. The probes are
crops of the two photographs that scikit-learn ships, with eight prompts.

Run it: python -m benchmarks.overhead  (a quarter of an hour on two cores; ``--only`` for some of the cases, which
replaces their rows in the JSON; ``--quick``: a small model and few evaluations; writes nothing)
"""

import argparse
import json
import logging
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import lightning.pytorch as pl
import numpy as np
import open_clip
import torch
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.evaluation_parts import BACKGROUND, PARTS, WAITS, Stopwatch
from benchmarks.goals import Verdict
from benchmarks.memory import SETTLED, Growth, growth
from benchmarks.photographs import probe_set
from benchmarks.speed import THREADS, cpu_name, print_verdicts
from clipcam_lightning import ClipCamCallback
from clipcam_lightning.shapes_world.models import WordTokenizer, build_clip

RESULTS = Path(__file__).with_suffix(".json")
MODEL, BATCH = "ViT-B-32", 32
EVERY = 3  # epochs: one with an evaluation, one while its images are drawn, one with neither
FIRST, FURTHER = 1.0, 0.25  # training steps for the first evaluation of 8 probes, and for each 8 more
STEPS, KILOBYTES, MEGABYTES = 1.0, 30.0, 2.0  # the goals at 8 probes
TOWER_SHARE = 0.8  # of the time that a training waits for a later evaluation
MEMORY, MEMORY_EVALUATIONS = "memory", 1000
PACKAGES = ("clipcam-lightning", "torch", "open_clip_torch", "lightning", "tensorboard", "wandb", "mlflow", "pillow")
NOTES = """\
The time of an evaluation is what the training waits for and what runs in the background. Up to 32 probes have a panel.
The first evaluation waits for its images as well, since the first call of a library imports modules."""


@dataclass(frozen=True)
class Case:
    """What is measured.

    Attributes:
        probes: per evaluation.
        masks: whether the probes have masks, so that nothing need be searched for.
        logger: name of the logger.
        frozen_text: whether only the image tower is trained.
        evaluations: how many; the first is reported separately.
    """

    probes: int
    masks: bool = True
    logger: str = "TensorBoard"
    frozen_text: bool = False
    evaluations: int = 4

    def __str__(self) -> str:
        masks, text = "" if self.masks else " without masks", ", frozen text tower" if self.frozen_text else ""
        return f"{self.probes} probes{masks}, {self.logger}{text}"


CASES = (
    Case(8),
    Case(8, frozen_text=True),
    Case(8, masks=False),
    Case(64, evaluations=3),
    Case(64, masks=False, evaluations=3),
    Case(8, logger="none"),
    Case(8, logger="CSV"),
    Case(8, logger="W&B"),
    Case(8, logger="MLflow"),
    Case(1024, evaluations=2),
)


class FineTuning(pl.LightningModule):
    """Contrastive fine-tuning of the whole model."""

    def __init__(self, model: torch.nn.Module, tokenizer: Any, frozen_text: bool = False) -> None:
        super().__init__()
        self.model, self.tokenizer = model, tokenizer
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith(("visual.", "logit_scale")) or not frozen_text)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        images, texts = self.model.encode_image(batch[0], True), self.model.encode_text(batch[1], True)
        logits = self.model.logit_scale.exp() * images @ texts.T
        return F.cross_entropy(logits, torch.arange(len(logits)))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([each for each in self.parameters() if each.requires_grad], 1e-5)


@dataclass(frozen=True)
class Overhead:
    """Time of evaluations, in units of a training step.

    Attributes:
        case: what was measured.
        step: seconds of a training step.
        first: steps that the training waits for the first evaluation.
        first_parts: steps of each part of it.
        evaluation: steps of a later evaluation, with what runs in the background.
        waits: steps that the training waits for a later evaluation.
        parts: steps of each part of a later evaluation.
        excess: steps by which an epoch with an evaluation and the next one, while images are drawn, exceed two others.
        tower: share of ``waits`` that plain forwards of the image tower take: one for the maps, one for the images
            without their objects.
    """

    case: Case
    step: float
    first: float
    first_parts: dict[str, float]
    evaluation: float
    waits: float
    parts: dict[str, float]
    excess: float
    tower: float


class Epochs(pl.Callback):
    """Measures the seconds of each epoch."""

    def __init__(self) -> None:
        self.starts: list[float] = []

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.starts.append(perf_counter())

    @property
    def seconds(self) -> list[float]:
        return np.diff(self.starts).tolist()


def overhead(module: FineTuning, data: TensorDataset, case: Case, side: int) -> Overhead:
    """Train with an evaluation every third epoch.

    Args:
        module: what to train.
        data: one batch.
        case: what to measure.
        side: of the probes, in pixels.
    """
    epochs, stopwatch, probes = Epochs(), Stopwatch(), probe_set(case.probes, side, case.masks)
    callback = ClipCamCallback(probes, every_n_epochs=EVERY, on_drift="log")
    with tempfile.TemporaryDirectory() as folder, stopwatch:
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=EVERY * (case.evaluations - 1) + 2,  # the first evaluation comes before them
            callbacks=[epochs, callback],
            logger=make_logger(case.logger, folder),
            default_root_dir=folder,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            log_every_n_steps=1,
        )
        trainer.fit(module, DataLoader(data, BATCH))
    others, evaluated, drawn = (epochs.seconds[start::EVERY] for start in (1, 2, 3))
    step = median(others)
    first, *later = stopwatch.evaluations
    waits = median(each[WAITS] for each in later)
    return Overhead(
        case=case,
        step=round(step, 3),
        first=round(first[WAITS] / step, 3),
        first_parts={part: round(first[part] / step, 4) for part in PARTS},
        evaluation=round(median(each[WAITS] + each[BACKGROUND] for each in later) / step, 3),
        waits=round(waits / step, 3),
        parts={part: round(median(each[part] for each in later) / step, 4) for part in PARTS},
        excess=round(median(a + b - 2 * step for a, b in zip(evaluated, drawn, strict=True)) / step, 3),
        tower=round(2 * forward_seconds(module.model, case.probes, side) / waits, 3),
    )


def make_logger(name: str, folder: str) -> Logger | bool:
    """Make a logger whose files lie in a folder, and that needs no network."""
    if name == "CSV":
        return CSVLogger(folder, name="", version="run")
    if name == "W&B":
        return WandbLogger(save_dir=folder, offline=True)
    if name == "MLflow":
        return MLFlowLogger(tracking_uri=f"sqlite:///{folder}/mlflow.db", artifact_location=f"{folder}/artifacts")
    return TensorBoardLogger(folder, name="", version="run") if name == "TensorBoard" else False


@torch.no_grad()
def forward_seconds(model: Any, images: int, side: int) -> float:
    """Measure a plain forward of the image tower, in batches of 32: the median of five, or of one if they are many."""
    seconds, pixels = [], torch.randn(images, 3, side, side)
    model.eval()
    for _ in range(5 if images <= BATCH else 1):
        start = perf_counter()
        for batch in pixels.split(BATCH):
            model.encode_image(batch)
        seconds.append(perf_counter() - start)
    return median(seconds)


def verdicts(rows: Sequence[Overhead], growth: Growth) -> list[Verdict]:
    """Judge the goals for time and memory.

    Args:
        rows: times of evaluations.
        growth: of event file and memory.
    """
    judged = []
    for row in rows:
        case, where = row.case, f"{MODEL}, {row.case}"
        bound = FIRST + FURTHER * (case.probes - 8) / 8
        judged.append(
            Verdict(
                where, f"first evaluation: at most {bound:g} training steps", f"{row.first:.2f}", row.first <= bound
            )
        )
        if case.probes == 8:
            later = f"an evaluation after the first, with background: at most {STEPS:g} training step"
            judged.append(Verdict(where, later, f"{row.evaluation:.2f}", row.evaluation <= STEPS))
            share = f"image tower: at least {TOWER_SHARE:.0%} of what the training waits for a later evaluation"
            judged.append(Verdict(where, share, f"{row.tower:.0%}", row.tower >= TOWER_SHARE))
    where, spread = f"{growth.probes} probes", max(growth.resident) - min(growth.resident)
    size = f"event file: at most {KILOBYTES:g} kB per probe and evaluation"
    flat = f"resident memory from evaluation {SETTLED} to {growth.evaluations}: within ±{MEGABYTES:g} MB"
    grown = f"the same, from the median of the first quarter to that of the last: within ±{MEGABYTES:g} MB"
    return [
        *judged,
        Verdict(where, size, f"{growth.kilobytes:.1f}", growth.kilobytes <= KILOBYTES),
        Verdict(where, flat, f"range {spread:.1f} MB", spread <= 2 * MEGABYTES),
        Verdict(where, grown, f"{growth.growth:+.1f} MB", abs(growth.growth) <= MEGABYTES),
    ]


def print_rows(console: Console, rows: Sequence[Overhead]) -> None:
    """Print one column per case, in training steps."""
    table = Table(title="in training steps", box=MARKDOWN)
    table.add_column("")
    for row in rows:
        table.add_column(str(row.case), justify="right")
    for title, show in (
        ("first evaluation", lambda row: f"{row.first:.2f}"),
        *((f"  {part}", lambda row, part=part: f"{row.first_parts[part]:.3f}") for part in PARTS),
        ("later evaluation", lambda row: f"{row.evaluation:.3f}"),
        *((f"  {part}", lambda row, part=part: f"{row.parts[part]:.3f}") for part in PARTS),
        ("training waits", lambda row: f"{row.waits:.3f}"),
        ("of which image tower", lambda row: f"{row.tower:.0%}"),
        ("excess of epochs", lambda row: f"{row.excess:+.2f}"),
        ("seconds per step", lambda row: f"{row.step:.2f}"),
    ):
        table.add_row(title, *map(show, rows))
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small model and few evaluations; writes nothing")
    parser.add_argument(
        "--only", nargs="+", choices=[*map(str, CASES), MEMORY], metavar="CASE", help="by default all: %(choices)s"
    )
    options = parser.parse_args()

    start, console = perf_counter(), Console(width=200, highlight=False)
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    logging.disable(logging.WARNING)  # open_clip warns of random weights, which are intended here
    warnings.simplefilter("ignore")  # Lightning warns of epochs with one step
    if options.quick:
        model, tokenizer, batch, size = build_clip(), WordTokenizer(), 4, 64
    else:
        model, tokenizer, batch, size = open_clip.create_model(MODEL), open_clip.get_tokenizer(MODEL), BATCH, 224
    texts = tokenizer(["a photo of a flower", "a photo of a temple"] * (batch // 2))
    data = TensorDataset(torch.randn(batch, 3, size, size), texts)
    wanted = options.only or ([str(CASES[0])] if options.quick else [*map(str, CASES), MEMORY])
    rows, grown = ([], None) if options.quick else read_record()
    if MEMORY in wanted or grown is None:
        grown = growth(3 * SETTLED if options.quick else MEMORY_EVALUATIONS)
    for case in CASES:
        if str(case) in wanted:
            measured = overhead(FineTuning(model, tokenizer, case.frozen_text), data, case, size)
            rows = [row for row in rows if row.case != case] + [measured]
            print_rows(console, [measured])
            if not options.quick:
                write_record(rows, grown)  # so that what was measured is not lost
    console.print(NOTES)
    if not options.quick:  # the goals are those of the large model
        print_verdicts(console, verdicts(rows, grown))
    console.print(f"{THREADS} threads, {(perf_counter() - start) / 60:.1f} minutes")


def read_record() -> tuple[list[Overhead], Growth | None]:
    """Read what was measured before on this processor; nothing if there is none."""
    if not RESULTS.exists():
        return [], None
    content = json.loads(RESULTS.read_text())
    if content["device"] != cpu_name():
        return [], None
    rows = [Overhead(**{**row, "case": Case(**row["case"])}) for row in content["results"]]
    return rows, Growth(**{**content["growth"], "resident": tuple(content["growth"]["resident"])})


def write_record(rows: Sequence[Overhead], grown: Growth) -> None:
    """Write everything that was measured as JSON."""
    content = {
        "device": cpu_name(),
        "threads": THREADS,
        "model": MODEL,
        "batch": BATCH,
        "versions": {package: version(package) for package in PACKAGES},
        "results": [asdict(row) for row in sorted(rows, key=lambda row: CASES.index(row.case))],
        "growth": asdict(grown),
        "goals": [asdict(verdict) for verdict in verdicts(rows, grown)],
    }
    RESULTS.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
