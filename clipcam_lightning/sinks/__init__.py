"""Where evaluations are written: metrics at once, images in the background."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from clipcam_lightning.monitoring.evaluation import Evaluation, Sink
from clipcam_lightning.sinks.background import BackgroundSink
from clipcam_lightning.sinks.files import FileSink
from clipcam_lightning.sinks.images import ImageSink
from clipcam_lightning.sinks.tensorboard import TensorBoardSink
from clipcam_lightning.sinks.tensorboard_tab import TabSink


def make_sinks(loggers: Iterable[object], folder: Path, root: str, num_images: int) -> list[Sink]:
    """Make the sinks of a run.

    Args:
        loggers: of the Trainer, or writers of TensorBoard; loggers that have no such writer get nothing.
        folder: of the files.
        root: first word of every TensorBoard tag; each callback of a run needs its own.
        num_images: probes with a panel per evaluation.

    Returns:
        A sink for files, those of each TensorBoard, and one for images.
    """
    sinks: list[Sink] = [FileSink(folder)]
    writers = []
    for logger in loggers:
        try:
            writer = logger if isinstance(logger, SummaryWriter) else getattr(logger, "experiment", None)
        except Exception as error:  # a logger that fails must not stop the file sink
            sinks.append(UnreachableSink(error))
            continue
        if isinstance(writer, SummaryWriter):
            writers.append(writer)
            sinks += [TensorBoardSink(writer, root), TabSink(writer, root)]
    return [*sinks, BackgroundSink(ImageSink(folder, writers, root, num_images))]


@dataclass(frozen=True)
class UnreachableSink(Sink):
    """Stands for a logger that could not be opened, and reports that at every evaluation.

    Attributes:
        error: what the logger raised.
    """

    error: Exception

    def write(self, evaluation: Evaluation) -> None:
        """Raise the error of the logger."""
        raise self.error.with_traceback(None)  # a traceback would grow at each evaluation and keep it in memory
