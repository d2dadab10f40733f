"""Evaluations of given raw maps, so that tests know what must be shown; all metrics are the callback's own."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from clipcam_lightning.cam.urls import PathLike
from clipcam_lightning.drift.compare import compare
from clipcam_lightning.drift.rule import DriftRule
from clipcam_lightning.drift.snapshot import Snapshot, SnapshotInfo
from clipcam_lightning.monitoring.evaluation import Evaluation, Sink
from clipcam_lightning.monitoring.history import HistoryEntry, thinned
from clipcam_lightning.monitoring.monitor import mean_metrics
from clipcam_lightning.sinks.drawing import Drawer
from clipcam_lightning.sinks.files import FileSink
from clipcam_lightning.sinks.tensorboard import TensorBoardSink
from clipcam_lightning.sinks.tensorboard_images import TensorBoardImageSink
from clipcam_lightning.sinks.tensorboard_tab import TabSink
from clipcam_lightning.storage.paths import as_path
from clipcam_lightning.storage.run_folder import RunFolder

RULE = DriftRule(0.5)


def evaluations_of(
    maps_by_step: Mapping[int, Float[Tensor, "n h w"]],
    prompts: Sequence[str],
    names: Sequence[str] | None = None,
    pixels: UInt8[Tensor, "n 3 y x"] | None = None,
    baseline: Snapshot | None = None,
    digests: Sequence[str] | None = None,
    *,
    method: str = "hirescam",
    previous: bool = False,
    history: Sequence[HistoryEntry] = (),
) -> list[Evaluation]:
    """Make one evaluation per step.

    Args:
        maps_by_step: raw maps.
        prompts: of the probes.
        names: of the probes; by default "probe-0" and so on.
        pixels: inputs of the model; by default distinct ramps.
        baseline: of the same digests and method; by default the first evaluation.
        digests: of the probes; by default of their prompts.
        method: of the maps.
        previous: compare each evaluation with the previous one.
        history: of the run that is resumed.
    """
    names = names or [f"probe-{i}" for i in range(len(prompts))]
    digests = digests or [_digest(prompt) for prompt in prompts]
    pixels = ramps(len(prompts)) if pixels is None else pixels
    entries, evaluations = list(history), []
    for epoch, (step, maps) in enumerate(maps_by_step.items()):
        snapshot = snapshot_of(maps, prompts, names, digests, step=step, epoch=epoch, method=method)
        baseline = baseline or snapshot
        report = compare(baseline, snapshot, RULE)
        number = entries[-1].number + 1 if entries else 0
        entries = thinned([*entries, HistoryEntry.of(snapshot, report, number)])
        evaluations.append(
            Evaluation(
                pixels=pixels,
                masks=[None] * len(prompts),
                snapshot=snapshot,
                baseline=baseline,
                report=report,
                history=tuple(entries),
                digests=digests,
                metrics=mean_metrics(report, snapshot, torch.zeros(len(prompts), dtype=torch.bool)),
            )
        )
        baseline = replace(snapshot, noise_floor=baseline.noise_floor) if previous else baseline
    return evaluations


def snapshot_of(
    maps: Float[Tensor, "n h w"],
    prompts: Sequence[str],
    names: Sequence[str],
    digests: Sequence[str],
    *,
    step: int = 0,
    epoch: int = 0,
    method: str = "hirescam",
) -> Snapshot:
    """Make a snapshot of raw maps, with a similarity that differs by step and probe."""
    unknown = torch.full((len(maps),), torch.nan)
    return Snapshot(
        maps=maps,
        similarity=torch.linspace(0, 0.5, len(maps)) + 0.4 * torch.tensor(float(step)).cos(),
        energy_inside_mask=unknown,
        pointing=unknown,
        names=tuple(names),
        prompts=tuple(prompts),
        info=SnapshotInfo(
            digest=_digest(*digests),
            step=step,
            epoch=epoch,
            method=method,
            target="similarity",
            scales=(1.0,),
            flip=False,
            fuse="mean",
            layers=("visual.ln_1",),
            fingerprint="synthetic",
            dtype="float32",
            versions={},
        ),
        noise_floor=torch.full((len(maps),), 0.02),
    )


def ramps(count: int, side: int = 32) -> UInt8[Tensor, "n 3 side side"]:
    """Make distinct images that also differ from their rotations and reflections."""
    across = torch.linspace(0, 200, side).expand(side, side)
    channels = torch.stack([across, across.T, torch.zeros(side, side)])
    return (channels + torch.arange(count).view(-1, 1, 1, 1) % 50).to(torch.uint8)


def random_maps(
    steps: Iterable[int], count: int, grid: tuple[int, int] = (3, 5), seed: int = 0
) -> dict[int, Float[Tensor, "n h w"]]:
    """Make maps that move from step to step, each probe's by its own stride; the default grid is not square."""
    generator = torch.Generator().manual_seed(seed)
    start, away = torch.rand(2, count, *grid, generator=generator)
    stride = torch.rand(count, 1, 1, generator=generator)
    return {step: start.lerp(away, (stride * (1 + i) / 8).clamp(max=1)) for i, step in enumerate(steps)}


def write_run(
    folder: Path, evaluations: Iterable[Evaluation], root: str = "clipcam", *, tab: bool = True, panels: int = 0
) -> None:
    """Write evaluations as the callback does, through one writer.

    Args:
        folder: of the run.
        evaluations: in the order of writing.
        root: first word of every tag.
        tab: whether to write data for the tab besides the metrics.
        panels: number of images to log per evaluation.
    """
    writer = SummaryWriter(folder)
    sinks: list[Sink] = [TensorBoardSink(writer, root)]
    if tab:
        sinks.append(TabSink(writer, root))
    if panels:
        sinks.append(TensorBoardImageSink(writer, root, Drawer(panels)))
    for evaluation in evaluations:
        for sink in sinks:
            sink.write(evaluation)
    writer.close()


def write_files(folder: PathLike, evaluations: Iterable[Evaluation]) -> None:
    """Write snapshots and history as the callback does."""
    sink = FileSink(RunFolder(as_path(folder), "synthetic"))
    for evaluation in evaluations:
        sink.write(evaluation)


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode("utf-8", "surrogatepass")).hexdigest()
