"""Real clients of loggers get metrics, images and reports; what they wrote is read back with their own readers."""

import json
import logging
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CometLogger, CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from PIL import Image

from clipcam_lightning import ClipCamCallback, ClipCamWarning, Evaluation, Sink
from tests.support import wandb_ranks_program
from tests.support.modules import FineTuning, events, fit
from tests.support.shell import ENVIRONMENT

wandb = pytest.importorskip("wandb", reason="wandb is not installed")
mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")

from tests.support.wandb_files import read_records, read_rows  # noqa: E402 - it imports wandb

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:attention drifted:clipcam_lightning.ClipCamWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow|sqlalchemy|alembic|wandb|comet_ml"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # connections that the clients leave open
]

STEPS = [0, 4, 8]
METRICS = {"alarm", "degenerate", "drift", "drift_max", "flagged", "named_without_object", "similarity"}


def make_callback(**arguments: Any) -> ClipCamCallback:
    """Make a callback whose second evaluation is an alarm."""
    return ClipCamCallback(**{"method": "hirescam", "max_drift": 0.01, **arguments})


@pytest.fixture
def wandb_logger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbLogger]:
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    yield WandbLogger(project="birds", save_dir=tmp_path, offline=True)
    wandb.finish()


@pytest.fixture
def mlflow_logger(tmp_path: Path) -> MLFlowLogger:
    uri, store = f"sqlite:///{tmp_path}/mlflow.db", tmp_path / "artifacts"
    return MLFlowLogger("birds", tracking_uri=uri, artifact_location=str(store))


@pytest.fixture
def comet_logger(tmp_path: Path) -> CometLogger:
    comet_ml = pytest.importorskip("comet_ml", reason="comet_ml is not installed")
    logger = CometLogger(online=False, offline_directory=str(tmp_path / "comet"), project="birds")
    # Lightning disables an experiment that is not online.
    quiet = dict.fromkeys(("log_code", "log_graph", "log_git_metadata", "log_env_details"), False)
    (tmp_path / "comet").mkdir(exist_ok=True)
    logger._experiment = comet_ml.OfflineExperiment(offline_directory=str(tmp_path / "comet"), **quiet)
    return logger


def rows_of(folder: Path) -> list[dict[str, Any]]:
    (run,) = folder.glob("wandb/offline-run-*")
    return read_rows(run)


