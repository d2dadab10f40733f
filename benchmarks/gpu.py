"""What does an evaluation cost on a GPU? Time and memory in float32 and bfloat16, beside pytorch-grad-cam.

Each evaluation maps one prompt per probe, from images in the memory of the CPU to maps in the memory of the CPU. The
contenders take turns in one process, and each time is divided by that of plain forwards of the image tower over the
same images in the same round. The weights are random, which does not change the time, and trainable, as in a
fine-tuning. Then Lightning trains ViT-B-32 contrastively, with an evaluation after every second epoch, in both
precisions.

Run it: make gpu  (``python -m benchmarks.gpu --quick``: small models on the CPU, to check that it runs; writes nothing)
"""

import argparse
import json
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import lightning.pytorch as pl
import open_clip
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from typing_extensions import override

from benchmarks.measure import FORWARD, peak_bytes, seconds_of
from benchmarks.peers import image_tower, pytorch_grad_cam
from benchmarks.photographs import probe_set
from clipcam_lightning import ClipCamCallback, ClipModel, find_clip
from clipcam_lightning.cam.explain import BATCH_SIZE
from clipcam_lightning.cam.precision import PRECISIONS, Precision
from clipcam_lightning.cam.settings import MapSettings
from clipcam_lightning.cam.transfer import copy_to_device
from clipcam_lightning.monitoring.explainer import explain_within_memory
from clipcam_lightning.shapes_world.models import WordTokenizer, build_clip

RESULTS = Path(__file__).with_suffix(".json")
MODELS = ("ViT-B-32", "ViT-L-14-336", "ViT-SO400M-14-SigLIP-384", "RN50")
PROBES, ROUNDS = (8, 64, 1024), 5
QUICK_MODELS, QUICK_PROBES = ("vit", "resnet"), (2, 4)
TRAINED, BATCH, STEPS, EVALUATIONS = "ViT-B-32", 32, 20, 5
PEER = "pytorch-grad-cam, float32"
PACKAGES = ("clipcam-lightning", "torch", "open_clip_torch", "grad-cam", "lightning")
NO_GPU = "There is no GPU here that torch can use, so nothing was measured; --quick checks the program on the CPU."


@dataclass(frozen=True)
class Cost:
    """Time and memory of one contender.

    Attributes:
        model: name of the architecture.
        probes: images of the evaluation, with one prompt each.
        contender: what was measured.
        seconds: the median.
        ratio: seconds in units of the plain forwards of the same round; the median.
        megabytes: peak memory above that of the model.
    """

    model: str
    probes: int
    contender: str
    seconds: float
    ratio: float
    megabytes: float


@dataclass(frozen=True)
class Overhead:
    """Cost of evaluations during a training.

    Attributes:
        precision: of the training and of the maps.
        probes: per evaluation.
        step: seconds of a training step.
        evaluation: training steps by which an epoch with an evaluation is longer than one without; the median.
    """

    precision: Precision
    probes: int
    step: float
    evaluation: float


class FineTuning(pl.LightningModule):
    """Contrastive fine-tuning of the whole model, which records when each epoch starts."""

    def __init__(self, model: nn.Module, tokenizer: Any) -> None:
        super().__init__()
        self.model, self.tokenizer = model, tokenizer
        self.starts: list[float] = []

    @override
    def on_train_epoch_start(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.starts.append(perf_counter())

    @override
    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        images, texts = self.model.encode_image(batch[0], True), self.model.encode_text(batch[1], True)
        logits = self.model.logit_scale.exp() * images @ texts.T
        return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 1e-5)


def build(name: str) -> nn.Module:
    """Build a model of open_clip, or of the shapes world, with random weights."""
    return build_clip(name) if name in QUICK_MODELS else open_clip.create_model(name)


def contenders(clip: ClipModel, probes: int, device: torch.device) -> dict[str, Callable[[], object]]:
    """List what is measured by name, the plain forwards first.

    Args:
        clip: the model.
        probes: number of images.
        device: of the model.
    """
    images = torch.randn(probes, 3, *clip.tower.input_size)
    with torch.no_grad():
        width = clip.features(images[:1]).shape[-1]
    texts = F.normalize(torch.randn(probes, 1, width, device=device), dim=-1)
    ours = {
        f"{method}, {precision}": partial(
            _evaluate, clip, images, texts, MapSettings(method=method, precision=precision)
        )
        for method in ("auto", "gradcam")
        for precision in PRECISIONS
    }
    return {FORWARD: partial(_forward, clip, images), **ours, PEER: partial(_run_peer, clip, images, texts)}


def measure(name: str, probes: Sequence[int], rounds: int, device: torch.device) -> Iterator[Cost]:
    """Measure memory, then time in turns, of all contenders on one model.

    Args:
        name: of the architecture.
        probes: numbers of images.
        rounds: turns of each contender.
        device: of the model.
    """
    torch.manual_seed(0)
    clip = find_clip(build(name).eval().to(device))
    for count in probes:
        field = contenders(clip, count, device)
        megabytes = {contender: peak_bytes(run, device) / 2**20 for contender, run in field.items()}
        turns = [{contender: seconds_of(run, device) for contender, run in field.items()} for _ in range(rounds)]
        for contender in field:
            yield Cost(
                model=name,
                probes=count,
                contender=contender,
                seconds=round(median(turn[contender] for turn in turns), 5),
                ratio=round(median(turn[contender] / turn[FORWARD] for turn in turns), 3),
                megabytes=round(megabytes[contender], 1),
            )


