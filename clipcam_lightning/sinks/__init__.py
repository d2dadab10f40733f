"""Where a look goes; one file per destination."""

from collections.abc import Iterable
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from clipcam_lightning.monitor import Sink
from clipcam_lightning.sinks.files import FileSink
from clipcam_lightning.sinks.tensorboard import TensorBoardSink


def sinks_of(loggers: Iterable[object], folder: Path, root: str) -> list[Sink]:
    """Files in ``folder``, and the TensorBoard of every logger that has one."""
    writers = [getattr(logger, "experiment", None) for logger in loggers]
    tensorboards = [TensorBoardSink(writer, root) for writer in writers if isinstance(writer, SummaryWriter)]
    return [FileSink(folder), *tensorboards]
