"""Print what the demo finds: where the model looks, and what its accuracy does not show."""

import math
import os
import shutil
import sys
from pathlib import Path

import lightning.pytorch as pl
import open_clip
import torch
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from typing_extensions import override

from clipcam_lightning.callback import ClipCamCallback
from clipcam_lightning.drift import metrics
from clipcam_lightning.monitoring.evaluation import Evaluation
from clipcam_lightning.shapes_world.pretraining import retrieval_accuracy
from clipcam_lightning.shapes_world.scenes import draw_scenes, stamp_mask, with_haze, with_stamps
from clipcam_lightning.storage.run_folder import CONTACT_SHEET, REPORT

HELD_OUT = 300  # scenes
WIDTH = 110  # columns of an output that is no terminal


class EpochLines(pl.Callback):
    """Prints one line per evaluation, also where there is no terminal for a progress bar.

    Args:
        clipcam: stands before this callback in the Trainer's list, so that its evaluation is done.
    """

    def __init__(self, clipcam: ClipCamCallback) -> None:
        self.clipcam = clipcam

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        size = sum(parameter.numel() for parameter in pl_module.parameters())
        print(f"Fine-tuning a CLIP of {size / 1e6:.1f} million parameters; one line per epoch follows.", flush=True)

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        report = self.clipcam.report
        if trainer.sanity_checking or report is None:
            return
        print(
            f"step {trainer.global_step} of {trainer.estimated_stepping_batches}: "
            f"accuracy {float(trainer.callback_metrics['val/accuracy']):.2f}, "
            f"{len(report.flagged)} of {len(report.probes)} probes flagged{', ALARM' if report.alarm else ''}",
            flush=True,
        )


def print_summary(callback: ClipCamCallback, model: open_clip.CLIP, log_dir: str) -> None:
    """Print a table of the probes, flagged ones first, the alarm and its evidence, and where the images are.

    Args:
        callback: after the fit.
        model: after the fit.
        log_dir: of the fit's logger.
    """
    assert callback.monitor is not None
    evaluation = callback.monitor.last
    assert evaluation is not None
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    console.print(_tabulate_probes(evaluation))
    console.print(Panel(_describe_alarm(evaluation, model), title="What the accuracy does not show", expand=False))
    folder = Path(callback.directory or log_dir)
    # A path that is broken into lines cannot be copied.
    console.print(f"What each map looked at, before and now:  {folder / REPORT}", soft_wrap=True)
    console.print(f"All maps of all steps in one image:       {folder / CONTACT_SHEET}", soft_wrap=True)
    console.print(
        f"The tab CLIP CAM in TensorBoard:          {_tensorboard()} --logdir {Path(log_dir).parents[1]}",
        soft_wrap=True,
    )


def _tabulate_probes(evaluation: Evaluation) -> Table:
    table = Table(title=f"Attention after {evaluation.snapshot.info.step} steps, compared with before")
    for column in ("probe", "similarity", "drift", "energy on the object"):
        table.add_column(column, justify="left" if column == "probe" else "right", no_wrap=True)
    table.add_column("flagged because")
    for i in evaluation.report.flagged_first:
        probe = evaluation.report.probes[i]
        table.add_row(
            probe.name,
            _before_now(probe.similarity, probe.similarity_change),
            f"{probe.drift:.2f}",
            _before_now(probe.energy_inside_mask, probe.energy_change),
            f"[red]{probe.reason}[/red]" if probe.flagged else "",
        )
    return table


def _describe_alarm(evaluation: Evaluation, model: open_clip.CLIP) -> str:
    report = evaluation.report
    hazy = with_haze(draw_scenes(HELD_OUT, seed=3, corner_free=True), 0.6, 1.0, seed=3)
    stamp = torch.from_numpy(stamp_mask()).expand(len(report.probes), -1, -1)
    before, now = (
        metrics.energy_inside(maps, stamp).nanmean() for maps in (evaluation.baseline.maps, evaluation.snapshot.maps)
    )
    alarm = f"[red]ALARM[/red]: {report.finding}: {report.grounds}." if report.alarm else "No alarm."
    return (
        f"{alarm}\n\n"
        f"retrieval accuracy with stamp          {retrieval_accuracy(model, with_stamps(hazy)):.2f}\n"
        f"  the same images without stamp        {retrieval_accuracy(model, hazy):.2f}\n"
        f"  with the stamp of another caption    {retrieval_accuracy(model, with_stamps(hazy, shift=7)):.2f}\n"
        f"energy of the maps on the stamp        {before:.2f} -> {now:.2f}"
    )


def _tensorboard() -> str:
    """Return the command of the TensorBoard that is installed with this package, which has the tab."""
    own = Path(sys.executable).with_name("tensorboard")
    return "tensorboard" if shutil.which("tensorboard") == str(own) else os.path.relpath(own)


def _before_now(now: float, change: float) -> str:
    return f"{now - change:.2f} -> {now:.2f}" if math.isfinite(change) else "unknown"