class TestWandb:
    def test_each_evaluation_is_one_row_at_its_step(self, wandb_logger: WandbLogger, tmp_path: Path) -> None:
        callback = make_callback()
        fit(FineTuning(), tmp_path, callback, logger=wandb_logger)
        wandb.finish()
        rows = [row for row in rows_of(tmp_path) if "clipcam/drift" in row]
        assert [row["trainer/global_step"] for row in rows] == STEPS
        assert callback.report is not None
        assert rows[-1]["clipcam/drift"] == pytest.approx(callback.report.drift)
        probe = callback.report.probes[0]
        assert rows[-1][f"clipcam_drift/{probe.name}"] == pytest.approx(probe.drift)
        assert {f"clipcam/{name}" for name in METRICS} <= set(rows[0])

    def test_images_table_report_and_alert_are_in_the_files_of_the_run(
        self, wandb_logger: WandbLogger, tmp_path: Path
    ) -> None:
        fit(FineTuning(), tmp_path, make_callback(), logger=wandb_logger)
        wandb.finish()
        (run,) = tmp_path.glob("wandb/offline-run-*")
        rows = [row for row in read_rows(run) if "clipcam/drift" in row]
        for row in rows:
            assert row["clipcam/panels/count"] == 4
            for file in (*row["clipcam/panels/filenames"], row["clipcam/contact_sheet/path"]):
                with Image.open(run / "files" / file) as image:
                    assert image.format == "JPEG"
            table = json.loads((run / "files" / row["clipcam/probes/path"]).read_text())
            assert table["columns"][:6] == ["probe", "prompt", "input", "baseline", "now", "change"]
            assert len(table["data"]) == 4
        reports = [row for row in read_rows(run) if "clipcam/report/path" in row]
        assert [row["trainer/global_step"] for row in reports] == [4, 8], "of the alarm, and of the end"
        assert "<!DOCTYPE html>" in (run / "files" / reports[0]["clipcam/report/path"]).read_text()
        alerts = [record.alert for record in read_records(run) if record.WhichOneof("record_type") == "alert"]
        assert [alert.level for alert in alerts] == ["WARN"], "not again while the alarm is about the same"
        assert "attention drifted" in alerts[0].text

    @pytest.mark.parametrize("options", [{"every_n_train_steps": 1}, {}], ids=["every step", "every epoch"])
    def test_no_row_of_the_training_is_lost_and_no_step_goes_backwards(
        self, options: dict[str, Any], wandb_logger: WandbLogger, tmp_path: Path
    ) -> None:
        for _ in range(2):  # a second fit begins at step 0 again
            callback = make_callback(**options)
            fit(FineTuning(), tmp_path, callback, logger=wandb_logger, accumulate_grad_batches=2)
        wandb.finish()
        rows = rows_of(tmp_path)
        steps = [row["_step"] for row in rows]
        assert steps == list(range(len(rows)))
        plain = WandbLogger(project="plain", save_dir=tmp_path / "plain", offline=True)
        for _ in range(2):
            fit(FineTuning(), tmp_path, logger=plain, accumulate_grad_batches=2)
        wandb.finish()
        losses = [[row["loss"] for row in each if "loss" in row] for each in (rows, rows_of(tmp_path / "plain"))]
        assert losses[0] == losses[1]
        evaluated = [row["trainer/global_step"] for row in rows if "clipcam/drift" in row]
        assert evaluated == ([0, 1, 2, 3, 4] if options else [0, 2, 4]) * 2

    @pytest.mark.ranks
    def test_of_two_ranks_the_first_alone_logs(self, tmp_path: Path) -> None:
        command = [sys.executable, wandb_ranks_program.__file__, str(tmp_path)]
        process = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=240, check=False)
        assert process.returncode == 0, process.stdout[-3000:] + process.stderr[-3000:]
        (run,) = tmp_path.glob("wandb/offline-run-*")
        rows = [row for row in read_rows(run) if "clipcam/drift" in row]
        assert [row["trainer/global_step"] for row in rows] == [0, 2, 4]
        directories = {(tmp_path / f"rank-{rank}.txt").read_text() for rank in range(2)}
        assert directories == {str(tmp_path / "birds" / run.name.split("-")[-1] / "clipcam")}
        assert len(list(tmp_path.rglob("history.jsonl"))) == 1

    def test_metrics_of_single_probes_can_be_left_out(self, wandb_logger: WandbLogger, tmp_path: Path) -> None:
        fit(FineTuning(), tmp_path, make_callback(probe_metrics=False), logger=wandb_logger)
        wandb.finish()
        assert not [name for row in rows_of(tmp_path) for name in row if name.startswith("clipcam_drift")]


