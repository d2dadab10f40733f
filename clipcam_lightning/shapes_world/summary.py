"""Print what the demo found: where the model looks, and what its accuracy does not show."""

import math
import os
import shutil
import sys
from pathlib import Path

import open_clip
import torch
from rich.console import Console
from rich.table import Table

from clipcam_lightning.callback import ClipCamCallback
from clipcam_lightning.drift import metrics
from clipcam_lightning.drift.probe_drift import ProbeDrift
from clipcam_lightning.shapes_world.pretraining import retrieval_accuracy
from clipcam_lightning.shapes_world.scenes import draw_scenes, stamp_mask, with_haze, with_stamps
from clipcam_lightning.storage.run_folder import CONTACT_SHEET

HELD_OUT = 300  # scenes


def print_summary(callback: ClipCamCallback, model: open_clip.CLIP, log_dir: str) -> None:
    """Print a table of the probes, flagged ones first, the accuracies, and the paths of the images.

    Args:
        callback: after the fit.
        model: after the fit.
        log_dir: of the fit's logger.
    """
    assert callback.monitor is not None
    evaluation = callback.monitor.last
    assert evaluation is not None
    table = Table(title=f"Attention after {evaluation.snapshot.info.step} steps, compared with before")
    for column, justify in (
        ("probe", "left"),
        ("similarity", "right"),
        ("drift", "right"),
        ("energy on the object", "right"),
        ("flagged", "left"),
    ):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for i in evaluation.report.flagged_first:
        probe = evaluation.report.probes[i]
        table.add_row(
            probe.name,
            _before_now(probe.similarity, probe.similarity_change),
            f"{probe.drift:.2f}",
            _before_now(probe.energy_inside_mask, probe.energy_change),
            _reason(probe),
        )
    console = Console()
    console.print(table)

    hazy = with_haze(draw_scenes(HELD_OUT, seed=3, corner_free=True), 0.6, 1.0, seed=3)
    stamp = torch.from_numpy(stamp_mask()).expand(len(evaluation.report.probes), -1, -1)
    before, now = (
        metrics.energy_inside(maps, stamp).nanmean() for maps in (evaluation.baseline.maps, evaluation.snapshot.maps)
    )
    console.print(f"retrieval accuracy with stamp          {retrieval_accuracy(model, with_stamps(hazy)):.2f}")
    console.print(f"  the same images without stamp        {retrieval_accuracy(model, hazy):.2f}")
    console.print(f"  with the stamp of another caption    {retrieval_accuracy(model, with_stamps(hazy, shift=7)):.2f}")
    console.print(f"energy on the stamp                    {before:.2f} -> {now:.2f}")
    # A path that is broken into lines cannot be copied.
    console.print(f"\ncontact sheet: {Path(callback.directory or log_dir) / CONTACT_SHEET}", soft_wrap=True)
    console.print(f"{_tensorboard()} --logdir {Path(log_dir).parents[1]}", soft_wrap=True)


def _tensorboard() -> str:
    """Return the command of the TensorBoard that is installed with this package, which has the tab."""
    own = Path(sys.executable).with_name("tensorboard")
    return "tensorboard" if shutil.which("tensorboard") == str(own) else os.path.relpath(own)


def _before_now(now: float, change: float) -> str:
    return f"{now - change:.2f} -> {now:.2f}" if math.isfinite(change) else "unknown"


def _reason(probe: ProbeDrift) -> str:
    if not probe.flagged:
        return ""
    return "[red]degenerate map[/red]" if probe.degenerate else "[red]drifted[/red]"