def measure_overhead(name: str, probes: int, precision: Precision, device: torch.device, steps: int) -> Overhead:
    """Train with an evaluation after every second epoch.

    Args:
        name: of the architecture.
        probes: per evaluation.
        precision: of the training and of the maps.
        device: of the model.
        steps: per epoch.
    """
    is_quick = name in QUICK_MODELS
    tokenizer, batch = (WordTokenizer(), 4) if is_quick else (open_clip.get_tokenizer(name), BATCH)
    module = FineTuning(build(name), tokenizer)
    side = find_clip(module.model).tower.input_size[0]
    texts = tokenizer(["a photo of a flower", "a photo of a temple"] * (batch // 2 * steps))
    data = TensorDataset(torch.randn(batch * steps, 3, side, side), texts)
    callback = ClipCamCallback(
        probe_set(probes, side), every_n_epochs=2, precision=precision, on_drift="log", on_error="raise"
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            accelerator="gpu" if device.type == "cuda" else "cpu",
            devices=1,
            precision="bf16-mixed" if precision == "bfloat16" else "32-true",
            max_epochs=2 if is_quick else 2 * EVALUATIONS + 1,
            callbacks=[callback],
            logger=TensorBoardLogger(folder, name="", version="run"),
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            log_every_n_steps=steps,
        )
        trainer.fit(module, DataLoader(data, batch, pin_memory=device.type == "cuda"))
    epochs = [after - before for before, after in pairwise([*module.starts, perf_counter()])]
    # The second epoch, the fourth and so on end in an evaluation. Images of the one before are drawn in the others.
    plain, evaluated = median(epochs[::2]), median(epochs[1::2])
    step = plain / steps
    return Overhead(precision, probes, round(step, 5), round((evaluated - plain) / step, 3))


def print_costs(console: Console, costs: Sequence[Cost]) -> None:
    """Print one table per model: milliseconds per probe, time in forwards, and megabytes."""
    for model in dict.fromkeys(cost.model for cost in costs):
        own = [cost for cost in costs if cost.model == model]
        numbers = list(dict.fromkeys(cost.probes for cost in own))
        table = Table(title=model, box=MARKDOWN)
        table.add_column("contender")
        for number in numbers:
            for unit in ("ms per probe", "x forward", "MB"):
                table.add_column(f"{unit}, {number} probes", justify="right")
        for contender in dict.fromkeys(cost.contender for cost in own):
            row = [cost for cost in own if cost.contender == contender]
            cells = (
                (f"{1e3 * each.seconds / each.probes:.2f}", f"{each.ratio:.2f}", f"{each.megabytes:.0f}")
                for each in row
            )
            table.add_row(contender, *(cell for triple in cells for cell in triple))
        console.print(table)


def print_overheads(console: Console, rows: Sequence[Overhead]) -> None:
    """Print one row per precision and number of probes."""
    table = Table(title="during a training", box=MARKDOWN)
    for column in ("precision", "probes", "ms per step", "steps per evaluation"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(row.precision, str(row.probes), f"{1e3 * row.step:.1f}", f"{row.evaluation:.2f}")
    console.print(table)


def record(costs: Sequence[Cost], rows: Sequence[Overhead], device: torch.device) -> str:
    """Format everything that was measured as JSON."""
    content = {
        "device": torch.cuda.get_device_name(device),
        "batch_size": BATCH_SIZE,
        "versions": {package: version(package) for package in PACKAGES},
        "results": [asdict(cost) for cost in costs],
        "training": {"model": TRAINED, "batch": BATCH, "results": [asdict(row) for row in rows]},
    }
    return json.dumps(content, indent=2) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small models on the CPU; writes nothing")
    options = parser.parse_args()
    if not options.quick and not torch.cuda.is_available():
        sys.exit(NO_GPU)

    console = Console(width=160, highlight=False)
    logging.disable(logging.WARNING)  # open_clip warns of random weights, which are intended here
    warnings.simplefilter("ignore")  # Lightning warns of small data
    device = torch.device("cpu" if options.quick else "cuda")
    models, probes, rounds = (QUICK_MODELS, QUICK_PROBES, 1) if options.quick else (MODELS, PROBES, ROUNDS)
    costs: list[Cost] = []
    for model in models:
        of_model = list(measure(model, probes, rounds, device))
        print_costs(console, of_model)
        costs += of_model
    trained, steps = (QUICK_MODELS[0], 2) if options.quick else (TRAINED, STEPS)
    rows = [
        measure_overhead(trained, count, precision, device, steps)
        for precision in PRECISIONS
        for count in (probes[:1] if options.quick else probes)
    ]
    print_overheads(console, rows)
    if not options.quick:
        RESULTS.write_text(record(costs, rows, device))


def _forward(clip: ClipModel, images: Tensor) -> None:
    with torch.no_grad():
        for batch in images.split(BATCH_SIZE):
            image_tower(clip)(copy_to_device(batch, clip.device))


def _evaluate(clip: ClipModel, images: Tensor, texts: Tensor, settings: MapSettings) -> None:
    explain_within_memory(clip, images, texts, settings).maps.cpu()


def _run_peer(clip: ClipModel, images: Tensor, texts: Tensor) -> None:
    for batch, own in zip(images.split(BATCH_SIZE), texts.split(BATCH_SIZE), strict=True):
        pytorch_grad_cam(clip, copy_to_device(batch, clip.device), own)


if __name__ == "__main__":
    main()
