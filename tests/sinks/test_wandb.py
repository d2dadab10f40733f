"""Weights & Biases gets metrics, images, reports and alerts; what it wrote is read back from the file of its run."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import WandbLogger
from PIL import Image

from clipcam_lightning import ClipCamCallback, ProbeSet
from tests.support import wandb_ranks_program
from tests.support.faulty import tiny_module, two_probes
from tests.support.loggers import CLIENT_WARNINGS, METRICS, STEPS, make_alarming_callback, make_wandb_logger
from tests.support.modules import FineTuning, fit
from tests.support.shell import ENVIRONMENT

wandb = pytest.importorskip("wandb", reason="wandb is not installed")

from tests.support.wandb_files import read_records, read_rows  # noqa: E402 - it imports wandb

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("clients"), *CLIENT_WARNINGS]


@pytest.fixture
def wandb_logger(clients: None, tmp_path: Path) -> WandbLogger:
    return make_wandb_logger(tmp_path)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    (run,) = folder.glob("wandb/offline-run-*")
    return read_rows(run)


def test_each_evaluation_is_one_row_at_its_step(wandb_logger: WandbLogger, tmp_path: Path) -> None:
    callback = make_alarming_callback()
    fit(FineTuning(), tmp_path, callback, logger=wandb_logger)
    wandb.finish()
    rows = [row for row in rows_of(tmp_path) if "clipcam/drift" in row]
    assert [row["trainer/global_step"] for row in rows] == STEPS
    assert callback.report is not None
    assert rows[-1]["clipcam/drift"] == pytest.approx(callback.report.drift)
    probe = callback.report.probes[0]
    assert rows[-1][f"clipcam_drift/{probe.name}"] == pytest.approx(probe.drift)
    assert {f"clipcam/{name}" for name in METRICS} <= set(rows[0])


def test_images_table_report_and_alert_are_in_the_files_of_the_run(wandb_logger: WandbLogger, tmp_path: Path) -> None:
    fit(FineTuning(), tmp_path, make_alarming_callback(), logger=wandb_logger)
    wandb.finish()
    (run,) = tmp_path.glob("wandb/offline-run-*")
    rows = [row for row in read_rows(run) if "clipcam/drift" in row]
    for row in rows:
        assert row["clipcam/panels/count"] == 4
        for file in row["clipcam/panels/filenames"]:
            with Image.open(run / "files" / file) as image:
                assert image.format == "JPEG"
        table = json.loads((run / "files" / row["clipcam/probes/path"]).read_text())
        assert table["columns"][:6] == ["probe", "prompt", "input", "baseline", "now", "change"]
        assert len(table["data"]) == 4
    sheets = [row for row in read_rows(run) if "clipcam/contact_sheet/path" in row]
    assert [row["trainer/global_step"] for row in sheets] == STEPS
    for row in sheets:
        with Image.open(run / "files" / row["clipcam/contact_sheet/path"]) as image:
            assert image.format == "JPEG"
    reports = [row for row in read_rows(run) if "clipcam/report/path" in row]
    assert [row["trainer/global_step"] for row in reports] == [4, 8], "of the alarm, and of the end"
    assert "<!DOCTYPE html>" in (run / "files" / reports[0]["clipcam/report/path"]).read_text()
    alerts = [record.alert for record in read_records(run) if record.WhichOneof("record_type") == "alert"]
    assert [alert.level for alert in alerts] == ["WARN"], "not again while the alarm is about the same"
    assert "attention drifted" in alerts[0].text


@pytest.mark.parametrize("options", [{"every_n_train_steps": 1}, {}], ids=["every step", "every epoch"])
def test_no_row_of_the_training_is_lost_and_no_step_goes_backwards(
    options: dict[str, Any], wandb_logger: WandbLogger, tmp_path: Path
) -> None:
    for _ in range(2):  # a second fit begins at step 0 again
        callback = make_alarming_callback(**options)
        fit(FineTuning(), tmp_path, callback, logger=wandb_logger, accumulate_grad_batches=2)
    wandb.finish()
    rows = rows_of(tmp_path)
    steps = [row["_step"] for row in rows]
    assert steps == list(range(len(rows)))
    plain = make_wandb_logger(tmp_path / "plain")
    for _ in range(2):
        fit(FineTuning(), tmp_path, logger=plain, accumulate_grad_batches=2)
    wandb.finish()
    losses = [[row["loss"] for row in each if "loss" in row] for each in (rows, rows_of(tmp_path / "plain"))]
    assert losses[0] == losses[1]
    evaluated = [row["trainer/global_step"] for row in rows if "clipcam/drift" in row]
    assert evaluated == ([0, 1, 2, 3, 4] if options else [0, 2, 4]) * 2


@pytest.mark.ranks
def test_of_two_ranks_the_first_alone_logs(tmp_path: Path) -> None:
    command = [sys.executable, wandb_ranks_program.__file__, str(tmp_path)]
    process = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=240, check=False)
    assert process.returncode == 0, process.stdout[-3000:] + process.stderr[-3000:]
    (run,) = tmp_path.glob("wandb/offline-run-*")
    rows = [row for row in read_rows(run) if "clipcam/drift" in row]
    assert [row["trainer/global_step"] for row in rows] == [0, 2, 4]
    directories = {(tmp_path / f"rank-{rank}.txt").read_text() for rank in range(2)}
    assert directories == {str(tmp_path / "birds" / run.name.split("-")[-1] / "clipcam")}
    assert len(list(tmp_path.rglob("history.jsonl"))) == 1


def test_metrics_of_single_probes_can_be_left_out(wandb_logger: WandbLogger, tmp_path: Path) -> None:
    fit(FineTuning(), tmp_path, make_alarming_callback(probe_metrics=False), logger=wandb_logger)
    wandb.finish()
    assert not [name for row in rows_of(tmp_path) for name in row if name.startswith("clipcam_drift")]


def test_names_in_any_script_are_keys_of_a_row(wandb_logger: WandbLogger, tmp_path: Path) -> None:
    first, second = two_probes()
    probes = ProbeSet([replace(first, name="狐狸"), replace(second, name="ثعلب-أحمر")])
    callback = ClipCamCallback(probes, method="gradcam", on_drift="log", on_error="raise")
    fit(tiny_module(), tmp_path, callback, logger=wandb_logger)
    wandb.finish()
    row = [row for row in rows_of(tmp_path) if "clipcam/drift" in row][-1]
    assert {"clipcam_drift/狐狸", "clipcam_drift/ثعلب-أحمر"} <= set(row)
    assert [caption.split(": ")[0] for caption in row["clipcam/panels/captions"]] == ["狐狸", "ثعلب-أحمر"]
