"""What the sinks of all loggers with images have in common: when the report goes along, and when to notify somebody."""

from abc import abstractmethod
from typing import Any

from clipcam_lightning.monitoring.evaluation import Evaluation, Sink
from clipcam_lightning.sinks.drawing import Drawer, Drawings


class LoggerSink(Sink):
    """Writes each evaluation to one logger: metrics and images, and the report of an alarm and of the last evaluation.

    A model that follows its shortcut does so in every epoch, so that the report and the notification follow the first
    of several alarms about the same.

    Args:
        logger: of the Trainer.
        root: first word of every name.
        per_probe: whether to log the metrics of each probe, too.
        draw: draws the images of an evaluation.
    """

    def __init__(self, logger: Any, root: str, per_probe: bool, draw: Drawer) -> None:
        self.logger = logger
        self.root = root
        self.per_probe = per_probe
        self.draw = draw
        self._subject: tuple[str, str, bool] | None = None  # of the last alarm
        self._without_report: Evaluation | None = None

    def __str__(self) -> str:
        return type(self.logger).__name__

    def write(self, evaluation: Evaluation) -> None:
        """Log the evaluation at its step.

        Raises:
            Exception: the logger failed.
        """
        subject = evaluation.report.subject
        is_new = subject is not None and subject != self._subject
        self._without_report = None
        self.log(self.draw(evaluation), with_report=is_new)
        self._subject = subject
        self._without_report = None if is_new else evaluation
        if is_new:
            self.notify(str(evaluation.report))

    def close(self) -> None:
        """Log report and contact sheet of the last evaluation, if that could be logged and they were not.

        Raises:
            Exception: the logger failed.
        """
        last, self._without_report = self._without_report, None
        if last is not None:
            drawings = self.draw(last)
            self.log_report(drawings, with_sheet=not drawings.is_sheet_due)

    @abstractmethod
    def log(self, drawings: Drawings, *, with_report: bool) -> None:
        """Log metrics, panels, the contact sheet if it is due, and the report and sheet if they are wanted."""

    @abstractmethod
    def log_report(self, drawings: Drawings, *, with_sheet: bool = False) -> None:
        """Log the report of an evaluation, and the contact sheet if that is wanted."""

    def notify(self, text: str) -> None:
        """Send an alarm to whoever follows the run, if the logger does that."""
