"""MLflow's own page, opened in a browser, shows the images of the probes."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from lightning.pytorch.loggers import MLFlowLogger
from playwright.sync_api import Browser

from clipcam_lightning import ClipCamCallback
from tests.support.faulty import tiny_module, two_probes
from tests.support.modules import fit

pytest.importorskip("mlflow", reason="mlflow is not installed")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow|sqlalchemy|alembic"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # connections that MLflow leaves open
]
PATIENCE = 120  # seconds


@pytest.fixture
def run(tmp_path: Path) -> MLFlowLogger:
    """A finished run in a store."""
    uri, artifacts = f"sqlite:///{tmp_path}/mlflow.db", str(tmp_path / "artifacts")
    logger = MLFlowLogger("birds", tracking_uri=uri, artifact_location=artifacts)
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
    for name in ("clipcam~a-purple-cross", "clipcam~a-yellow-star", "clipcam_contact_sheet~all_probes"):
        image = page.locator(f"img[src*='{name}']").first
        image.wait_for(timeout=PATIENCE * 1000)
        width = image.evaluate("async image => { await image.decode(); return image.naturalWidth; }")
        assert width == 256, "MLflow shows a small copy until it is opened"
    page.close()
