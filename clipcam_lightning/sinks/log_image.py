"""Write images to a logger of the user's own that has a method ``log_image``."""

from typing import Any

from clipcam_lightning.monitoring.evaluation import Evaluation, Sink
from clipcam_lightning.sinks.drawing import Drawer, Drawings

SHEET_CAPTION = "one row per probe, one column per evaluation"


class LogImageSink(Sink):
    """Writes images with ``logger.log_image(key, images, step=..., caption=[...])``, as ``WandbLogger`` has it.

    All panels of an evaluation go in one call, the contact sheet, if it is due, in another one.

    Args:
        logger: gets PIL images, from a thread of its own.
        root: first word of every key.
        draw: draws the images of an evaluation.
    """

    def __init__(self, logger: Any, root: str, draw: Drawer) -> None:
        self.logger = logger
        self.root = root
        self.draw = draw
        self._without_sheet: Evaluation | None = None

    def __str__(self) -> str:
        return type(self.logger).__name__

    def write(self, evaluation: Evaluation) -> None:
        """Log the images at the step of the evaluation.

        Raises:
            Exception: the logger failed.
        """
        drawings, step = self.draw(evaluation), evaluation.report.step
        captions = [f"{panel.name}: {panel.prompt}" for panel in drawings.panels]
        images = [panel.image for panel in drawings.panels]
        self.logger.log_image(f"{self.root}/panels", images, step=step, caption=captions)
        self._without_sheet = None if drawings.is_sheet_due else evaluation
        if drawings.is_sheet_due:
            self._log_sheet(drawings)

    def close(self) -> None:
        """Log the contact sheet of the last evaluation, if it was not due.

        Raises:
            Exception: the logger failed.
        """
        last, self._without_sheet = self._without_sheet, None
        if last is not None:
            self._log_sheet(self.draw(last))

    def _log_sheet(self, drawings: Drawings) -> None:
        key, step, caption = f"{self.root}/contact_sheet", drawings.evaluation.report.step, [SHEET_CAPTION]
        self.logger.log_image(key, [drawings.logged_sheet], step=step, caption=caption)
