"""Write evaluations to MLflow."""

from clipcam_lightning.sinks.drawing import Drawings
from clipcam_lightning.sinks.logger import LoggerSink
from clipcam_lightning.sinks.metrics import collect_metrics


class MlflowSink(LoggerSink):
    """Logs metrics, one image per probe and the contact sheet by step, and the report as an artifact.

    MLflow's page shows images of one name with a slider over their steps.
    """

    def log(self, drawings: Drawings, *, with_report: bool) -> None:
        """Log the metrics first: images take a request each."""
        evaluation, step = drawings.evaluation, drawings.evaluation.report.step
        names = [_make_key(probe.name, i) for i, probe in enumerate(evaluation.report.probes)]
        self.logger.log_metrics(collect_metrics(evaluation, self.root, self.per_probe, names), step=step)
        if with_report:
            self.log_report(drawings)
        client, run_id = self.logger.experiment, self.logger.run_id
        for panel in drawings.panels:
            client.log_image(run_id, panel.image, key=f"{self.root}_maps/{names[panel.index]}", step=step)
        if drawings.is_sheet_due or with_report:
            self._log_sheet(drawings)

    def log_report(self, drawings: Drawings, *, with_sheet: bool = False) -> None:
        """Log the report, in place of the one before."""
        self.logger.experiment.log_text(self.logger.run_id, drawings.report, f"{self.root}/report.html")
        if with_sheet:
            self._log_sheet(drawings)

    def _log_sheet(self, drawings: Drawings) -> None:
        key, step = f"{self.root}_contact_sheet/all_probes", drawings.evaluation.report.step
        self.logger.experiment.log_image(self.logger.run_id, drawings.logged_sheet, key=key, step=step)


def _make_key(name: str, index: int) -> str:
    """Name a probe for MLflow, which refuses letters beyond ASCII in the key of an image; no probe has this name."""
    return name if name.isascii() else f"probe {index + 1}"
