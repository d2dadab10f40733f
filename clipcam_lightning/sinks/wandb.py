"""Write evaluations to Weights & Biases."""

import math
from typing import Any

import wandb

from clipcam_lightning.sinks.drawing import Drawings
from clipcam_lightning.sinks.logger import LoggerSink
from clipcam_lightning.sinks.metrics import collect_metrics
from clipcam_lightning.visualization.panels import probe_tiles

FILE_TYPE = "jpg"
TILES = ("input", "baseline", "now", "change")


class WandbSink(LoggerSink):
    """Logs each evaluation in one row: metrics, panels, contact sheet and a table of the probes.

    One row, because ``run.log`` counts a step of its own at each call, also when Lightning calls it. The row has
    ``trainer/global_step``, against which W&B plots all that Lightning logs. Code that gives ``run.log`` a ``step`` of
    its own beside that loses rows whose step W&B has passed already.
    """

    def log(self, drawings: Drawings, *, with_report: bool) -> None:
        """Log everything in one call of ``log_metrics``."""
        evaluation, panels = drawings.evaluation, drawings.panels
        row: dict[str, Any] = {
            **collect_metrics(evaluation, self.root, self.per_probe),
            f"{self.root}/panels": [
                wandb.Image(panel.image, caption=f"{panel.name}: {panel.prompt}", file_type=FILE_TYPE)
                for panel in panels
            ],
            f"{self.root}/probes": _make_table(drawings),
        }
        if drawings.is_sheet_due or with_report:
            row |= self._sheet(drawings)
        if with_report:
            row |= self._report(drawings)
        self.logger.log_metrics(row, step=evaluation.report.step)

    def log_report(self, drawings: Drawings, *, with_sheet: bool = False) -> None:
        """Log the report as a page that the run shows."""
        row = self._report(drawings) | (self._sheet(drawings) if with_sheet else {})
        self.logger.log_metrics(row, step=drawings.evaluation.report.step)

    def notify(self, text: str) -> None:
        """Send an alert of W&B, by mail or Slack as the user has set it there."""
        self.logger.experiment.alert("CLIP attention", text, level="WARN")

    def _sheet(self, drawings: Drawings) -> dict[str, Any]:
        return {f"{self.root}/contact_sheet": wandb.Image(drawings.logged_sheet, file_type=FILE_TYPE)}

    def _report(self, drawings: Drawings) -> dict[str, Any]:
        return {f"{self.root}/report": wandb.Html(drawings.report, inject=False)}


def _make_table(drawings: Drawings) -> "wandb.Table":
    """Tabulate the probes that have a panel, with their images and metrics, so that W&B can group and compare them."""
    evaluation = drawings.evaluation
    columns: list[str | int] = ["probe", "prompt", *TILES, "drift", "similarity", "flagged", "reason"]
    has_masks = any(mask is not None for mask in evaluation.masks)
    table = wandb.Table(columns=[*columns, "energy_inside_mask"] if has_masks else columns)
    for panel in drawings.panels:
        i, probe = panel.index, evaluation.report.probes[panel.index]
        maps = evaluation.baseline.maps[i], evaluation.snapshot.maps[i]
        tiles = probe_tiles(evaluation.pixels[i], *maps, evaluation.masks[i])
        images = [wandb.Image(tile, file_type=FILE_TYPE) for tile in tiles]
        values = [probe.drift, probe.similarity, probe.flagged, probe.reason]
        energy = probe.energy_inside_mask if math.isfinite(probe.energy_inside_mask) else None
        table.add_data(probe.name, probe.prompt, *images, *values, *([energy] if has_masks else []))
    return table
