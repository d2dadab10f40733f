"""Where a look goes; figures at once, pictures in the background."""

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


def sinks_of(loggers: Iterable[object], folder: Path, root: str, num_images: int) -> list[Sink]:
    """Files in ``folder``, and the TensorBoard of every logger that has one."""
    sinks: list[Sink] = [FileSink(folder)]
    writers = []
    for logger in loggers:
        try:
            writer = getattr(logger, "experiment", None)
        except Exception as error:  # a logger that has lost its server takes no file away
            sinks.append(UnreachableSink(error))
            continue
        if isinstance(writer, SummaryWriter):
            writers.append(writer)
            sinks += [TensorBoardSink(writer, root), TabSink(writer, root)]
    return [*sinks, BackgroundSink(ImageSink(folder, writers, root, num_images))]


@dataclass(frozen=True)
class UnreachableSink(Sink):
    """A logger that did not open: each look says so, as of any sink that cannot write."""

    error: Exception

    def write(self, evaluation: Evaluation) -> None:
        """Raise why."""
        raise self.error.with_traceback(None)  # which would grow at each look, and keep it
