"""MLflow gets metrics, images and reports; they are read back through its client and on its own page."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from lightning.pytorch.loggers import MLFlowLogger
from playwright.sync_api import Browser

from clipcam_lightning import ClipCamCallback, ProbeSet
from tests.support.faulty import tiny_module, two_probes
from tests.support.loggers import CLIENT_WARNINGS, STEPS, make_alarming_callback, make_mlflow_logger
from tests.support.modules import FineTuning, fit

mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")

pytestmark = [pytest.mark.slow, *CLIENT_WARNINGS]
PATIENCE = 120  # seconds


@pytest.fixture
def mlflow_logger(tmp_path: Path) -> MLFlowLogger:
    return make_mlflow_logger(tmp_path)


def test_metrics_images_and_report_are_in_the_store(mlflow_logger: MLFlowLogger, tmp_path: Path) -> None:
    callback = make_alarming_callback()
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
    for prefix in (*(f"images/clipcam_maps~{name}" for name in names), "images/clipcam_contact_sheet~all_probes"):
        steps = [int(path.split("+step+")[1].split("+")[0]) for path in images if path.startswith(f"{prefix}+")]
        assert sorted(steps) == STEPS
    assert "<!DOCTYPE html>" in mlflow.artifacts.load_text(
        f"{client.get_run(run).info.artifact_uri}/clipcam/report.html"
    )


def test_names_beyond_ascii_are_numbered(mlflow_logger: MLFlowLogger, tmp_path: Path) -> None:
    """MLflow refuses them as keys of images, and those with vowel signs as names of metrics, too."""
    first, second = two_probes()
    probes = ProbeSet([replace(first, name="狐狸"), replace(second, name="लोमड़ी")])
    callback = ClipCamCallback(probes, method="gradcam", on_drift="log", probe_metrics=True, on_error="raise")
    fit(tiny_module(), tmp_path, callback, logger=mlflow_logger, default_root_dir=tmp_path)

    client, run = mlflow_logger.experiment, mlflow_logger.run_id
    drifts = {name for name in client.get_run(run).data.metrics if name.startswith("clipcam_drift/")}
    assert drifts == {"clipcam_drift/probe 1", "clipcam_drift/probe 2"}
    keys = {Path(file.path).name.split("+")[0] for file in client.list_artifacts(run, "images")}
    assert keys == {"clipcam_maps~probe 1", "clipcam_maps~probe 2", "clipcam_contact_sheet~all_probes"}


def test_no_file_of_ours_lies_in_the_store_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    logger = MLFlowLogger("birds", tracking_uri=f"file:{tmp_path}/mlruns")
    callback = make_alarming_callback()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        fit(FineTuning(), tmp_path, callback, logger=logger, default_root_dir=tmp_path)
    assert callback.directory == str(tmp_path / str(logger.experiment_id) / str(logger.run_id) / "clipcam")
    assert (Path(callback.directory) / "history.jsonl").exists()
    ours = {"history.jsonl", "run.json", "contact_sheet.png"}
    assert not [path for path in (tmp_path / "mlruns").rglob("*") if path.name in ours]
    assert [run.info.run_id for run in logger.experiment.search_runs([logger.experiment_id])] == [logger.run_id]


@pytest.fixture
def run(tmp_path: Path) -> MLFlowLogger:
    """A finished run in a store."""
    logger = make_mlflow_logger(tmp_path)
    callback = ClipCamCallback(two_probes(), method="gradcam", on_drift="log", dirpath=tmp_path / "files")
    fit(tiny_module(), tmp_path, callback, logger=logger, default_root_dir=tmp_path)
    return logger


@pytest.fixture
def server(run: MLFlowLogger, tmp_path: Path) -> Iterator[str]:
    """Address of MLflow's server of that store."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{tmp_path}/mlflow.db"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    with (tmp_path / "server.log").open("w") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=tmp_path, env={**os.environ, "PYTHONWARNINGS": ""}
        )
        try:
            _wait_for(f"http://127.0.0.1:{port}/health")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(30)


def _wait_for(url: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            time.sleep(0.5)
    raise TimeoutError(url)


def test_the_page_of_a_run_shows_the_image_of_each_probe(run: MLFlowLogger, server: str, browser: Browser) -> None:
    page = browser.new_page(viewport={"width": 1800, "height": 2600})
    page.goto(f"{server}/#/experiments/{run.experiment_id}/runs/{run.run_id}/model-metrics", wait_until="commit")
    for name in ("clipcam_maps~a-purple-cross", "clipcam_maps~a-yellow-star", "clipcam_contact_sheet~all_probes"):
        image = page.locator(f"img[src*='{name}']").first
        image.wait_for(timeout=PATIENCE * 1000)
        size = image.evaluate(
            "async image => { await image.decode(); return [image.naturalWidth, image.naturalHeight]; }"
        )
        assert max(size) == 256, "MLflow shows a small copy until it is opened"
    page.close()
