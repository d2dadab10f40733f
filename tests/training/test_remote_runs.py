"""Whole trainings whose files are in a store: fitted, resumed, compared by the shell, and with a store that fails."""

import json
import os
from pathlib import Path
from typing import Any

import fsspec
import pytest
from lightning.pytorch.loggers import CSVLogger

from clipcam_lightning import BackgroundSink, ClipCamCallback, ClipCamWarning, Snapshot
from clipcam_lightning.storage.paths import as_path
from tests.support.faulty import tiny_module, two_probes
from tests.support.modules import fit
from tests.support.stores import BrokenStore

pytestmark = pytest.mark.slow


@pytest.fixture(params=["memory", "s3"])
def store(request: pytest.FixtureRequest) -> str:
    """URL of a folder in a store."""
    return f"{request.getfixturevalue(request.param)}/runs"


@pytest.fixture(autouse=True)
def _nothing_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    yield
    assert os.listdir() == [], "no local folder has the name of a protocol"  # noqa: PTH208


def make_callback(**arguments: Any) -> ClipCamCallback:
    return ClipCamCallback(two_probes(), method="gradcam", on_drift="log", **arguments)


def steps_in(url: str | None) -> list[int]:
    assert url is not None
    folder = as_path(url)
    lines = (folder / "history.jsonl").read_bytes().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    for step in steps:
        assert Snapshot.load(folder / f"step-{step:08d}.safetensors").info.step == step
    return steps


def wait_for_writes(callback: ClipCamCallback) -> None:
    for sink in callback.monitor.sinks if callback.monitor else ():
        if isinstance(sink, BackgroundSink) and sink._in_flight is not None:
            sink._in_flight.join()


def test_all_files_of_a_fit_are_in_the_store(store: str, tmp_path: Path) -> None:
    callback = make_callback(dirpath=store)
    fit(tiny_module(), tmp_path, callback, logger=False)
    assert callback.directory == store
    assert steps_in(store) == [0, 4, 8]
    names = {path.name for path in as_path(store).iterdir()}
    assert {"run.json", "contact_sheet.png", "report.html"} <= names


def test_a_second_run_and_a_resumed_one_have_their_own_folders(store: str, tmp_path: Path) -> None:
    first, second = make_callback(dirpath=store), make_callback(dirpath=store)
    trainer = fit(tiny_module(), tmp_path, first, logger=False, max_epochs=1)
    trainer.save_checkpoint(tmp_path / "first.ckpt")
    fit(tiny_module(), tmp_path, second, logger=False, max_epochs=1)
    resumed = make_callback(dirpath=store)
    fit(tiny_module(), tmp_path, resumed, logger=False, max_epochs=2, ckpt_path=tmp_path / "first.ckpt")
    assert (resumed.directory, second.directory) == (store, f"{store}/run_2")
    assert (steps_in(store), steps_in(second.directory)) == ([0, 4, 8], [0, 4])


def test_a_log_directory_may_be_in_a_store(store: str, tmp_path: Path) -> None:
    callback = make_callback()
    fit(tiny_module(), tmp_path, callback, logger=CSVLogger(store, "birds"), max_epochs=1)
    assert callback.directory == f"{store}/birds/version_0/clipcam"
    assert steps_in(callback.directory) == [0, 4]


def test_the_default_folder_of_the_trainer_may_be_in_a_store(store: str, tmp_path: Path) -> None:
    callback = make_callback()
    fit(tiny_module(), tmp_path, callback, logger=False, default_root_dir=store, max_epochs=1)
    assert callback.directory == f"{store}/clipcam"
    assert steps_in(callback.directory) == [0, 4]


def test_a_baseline_may_be_in_a_store(store: str, tmp_path: Path) -> None:
    fit(tiny_module(), tmp_path, make_callback(dirpath=store), logger=False, max_epochs=1)
    callback = make_callback(dirpath=tmp_path / "local", baseline=f"{store}/step-00000000.safetensors")
    fit(tiny_module(), tmp_path, callback, logger=False, max_epochs=1)
    assert callback.report is not None
    assert callback.report.baseline_step == 0


def test_a_store_that_fails_is_warned_of_once_and_tried_again(tmp_path: Path) -> None:
    fsspec.register_implementation("broken", BrokenStore, clobber=True)
    BrokenStore.store.clear()

    class Outage(ClipCamCallback):
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            wait_for_writes(self)
            BrokenStore.failing = {"pipe_file"} if trainer.current_epoch in (1, 2) else set()

    callback = Outage(two_probes(), method="gradcam", on_drift="log", dirpath="broken://runs")
    try:
        with pytest.warns(ClipCamWarning, match="could not be written") as caught:
            trainer = fit(tiny_module(), tmp_path, callback, logger=False, max_epochs=4)
    finally:
        BrokenStore.failing = set()
    assert trainer.global_step == 16
    messages = [str(warning.message) for warning in caught if "could not be written" in str(warning.message)]
    assert len(messages) == 1
    assert "runs/step-00000008.safetensors" in messages[0]
    assert steps_in("broken://runs") == [0, 4, 16]


def test_a_store_that_cannot_be_reached_at_first_gets_the_later_evaluations(tmp_path: Path) -> None:
    fsspec.register_implementation("broken", BrokenStore, clobber=True)
    BrokenStore.store.clear()
    BrokenStore.failing = {"pipe_file", "cat_file", "info"}

    class Recovery(ClipCamCallback):
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            wait_for_writes(self)
            if trainer.current_epoch == 1:
                BrokenStore.failing = set()

    callback = Recovery(two_probes(), method="gradcam", on_drift="log", dirpath="broken://late")
    try:
        with pytest.warns(ClipCamWarning, match="could not be written"):
            fit(tiny_module(), tmp_path, callback, logger=False, max_epochs=2)
    finally:
        BrokenStore.failing = set()
    assert steps_in("broken://late") == [8]
    assert callback.directory == str(as_path("broken://late"))
