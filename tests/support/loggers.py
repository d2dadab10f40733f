"""Loggers with real clients that write to a folder, without a network."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import CometLogger, CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from clipcam_lightning import ClipCamCallback

STEPS = [0, 4, 8]  # of the evaluations in a fit of tests.support.modules
METRICS = {"alarm", "degenerate", "drift", "drift_max", "flagged", "named_without_object", "similarity"}
CLIENT_WARNINGS = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning"),  # of MLflow
]


def make_alarming_callback(**arguments: Any) -> ClipCamCallback:
    """Make a callback whose second evaluation is an alarm."""
    return ClipCamCallback(**{"method": "hirescam", "max_drift": 0.01, "on_drift": "log", **arguments})


@pytest.fixture
def clients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keep what clients write inside the folder of the test, and end their runs."""
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    yield
    if wandb := sys.modules.get("wandb"):
        wandb.finish()


def make_wandb_logger(folder: Path) -> WandbLogger:
    pytest.importorskip("wandb", reason="wandb is not installed")
    return WandbLogger(project="birds", save_dir=folder, offline=True)


def make_mlflow_logger(folder: Path) -> MLFlowLogger:
    pytest.importorskip("mlflow", reason="mlflow is not installed")
    uri = f"sqlite:///{folder}/mlflow.db"
    return MLFlowLogger("birds", tracking_uri=uri, artifact_location=str(folder / "artifacts"))


def make_comet_logger(folder: Path) -> CometLogger:
    comet_ml = pytest.importorskip("comet_ml", reason="comet_ml is not installed")
    (folder / "comet").mkdir(parents=True, exist_ok=True)
    logger = CometLogger(online=False, offline_directory=str(folder / "comet"), project="birds")
    # Lightning disables an experiment that is not online.
    quiet = dict.fromkeys(("log_code", "log_graph", "log_git_metadata", "log_env_details"), False)
    logger._experiment = comet_ml.OfflineExperiment(offline_directory=str(folder / "comet"), **quiet)
    return logger


LOGGERS: dict[str, Callable[[Path], Logger]] = {
    "tensorboard": lambda folder: TensorBoardLogger(folder, "birds"),
    "csv": lambda folder: CSVLogger(folder, "birds"),
    "wandb": make_wandb_logger,
    "mlflow": make_mlflow_logger,
    "comet": make_comet_logger,
}
"""Makers of loggers; each call begins a run of its own."""
