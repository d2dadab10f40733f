"""Where evaluations are written: the folder of the run, and every logger."""

import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from torch.utils.tensorboard import SummaryWriter

from clipcam_lightning.drift.report import DriftReport
from clipcam_lightning.errors import ConfigError
from clipcam_lightning.monitoring.evaluation import Evaluation, Sink
from clipcam_lightning.sinks.background import BackgroundSink
from clipcam_lightning.sinks.drawing import Drawer
from clipcam_lightning.sinks.files import FileSink, ImageFileSink
from clipcam_lightning.sinks.log_image import LogImageSink
from clipcam_lightning.sinks.logger import LoggerSink
from clipcam_lightning.sinks.metrics import MetricsLogger, MetricsSink
from clipcam_lightning.sinks.tensorboard import TensorBoardSink
from clipcam_lightning.sinks.tensorboard_images import TensorBoardImageSink
from clipcam_lightning.sinks.tensorboard_tab import TabSink
from clipcam_lightning.storage.paths import is_remote
from clipcam_lightning.storage.run_folder import RunFolder


@dataclass(frozen=True)
class LoggingSettings:
    """What loggers are to show.

    Attributes:
        root: first word of every name; each callback of a run needs its own.
        num_images: probes with a panel per evaluation, flagged ones first.
        probe_metrics: whether loggers get the metrics of each probe besides their means; ``None``: TensorBoard and W&B.
    """

    root: str = "clipcam"
    num_images: int = 32
    probe_metrics: bool | None = None


def make_sinks(loggers: Iterable[object], folder: RunFolder, settings: LoggingSettings) -> list[Sink]:
    """Make the sinks of a run: metrics are written at once, images and what goes to a store in background threads.

    Args:
        loggers: of the Trainer or of Fabric, or writers of TensorBoard.
        folder: of the files.
        settings: what loggers are to show.

    Returns:
        The sinks of the folder, and those of each logger.
    """
    draw = Drawer(settings.num_images)
    files: Sink = FileSink(folder)
    if is_remote(folder.base):
        files = BackgroundSink(files, first_at_once=True)
    sinks: list[Sink] = [files, BackgroundSink(ImageFileSink(folder, draw), first_at_once=True)]
    for logger in loggers:
        try:
            sinks += _sinks_of(logger, draw, settings)
        except Exception as error:  # a logger that fails must not stop the other sinks
            sinks.append(UnopenedSink(logger, partial(_sinks_of, logger, draw, settings), error))
    return sinks


def require_loggers(loggers: Iterable[object]) -> None:
    """Refuse what is no logger.

    Args:
        loggers: as the user gave them.

    Raises:
        ConfigError: with what to give instead.
    """
    if isinstance(loggers, SummaryWriter | MetricsLogger) or not isinstance(loggers, Iterable):
        raise ConfigError(f"loggers must be a list (got {type(loggers).__name__}); write loggers=[logger].")
    for logger in loggers:
        if not isinstance(logger, SummaryWriter | MetricsLogger):
            raise ConfigError(
                f"loggers must be loggers of Lightning or Fabric, or SummaryWriters (got {type(logger).__name__}); "
                "give a run of W&B as WandbLogger(experiment=run)."
            )


def describe_tab(sinks: Iterable[Sink], report: DriftReport) -> str:
    """Say how to see the first flagged probe in TensorBoard, on a line of its own; ``""`` without TensorBoard."""
    tabs = [sink for sink in sinks if isinstance(sink, TabSink)]
    return f"\nTensorBoard: {tabs[0].describe_address(report)}" if tabs else ""


def name_loggers_without_images(sinks: Iterable[Sink]) -> list[str]:
    """List the classes of the loggers that get metrics only."""
    sinks = list(sinks)
    inner = [sink.sink for sink in sinks if isinstance(sink, BackgroundSink)]
    with_images = [sink.logger for sink in inner if isinstance(sink, LogImageSink)]
    loggers = [sink.logger for sink in sinks if isinstance(sink, MetricsSink)]
    return [type(logger).__name__ for logger in loggers if not any(logger is other for other in with_images)]


class UnopenedSink(Sink):
    """Stands for a logger that could not be opened, and tries again at every evaluation.

    Args:
        logger: which could not be opened.
        open_: makes its sinks.
        error: what the logger raised at the first try, which counts as that of the first evaluation.
    """

    def __init__(self, logger: object, open_: Callable[[], list[Sink]], error: Exception) -> None:
        self.logger = logger
        self._open = open_
        self._error: Exception | None = error
        self._sinks: list[Sink] = []

    def __str__(self) -> str:
        return type(self.logger).__name__

    def write(self, evaluation: Evaluation) -> None:
        """Open the logger if it is not open, and write the evaluation.

        Raises:
            Exception: the logger could not be opened, or one of its sinks failed.
        """
        error, self._error = self._error, None
        if error is not None:
            raise error.with_traceback(None)  # a traceback would keep the evaluation in memory
        self._sinks = self._sinks or self._open()
        with ExitStack() as stack:  # calls all that it holds, even if one of them raises
            for sink in reversed(self._sinks):
                stack.callback(sink.write, evaluation)

    def close(self) -> None:
        """Close the sinks of the logger.

        Raises:
            Exception: one of them could not be closed.
        """
        with ExitStack() as stack:
            for sink in self._sinks:
                stack.callback(sink.close)


def _sinks_of(logger: object, draw: Drawer, settings: LoggingSettings) -> list[Sink]:
    root, per_probe = settings.root, settings.probe_metrics
    experiment = logger if isinstance(logger, SummaryWriter) else getattr(logger, "experiment", None)
    if isinstance(experiment, SummaryWriter):
        return [
            TensorBoardSink(experiment, root, per_probe is not False),
            TabSink(experiment, root),
            BackgroundSink(TensorBoardImageSink(experiment, root, draw), first_at_once=True),
        ]
    if (found := _find_sink(experiment)) is not None:
        kind, is_per_probe = found
        sink = kind(logger, root, is_per_probe if per_probe is None else per_probe, draw)
        return [BackgroundSink(sink, first_at_once=True)]
    sinks: list[Sink] = []
    if isinstance(logger, MetricsLogger):
        sinks.append(MetricsSink(logger, root, bool(per_probe)))
    if callable(getattr(logger, "log_image", None)):
        sinks.append(BackgroundSink(LogImageSink(logger, root, draw), first_at_once=True))
    return sinks


def _find_sink(experiment: object) -> tuple[type[LoggerSink], bool] | None:
    """Find the sink of a client by its class, without importing a package that the user does not use.

    Returns:
        The sink, and whether the client bears the metrics of each probe.
    """
    if _is_instance(experiment, "wandb", "Run"):
        from clipcam_lightning.sinks.wandb import WandbSink

        return WandbSink, True
    if _is_instance(experiment, "mlflow", "MlflowClient"):
        from clipcam_lightning.sinks.mlflow import MlflowSink

        return MlflowSink, False
    if _is_instance(experiment, "comet_ml", "CometExperiment"):
        from clipcam_lightning.sinks.comet import CometSink

        return CometSink, False
    return None


def _is_instance(value: object, package: str, name: str) -> bool:
    kind = getattr(sys.modules.get(package), name, None)
    return isinstance(kind, type) and isinstance(value, kind)
