"""Write evaluations to Comet."""

from PIL import Image

from clipcam_lightning.sinks.drawing import Drawings
from clipcam_lightning.sinks.logger import LoggerSink
from clipcam_lightning.sinks.metrics import collect_metrics


class CometSink(LoggerSink):
    """Logs metrics, one image per probe and the contact sheet by step, and the report as an asset."""

    def log(self, drawings: Drawings, *, with_report: bool) -> None:
        """Log metrics, images and, if that is wanted, the report."""
        evaluation, step = drawings.evaluation, drawings.evaluation.report.step
        self.logger.log_metrics(collect_metrics(evaluation, self.root, self.per_probe), step=step)
        images = {f"{self.root}_maps/{panel.name}": panel.image for panel in drawings.panels}
        if drawings.is_sheet_due or with_report:
            images |= self._sheet(drawings)
        self._log_images(images, step)
        if with_report:
            self.log_report(drawings)

    def log_report(self, drawings: Drawings, *, with_sheet: bool = False) -> None:
        """Log the report, in place of the one before."""
        step = drawings.evaluation.report.step
        self.logger.experiment.log_asset_data(drawings.report, f"{self.root}/report.html", overwrite=True, step=step)
        if with_sheet:
            self._log_images(self._sheet(drawings), step)

    def notify(self, text: str) -> None:
        """Send a notification of Comet, by mail."""
        self.logger.experiment.send_notification("CLIP attention", text)

    def _sheet(self, drawings: Drawings) -> dict[str, Image.Image]:
        return {f"{self.root}_contact_sheet/all_probes": drawings.logged_sheet}

    def _log_images(self, images: dict[str, Image.Image], step: int) -> None:
        for name, image in images.items():
            self.logger.experiment.log_image(image, name=name, image_format="jpeg", step=step)