class TestMlflow:
    def test_metrics_images_and_report_are_in_the_store(self, mlflow_logger: MLFlowLogger, tmp_path: Path) -> None:
        callback = make_callback()
        fit(FineTuning(), tmp_path, callback, logger=mlflow_logger, default_root_dir=tmp_path)
        client, run = mlflow_logger.experiment, mlflow_logger.run_id
        assert run is not None
        history = client.get_metric_history(run, "clipcam/drift")
        assert [metric.step for metric in history] == STEPS
        assert callback.report is not None
        assert history[-1].value == pytest.approx(callback.report.drift)
        assert not [name for name in client.get_run(run).data.metrics if name.startswith("clipcam_drift")]
        images = [file.path for file in client.list_artifacts(run, "images") if file.path.endswith(".png")]
        names = [probe.name for probe in callback.report.probes]
        for prefix in (*(f"images/clipcam~{name}" for name in names), "images/clipcam_contact_sheet~all_probes"):
            steps = [int(path.split("+step+")[1].split("+")[0]) for path in images if path.startswith(f"{prefix}+")]
            assert sorted(steps) == STEPS
        assert "<!DOCTYPE html>" in mlflow.artifacts.load_text(
            f"{client.get_run(run).info.artifact_uri}/clipcam/report.html"
        )

    def test_no_file_of_ours_lies_in_the_store_of_files(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        logger = MLFlowLogger("birds", tracking_uri=f"file:{tmp_path}/mlruns")
        callback = make_callback()
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(tmp_path)
            fit(FineTuning(), tmp_path, callback, logger=logger, default_root_dir=tmp_path)
        assert callback.directory == str(tmp_path / str(logger.experiment_id) / str(logger.run_id) / "clipcam")
        assert (Path(callback.directory) / "history.jsonl").exists()
        ours = {"history.jsonl", "run.json", "contact_sheet.png"}
        assert not [path for path in (tmp_path / "mlruns").rglob("*") if path.name in ours]
        assert [run.info.run_id for run in logger.experiment.search_runs([logger.experiment_id])] == [logger.run_id]


def test_comet_gets_metrics_images_and_report(comet_logger: CometLogger, tmp_path: Path) -> None:
    callback = make_callback()
    fit(FineTuning(), tmp_path, callback, logger=comet_logger, default_root_dir=tmp_path)
    comet_logger.experiment.end()
    (archive,) = (tmp_path / "comet").glob("*.zip")
    with zipfile.ZipFile(archive) as file:
        messages = [json.loads(line) for line in file.read("messages.json").splitlines()]
    payloads = [message["payload"] for message in messages]
    drift = [each["metric"] for each in payloads if (each.get("metric") or {}).get("metricName") == "clipcam/drift"]
    assert [metric["step"] for metric in drift] == STEPS
    assert callback.report is not None
    assert drift[-1]["metricValue"] == pytest.approx(callback.report.drift)
    text = json.dumps(payloads)
    names = [f"clipcam/{probe.name}" for probe in callback.report.probes]
    for name in (*names, "clipcam_contact_sheet/all_probes"):
        assert text.count(f'"{name}') >= len(STEPS)
    assert "clipcam/report.html" in text


class TestCsv:
    def test_metrics_are_columns_also_beside_late_ones(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        class LateMetric(pl.Callback):
            def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
                pl_module.log(f"late_{trainer.current_epoch}", 1.0)

        logger, callback = CSVLogger(tmp_path, "csv"), make_callback()
        with caplog.at_level(logging.INFO):
            fit(FineTuning(), tmp_path, LateMetric(), callback, logger=logger)
        header, *lines = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
        columns = header.split(",")
        rows = [dict(zip(columns, line.split(","), strict=True)) for line in lines]
        evaluated = [row for row in rows if row["clipcam/drift"]]
        assert [int(row["step"]) for row in evaluated] == STEPS
        assert callback.report is not None
        assert float(evaluated[-1]["clipcam/drift"]) == pytest.approx(callback.report.drift)
        assert {"late_0", "late_1", "loss"} <= set(columns)
        messages = [record.message for record in caplog.records if "shows no images" in record.message]
        assert messages == [f"ClipCamCallback: CSVLogger shows no images; they are in {callback.directory}"]
        assert (Path(logger.log_dir) / "clipcam" / "contact_sheet.png").exists()


class PlainLogger(Logger):
    """A logger of a user, with the members that Lightning asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.metrics: list[tuple[int | None, dict[str, float]]] = []

    @property
    def name(self) -> str | None:
        return "mine"

    @property
    def version(self) -> int | str | None:
        return 3

    def log_hyperparams(self, *arguments: Any, **options: Any) -> None:
        return

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.metrics.append((step, dict(metrics)))


class LoggerWithImages(PlainLogger):
    def __init__(self) -> None:
        super().__init__()
        self.images: list[tuple[int, str, int, list[str]]] = []

    def log_image(self, key: str, images: list[Any], step: int, caption: list[str]) -> None:
        self.images.append((step, key, len(images), caption))


class FailingLogger(LoggerWithImages):
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if any(name.startswith("clipcam") for name in metrics):
            raise ConnectionError("no server")

    def log_image(self, key: str, images: list[Any], step: int, caption: list[str]) -> None:
        raise ConnectionError("no server")


class TestLoggersOfUsers:
    def test_metrics_come_at_their_step(self, tmp_path: Path) -> None:
        logger, callback = PlainLogger(), make_callback()
        fit(FineTuning(), tmp_path, callback, logger=logger, default_root_dir=tmp_path)
        evaluated = [(step, metrics) for step, metrics in logger.metrics if "clipcam/drift" in metrics]
        assert [step for step, _ in evaluated] == STEPS
        assert {f"clipcam/{name}" for name in METRICS} == set(evaluated[0][1])
        assert callback.directory == str(tmp_path / "mine" / "version_3" / "clipcam")

    def test_images_of_an_evaluation_come_in_one_call(self, tmp_path: Path) -> None:
        logger = LoggerWithImages()
        fit(FineTuning(), tmp_path, make_callback(), logger=logger, default_root_dir=tmp_path)
        assert [(step, key, count) for step, key, count, _ in logger.images] == [
            (step, key, count) for step in STEPS for key, count in (("clipcam/panels", 4), ("clipcam/contact_sheet", 1))
        ]
        assert all(": a" in caption for caption in logger.images[0][3])

    def test_the_training_does_not_wait_for_a_slow_logger(self, tmp_path: Path) -> None:
        trained = threading.Event()

        class SlowLogger(LoggerWithImages):
            def log_image(self, *arguments: Any, **options: Any) -> None:
                if len(self.images) >= 2:  # the first evaluation, two calls, is written at once
                    assert trained.wait(60), "the training waits"
                super().log_image(*arguments, **options)

        class InTheSecondEpoch(pl.Callback):
            def on_train_batch_end(self, trainer: pl.Trainer, *arguments: Any) -> None:
                if trainer.current_epoch == 1:
                    trained.set()

        logger = SlowLogger()
        options: dict[str, Any] = {"logger": logger, "default_root_dir": tmp_path}
        fit(FineTuning(), tmp_path, InTheSecondEpoch(), make_callback(), **options)
        assert [step for step, key, *_ in logger.images if key == "clipcam/panels"] == STEPS

    def test_a_logger_that_cannot_say_where_it_writes_leaves_the_default_folder(self, tmp_path: Path) -> None:
        class Lost(PlainLogger):
            @property
            def version(self) -> int | str | None:
                raise ConnectionError("no server")

        callback = make_callback()
        fit(FineTuning(), tmp_path, callback, logger=Lost(), default_root_dir=tmp_path, max_epochs=1)
        assert callback.directory == str(tmp_path / "clipcam")

    def test_a_logger_that_fails_is_warned_of_and_stops_nothing_else(self, tmp_path: Path) -> None:
        loggers = [FailingLogger(), PlainLogger(), TensorBoardLogger(tmp_path, "", "run")]
        callback = make_callback(dirpath=tmp_path / "files")
        with pytest.warns(ClipCamWarning, match="could not be written .*no server"):
            fit(FineTuning(), tmp_path, callback, logger=loggers)
        assert len([step for step, metrics in loggers[1].metrics if "clipcam/drift" in metrics]) == 3
        assert [event.step for event in events(tmp_path).Scalars("clipcam/drift")] == STEPS
        assert len(list((tmp_path / "files").glob("step-*.safetensors"))) == 3


class TestSinks:
    def test_a_sink_of_a_user_gets_every_evaluation_and_is_closed(self, tmp_path: Path) -> None:
        class Recorder(Sink):
            def __init__(self) -> None:
                self.steps: list[int] = []
                self.closed = 0

            def write(self, evaluation: Evaluation) -> None:
                self.steps.append(evaluation.report.step)

            def close(self) -> None:
                self.closed += 1

        recorder = Recorder()
        fit(FineTuning(), tmp_path, make_callback(sinks=[recorder]))
        assert recorder.steps == STEPS
        assert recorder.closed == 1

    def test_a_sink_that_raises_stops_no_other(self, tmp_path: Path) -> None:
        class Failing(Sink):
            def write(self, evaluation: Evaluation) -> None:
                raise RuntimeError("on purpose")

        steps: list[int] = []

        class Recorder(Sink):
            def write(self, evaluation: Evaluation) -> None:
                steps.append(evaluation.report.step)

        with pytest.warns(ClipCamWarning, match="could not be written .*on purpose"):
            fit(FineTuning(), tmp_path, make_callback(sinks=[Failing(), Recorder()]))
        assert steps == STEPS


LOGGERS: dict[str, Callable[[pytest.FixtureRequest], Any]] = {
    "wandb": lambda request: request.getfixturevalue("wandb_logger"),
    "mlflow": lambda request: request.getfixturevalue("mlflow_logger"),
    "comet": lambda request: request.getfixturevalue("comet_logger"),
    "csv": lambda request: CSVLogger(request.getfixturevalue("tmp_path"), "csv"),
    "own": lambda request: LoggerWithImages(),
}


@pytest.mark.parametrize("kind", LOGGERS)
def test_weights_are_bit_identical_and_tensorboard_gets_all_beside_each_logger(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    plain, monitored = FineTuning(), FineTuning()
    pl.seed_everything(3, verbose=False)
    fit(plain, tmp_path / "plain", logger=False)
    pl.seed_everything(3, verbose=False)
    loggers = [LOGGERS[kind](request), TensorBoardLogger(tmp_path, "", "run")]
    fit(monitored, tmp_path, make_callback(dirpath=tmp_path / "files"), logger=loggers)
    assert all(torch.equal(value, monitored.state_dict()[name]) for name, value in plain.state_dict().items())
    log = events(tmp_path)
    assert [event.step for event in log.Scalars("clipcam/drift")] == STEPS
    for tag in log.Tags()["images"]:
        assert [event.step for event in log.Images(tag)] == STEPS
