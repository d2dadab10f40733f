"""Loggers without images, loggers of users, sinks of users, and what holds for every logger."""

import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.loggers import CSVLogger as FabricCSVLogger, TensorBoardLogger as FabricTensorBoardLogger
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from clipcam_lightning import ClipCamMonitor, ClipCamWarning, ConfigError, Evaluation, Sink
from tests.support.faulty import tiny_module, two_probes
from tests.support.loggers import CLIENT_WARNINGS, LOGGERS, METRICS, STEPS, make_alarming_callback
from tests.support.modules import FineTuning, events, fit

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("clients"), *CLIENT_WARNINGS]


class TestCsv:
    def test_metrics_are_columns_also_beside_late_ones(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        class LateMetric(pl.Callback):
            def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
                pl_module.log(f"late_{trainer.current_epoch}", 1.0)

        logger, callback = CSVLogger(tmp_path, "csv"), make_alarming_callback()
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
        logger, callback = PlainLogger(), make_alarming_callback()
        fit(FineTuning(), tmp_path, callback, logger=logger, default_root_dir=tmp_path)
        evaluated = [(step, metrics) for step, metrics in logger.metrics if "clipcam/drift" in metrics]
        assert [step for step, _ in evaluated] == STEPS
        assert {f"clipcam/{name}" for name in METRICS} == set(evaluated[0][1])
        assert callback.directory == str(tmp_path / "mine" / "version_3" / "clipcam")

    def test_images_of_an_evaluation_come_in_one_call(self, tmp_path: Path) -> None:
        logger = LoggerWithImages()
        fit(FineTuning(), tmp_path, make_alarming_callback(), logger=logger, default_root_dir=tmp_path)
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
        fit(FineTuning(), tmp_path, InTheSecondEpoch(), make_alarming_callback(), **options)
        assert [step for step, key, *_ in logger.images if key == "clipcam/panels"] == STEPS

    def test_a_logger_that_cannot_say_where_it_writes_leaves_the_default_folder(self, tmp_path: Path) -> None:
        class Lost(PlainLogger):
            @property
            def version(self) -> int | str | None:
                raise ConnectionError("no server")

        callback = make_alarming_callback()
        fit(FineTuning(), tmp_path, callback, logger=Lost(), default_root_dir=tmp_path, max_epochs=1)
        assert callback.directory == str(tmp_path / "clipcam")

    def test_loggers_that_fail_are_each_named_once_and_stop_nothing_else(self, tmp_path: Path) -> None:
        class AlsoFailing(FailingLogger):
            pass

        loggers = [FailingLogger(), PlainLogger(), TensorBoardLogger(tmp_path, "", "run"), AlsoFailing()]
        callback = make_alarming_callback(dirpath=tmp_path / "files")
        with pytest.warns(ClipCamWarning, match="could not be written to") as caught:
            fit(FineTuning(), tmp_path, callback, logger=loggers)
        messages = [str(warning.message) for warning in caught if warning.category is ClipCamWarning]
        names = ["FailingLogger", "AlsoFailing"]
        assert [[name for name in names if f"to {name} (" in message] for message in messages] == [[n] for n in names]
        assert len([step for step, metrics in loggers[1].metrics if "clipcam/drift" in metrics]) == 3
        assert [event.step for event in events(tmp_path).Scalars("clipcam/drift")] == STEPS
        assert len(list((tmp_path / "files").glob("step-*.safetensors"))) == 3

    def test_a_logger_that_could_not_be_opened_gets_the_later_evaluations(self, tmp_path: Path) -> None:
        class Late(PlainLogger):
            is_reachable = True

            @property
            def experiment(self) -> None:
                if not self.is_reachable:
                    raise ConnectionError("not yet")

        class Outage(pl.Callback):
            def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
                logger.is_reachable = False

            def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
                logger.is_reachable = True

        logger, callback = Late(), make_alarming_callback()
        with pytest.warns(ClipCamWarning, match=r"could not be written to Late \(ConnectionError: not yet"):
            fit(FineTuning(), tmp_path, Outage(), callback, logger=logger, default_root_dir=tmp_path)
        assert [step for step, metrics in logger.metrics if "clipcam/drift" in metrics] == STEPS[1:]


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
        fit(FineTuning(), tmp_path, make_alarming_callback(sinks=[recorder]))
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
            fit(FineTuning(), tmp_path, make_alarming_callback(sinks=[Failing(), Recorder()]))
        assert steps == STEPS


class TestMonitorWithLoggers:
    def test_loggers_of_fabric_get_metrics_and_tensorboard_its_images(self, tmp_path: Path) -> None:
        loggers = [FabricCSVLogger(tmp_path, "csv"), FabricTensorBoardLogger(tmp_path, "", "run")]
        module = tiny_module()
        with ClipCamMonitor(
            two_probes(), tokenizer=module.tokenizer, method="gradcam", dirpath=tmp_path / "files", loggers=loggers
        ) as monitor:
            for step in (0, 10):
                monitor.evaluate(module, step)
                with torch.no_grad():
                    module.model.visual.proj.mul_(1 + 0.1 * torch.rand_like(module.model.visual.proj))
        for logger in loggers:
            logger.finalize("success")
        header, *rows = (tmp_path / "csv" / "version_0" / "metrics.csv").read_text().splitlines()
        assert "clipcam/drift" in header.split(",")
        assert len(rows) == 2
        log = events(tmp_path)
        assert [event.step for event in log.Images("clipcam_contact_sheet/all_probes")] == [0, 10]

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize(
        "loggers", [[object()], CSVLogger("logs"), 3, [None]], ids=["no logger", "not a list", "a number", "none"]
    )
    def test_what_is_no_list_of_loggers_is_refused(self, loggers: Any, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="loggers must be"):
            ClipCamMonitor(two_probes(), dirpath=tmp_path, loggers=loggers)


@pytest.mark.parametrize("kind", LOGGERS)
def test_weights_are_bit_identical_and_tensorboard_gets_all_beside_each_logger(kind: str, tmp_path: Path) -> None:
    plain, monitored = FineTuning(), FineTuning()
    pl.seed_everything(3, verbose=False)
    fit(plain, tmp_path / "plain", logger=False)
    pl.seed_everything(3, verbose=False)
    loggers = [LOGGERS[kind](tmp_path), TensorBoardLogger(tmp_path, "", "run")]
    fit(monitored, tmp_path, make_alarming_callback(dirpath=tmp_path / "files"), logger=loggers)
    assert all(torch.equal(value, monitored.state_dict()[name]) for name, value in plain.state_dict().items())
    log = events(tmp_path)
    assert [event.step for event in log.Scalars("clipcam/drift")] == STEPS
    for tag in log.Tags()["images"]:
        assert [event.step for event in log.Images(tag)] == STEPS
