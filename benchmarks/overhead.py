"""What does an evaluation cost a training? Time, size of the event file, and memory.

Lightning trains the whole ViT-B-32 of open_clip contrastively on batches of 32 pairs, with AdamW in float32. Each epoch
has one step, and every third epoch has an evaluation. So steps with and without an evaluation alternate in one process,
and the unit is the median step of the epochs in which no part of an evaluation runs. The parts of an evaluation are
timed by wrapping the functions that do the work. Weights are random, which does not change the time. The probes are
crops of the two photographs that scikit-learn ships.

Run it: python -m benchmarks.overhead  (``--quick``: a small model and few evaluations; writes nothing)
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
from lightning.pytorch.loggers import TensorBoardLogger
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
EVALUATIONS = {8: 4, 64: 3, 1024: 2}  # by number of probes; the first is reported separately
NOISE_UP_TO = 8  # probes; the noise floor takes the time of 12 evaluations
EVERY = 3  # epochs: one with an evaluation, one while its images are drawn, one with neither
STEPS, KILOBYTES, MEGABYTES = 1.0, 60.0, 2.0  # the goals at 8 probes
MEMORY_EVALUATIONS = 1000
PACKAGES = ("clipcam-lightning", "torch", "open_clip_torch", "lightning", "tensorboard", "pillow")
NOTES = f"""\
The time of an evaluation is what the training waits for and what runs in the background. The training waits for maps,
comparison and metrics. At the first evaluation, which also measures the noise floor (up to {NOISE_UP_TO} probes), it
waits for the images as well. Up to 32 probes have a panel. Event file: what the last evaluation added, whose contact
sheet is full."""


class FineTuning(pl.LightningModule):
    """Contrastive fine-tuning of the whole model."""

    def __init__(self, model: torch.nn.Module, tokenizer: Any) -> None:
        super().__init__()
        self.model, self.tokenizer = model, tokenizer

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        images, texts = self.model.encode_image(batch[0], True), self.model.encode_text(batch[1], True)
        logits = self.model.logit_scale.exp() * images @ texts.T
        return F.cross_entropy(logits, torch.arange(len(logits)))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 1e-5)


@dataclass(frozen=True)
class Overhead:
    """Time of evaluations, in units of a training step.

    Attributes:
        probes: per evaluation.
        evaluations: how many were measured.
        step: seconds of a training step.
        first: steps that the training waits for the first evaluation.
        evaluation: steps of a later evaluation, with what runs in the background.
        waits: steps that the training waits for a later evaluation.
        parts: steps of each part of a later evaluation.
        excess: steps by which an epoch with an evaluation and the next one, while images are drawn, exceed two others.
    """

    probes: int
    evaluations: int
    step: float
    first: float
    evaluation: float
    waits: float
    parts: dict[str, float]
    excess: float


class Epochs(pl.Callback):
    """Measures the seconds of each epoch."""

    def __init__(self) -> None:
        self.starts: list[float] = []

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.starts.append(perf_counter())

    @property
    def seconds(self) -> list[float]:
        return np.diff(self.starts).tolist()


def overhead(module: FineTuning, data: TensorDataset, probes: int, evaluations: int, side: int) -> Overhead:
    """Train with an evaluation every third epoch.

    Args:
        module: what to train.
        data: one batch.
        probes: per evaluation.
        evaluations: how many.
        side: of the probes, in pixels.
    """
    epochs, stopwatch = Epochs(), Stopwatch(measures_noise=probes <= NOISE_UP_TO)
    callback = ClipCamCallback(probe_set(probes, side), every_n_epochs=EVERY, on_drift="log")
    with tempfile.TemporaryDirectory() as folder, stopwatch:
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=EVERY * (evaluations - 1) + 2,  # the first evaluation comes before them
            callbacks=[epochs, callback],
            logger=TensorBoardLogger(folder, name="", version="run"),
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            log_every_n_steps=1,
        )
        trainer.fit(module, DataLoader(data, BATCH))
    others, evaluated, drawn = (epochs.seconds[start::EVERY] for start in (1, 2, 3))
    step = median(others)
    first, *later = stopwatch.evaluations
    return Overhead(
        probes=probes,
        evaluations=1 + len(later),
        step=round(step, 3),
        first=round(first[WAITS] / step, 3),
        evaluation=round(median(evaluation[WAITS] + evaluation[BACKGROUND] for evaluation in later) / step, 3),
        waits=round(median(evaluation[WAITS] for evaluation in later) / step, 3),
        parts={part: round(median(evaluation[part] for evaluation in later) / step, 4) for part in PARTS},
        excess=round(median(a + b - 2 * step for a, b in zip(evaluated, drawn, strict=True)) / step, 3),
    )


def verdicts(rows: Sequence[Overhead], growth: Growth) -> list[Verdict]:
    """Judge the goals for 8 probes, and those for memory.

    Args:
        rows: times of evaluations.
        growth: of event file and memory.
    """
    times = [
        Verdict(
            f"{MODEL}, {row.probes} probes",
            f"an evaluation after the first, with background: at most {STEPS:g} training step",
            f"{row.evaluation:.2f}",
            row.evaluation <= STEPS,
        )
        for row in rows
        if row.probes == growth.probes
    ]
    where, low, high = f"{growth.probes} probes", min(growth.resident), max(growth.resident)
    size = f"event file: at most {KILOBYTES:g} kB per probe and evaluation"
    memory = f"resident memory from evaluation {SETTLED} to {growth.evaluations}: within ±{MEGABYTES:g} MB"
    moved = f"{growth.resident[-1] - growth.resident[0]:+.1f} MB, range {high - low:.1f} MB"
    return [
        *times,
        Verdict(where, size, f"{growth.kilobytes:.1f}", growth.kilobytes <= KILOBYTES),
        Verdict(where, memory, moved, high - low <= 2 * MEGABYTES),
    ]


def print_rows(console: Console, rows: Sequence[Overhead]) -> None:
    """Print one column per number of probes, in training steps."""
    table = Table(title="in training steps", box=MARKDOWN)
    table.add_column("")
    for row in rows:
        table.add_column(f"{row.probes} probes", justify="right")
    for title, show in (
        ("first evaluation", lambda row: f"{row.first:.2f}"),
        ("later evaluation", lambda row: f"{row.evaluation:.3f}"),
        *((f"  {part}", lambda row, part=part: f"{row.parts[part]:.3f}") for part in PARTS),
        ("training waits", lambda row: f"{row.waits:.3f}"),
        ("excess of epochs", lambda row: f"{row.excess:+.2f}"),
        ("seconds per step", lambda row: f"{row.step:.2f}"),
    ):
        table.add_row(title, *map(show, rows))
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small model and few evaluations; writes nothing")
    parser.add_argument(
        "--probes", nargs="+", type=int, choices=EVALUATIONS, default=list(EVALUATIONS), help="by default all"
    )
    options = parser.parse_args()

    start, console = perf_counter(), Console(width=140, highlight=False)
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    logging.disable(logging.WARNING)  # open_clip warns of random weights, which are intended here
    warnings.simplefilter("ignore")  # Lightning warns of epochs with one step
    if options.quick:
        model, tokenizer, batch, size, counts = build_clip(), WordTokenizer(), 4, 64, [8]
    else:
        model, tokenizer, batch = open_clip.create_model(MODEL), open_clip.get_tokenizer(MODEL), BATCH
        size, counts = 224, options.probes
    texts = tokenizer(["a photo of a flower", "a photo of a temple"] * (batch // 2))
    data = TensorDataset(torch.randn(batch, 3, size, size), texts)
    grown = growth(3 * SETTLED if options.quick else MEMORY_EVALUATIONS)
    rows = []
    for probes in counts:
        rows.append(overhead(FineTuning(model, tokenizer), data, probes, EVALUATIONS[probes], size))
        print_rows(console, rows)
    console.print(NOTES)
    if not options.quick:  # the goals are those of the large model
        judged = verdicts(rows, grown)
        print_verdicts(console, judged)
        RESULTS.write_text(record(rows, grown, judged))
    console.print(f"{THREADS} threads, {(perf_counter() - start) / 60:.1f} minutes")


def record(rows: Sequence[Overhead], grown: Growth, judged: Sequence[Verdict]) -> str:
    """Format everything that was measured as JSON."""
    content = {
        "device": cpu_name(),
        "threads": THREADS,
        "model": MODEL,
        "batch": BATCH,
        "versions": {package: version(package) for package in PACKAGES},
        "results": [asdict(row) for row in rows],
        "growth": asdict(grown),
        "goals": [asdict(verdict) for verdict in judged],
    }
    return json.dumps(content, indent=2) + "\n"


if __name__ == "__main__":
    main()
