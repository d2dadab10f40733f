"""Every run keeps its files in a folder of its own: one after the other, resumed, crashed, and several at once."""

import copy
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch.utils.data import DataLoader

from clipcam_lightning import ClipCamCallback, Snapshot
from tests.support import loggers
from tests.support.faulty import tiny_module, two_probes
from tests.support.modules import Pairs, fit
from tests.support.shell import files_in
from tests.support.warm_python import Program, run_together

pytestmark = [pytest.mark.slow, *loggers.CLIENT_WARNINGS]
ROOT = Path(__file__).parents[2]


def make_callback(**arguments: Any) -> ClipCamCallback:
    return ClipCamCallback(two_probes(), method="gradcam", on_drift="log", on_error="raise", **arguments)


def steps_in(folder: str | Path | None) -> list[int]:
    """Steps in the history of a run, whose snapshots must all be there and whole."""
    assert folder is not None
    steps = [json.loads(line)["step"] for line in (Path(folder) / "history.jsonl").read_text().splitlines()]
    for step in steps:
        assert Snapshot.load(Path(folder) / f"step-{step:08d}.safetensors").info.step == step
    return steps


def id_of(folder: str | Path | None) -> str:
    return str(json.loads((Path(str(folder)) / "run.json").read_text())["run"])


def contents_of(folder: Path) -> dict[Path, bytes]:
    return {name: (folder / name).read_bytes() for name in files_in(folder)}


LOGGERS: dict[str, Callable[[Path], Any]] = {
    "no logger": lambda folder: False,
    "tensorboard": lambda folder: TensorBoardLogger(folder, "", "same"),
    "csv": lambda folder: CSVLogger(folder, "", "same"),
}


@pytest.mark.filterwarnings("ignore:Experiment logs directory:UserWarning")  # of CSVLogger, whose own file is deleted
@pytest.mark.parametrize("kind", LOGGERS)
def test_a_second_run_touches_no_file_of_the_first(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, second = make_callback(), make_callback()
    fit(tiny_module(), tmp_path, first, logger=LOGGERS[kind](tmp_path), default_root_dir=tmp_path)
    folder = Path(str(first.directory))
    before = contents_of(folder)
    with caplog.at_level("INFO"):
        fit(tiny_module(), tmp_path, second, logger=LOGGERS[kind](tmp_path), default_root_dir=tmp_path, max_epochs=1)
    assert {name: content for name, content in contents_of(folder).items() if name in before} == before
    assert second.directory == str(folder / "run_2")
    assert (steps_in(first.directory), steps_in(second.directory)) == ([0, 4, 8], [0, 4])
    lines = [record.message for record in caplog.records if "files of another run" in record.message]
    assert lines == [
        f"ClipCamCallback: {folder} holds the files of another run or callback; "
        f"those of this one are in {folder / 'run_2'}"
    ]


def test_versions_of_a_logger_are_folders_of_their_own(tmp_path: Path) -> None:
    callbacks = [make_callback(), make_callback()]
    for callback in callbacks:
        fit(tiny_module(), tmp_path, callback, logger=CSVLogger(tmp_path, "birds"), max_epochs=1)
    folders = [tmp_path / "birds" / f"version_{i}" / "clipcam" for i in range(2)]
    assert [callback.directory for callback in callbacks] == [str(folder) for folder in folders]
    assert [steps_in(folder) for folder in folders] == [[0, 4], [0, 4]]


def test_nothing_is_said_of_a_folder_that_is_given_relative_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    callback = make_callback(dirpath="evaluations")
    with caplog.at_level("INFO"):
        fit(tiny_module(), tmp_path, callback, logger=False, max_epochs=1)
    assert callback.directory == str(tmp_path / "evaluations")
    assert "files of another run" not in caplog.text


@pytest.mark.parametrize("kind", LOGGERS)
def test_the_folder_lies_beside_the_checkpoints_of_lightning(kind: str, tmp_path: Path) -> None:
    checkpoints, callback = ModelCheckpoint(), make_callback()
    fit(
        tiny_module(),
        tmp_path,
        callback,
        checkpoints,
        logger=LOGGERS[kind](tmp_path),
        default_root_dir=tmp_path,
        enable_checkpointing=True,
        max_epochs=1,
    )
    assert Path(str(callback.directory)).parent == Path(str(checkpoints.dirpath)).parent


def test_a_resumed_run_goes_on_in_its_own_folder_among_others(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    others = [make_callback(dirpath=folder) for _ in range(3)]
    for callback in others:
        trainer = fit(tiny_module(), tmp_path, callback, logger=False, max_epochs=1)
        trainer.save_checkpoint(tmp_path / f"{len(list(tmp_path.glob('*.ckpt')))}.ckpt")
    before = contents_of(folder / "run_3")
    resumed = make_callback(dirpath=folder)
    fit(tiny_module(), tmp_path, resumed, logger=False, max_epochs=2, ckpt_path=tmp_path / "1.ckpt")
    assert resumed.directory == others[1].directory == str(folder / "run_2")
    assert steps_in(folder / "run_2") == [0, 4, 8]
    assert contents_of(folder / "run_3") == before
    assert len(list(folder.glob("run_*"))) == 2


def test_the_files_of_a_crashed_run_stay_whole_beside_those_of_the_next(tmp_path: Path) -> None:
    crashed, following = make_callback(dirpath=tmp_path / "x"), make_callback(dirpath=tmp_path / "x")
    with pytest.raises(RuntimeError, match="on purpose"):
        fit(tiny_module(), tmp_path, crashed, Crash(), logger=False)
    before = contents_of(tmp_path / "x")
    fit(tiny_module(), tmp_path, following, logger=False)
    assert steps_in(crashed.directory) == [0, 4]
    assert steps_in(following.directory) == [0, 4, 8]
    assert {name: (tmp_path / "x" / name).read_bytes() for name in before} == before


def test_a_second_fit_by_one_trainer_goes_on_in_its_folder(tmp_path: Path) -> None:
    callback, module = make_callback(dirpath=tmp_path / "x"), tiny_module()
    trainer = fit(module, tmp_path, callback, logger=False, max_epochs=1)
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, DataLoader(Pairs(), batch_size=4))
    assert callback.directory == str(tmp_path / "x")
    assert steps_in(callback.directory) == [0, 4, 8]


def test_a_second_fit_whose_steps_begin_again_replaces_no_file_of_the_first(tmp_path: Path) -> None:
    callback, module = make_callback(dirpath=tmp_path / "x"), tiny_module()
    fit(module, tmp_path, callback, logger=False)
    before = contents_of(tmp_path / "x")
    fit(module, tmp_path, callback, logger=False)
    assert callback.directory == str(tmp_path / "x" / "run_2")
    assert steps_in(callback.directory) == [4, 8]
    assert {name: (tmp_path / "x" / name).read_bytes() for name in before} == before
    assert callback.report.baseline_step == 0


def test_one_callback_gives_each_of_two_models_a_folder(tmp_path: Path) -> None:
    callback = make_callback(dirpath=tmp_path / "x")
    folders = []
    for _ in range(2):
        fit(tiny_module(), tmp_path, callback, logger=False, max_epochs=1)
        folders.append(callback.directory)
    assert folders == [str(tmp_path / "x"), str(tmp_path / "x" / "run_2")]
    assert [steps_in(folder) for folder in folders] == [[0, 4], [0, 4]]


def test_a_copy_of_a_callback_is_another_run(tmp_path: Path) -> None:
    callback = make_callback(dirpath=tmp_path / "x")
    fit(tiny_module(), tmp_path, callback, logger=False, max_epochs=1)
    before, copied = contents_of(tmp_path / "x"), copy.deepcopy(callback)
    fit(tiny_module(), tmp_path, copied, logger=False, max_epochs=1)
    assert copied.directory == str(tmp_path / "x" / "run_2")
    assert {name: (tmp_path / "x" / name).read_bytes() for name in before} == before


class Crash(pl.Callback):
    """Ends a training in its second epoch."""

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == 1:
            raise RuntimeError("on purpose")


@pytest.mark.usefixtures("clients")
@pytest.mark.parametrize("kind", loggers.LOGGERS)
def test_runs_one_after_the_other_have_whole_files_of_their_own_with_each_logger(kind: str, tmp_path: Path) -> None:
    def run(*callbacks: pl.Callback, **options: Any) -> pl.Trainer:
        if wandb := sys.modules.get("wandb"):
            wandb.finish()  # else the next logger goes on with the run of the one before
        logger = loggers.LOGGERS[kind](tmp_path)
        return fit(tiny_module(), tmp_path, *callbacks, logger=logger, default_root_dir=tmp_path, **options)

    whole, crashed, resumed = (make_callback() for _ in range(3))
    run(whole, max_epochs=1).save_checkpoint(tmp_path / "whole.ckpt")
    before = contents_of(Path(str(whole.directory)))
    with pytest.raises(RuntimeError, match="on purpose"):
        run(crashed, Crash())
    run(resumed, max_epochs=2, ckpt_path=tmp_path / "whole.ckpt")

    assert [steps_in(each.directory) for each in (whole, crashed, resumed)] == [[0, 4], [0, 4], [8]]
    assert len({each.directory for each in (whole, crashed, resumed)}) == 3
    assert contents_of(Path(str(whole.directory))) == before
    ids = [id_of(each.directory) for each in (whole, crashed, resumed)]
    assert ids[0] == ids[2] != ids[1], "a resumed run is the same run, also in the folder of another version"
    assert len(list(tmp_path.rglob("history.jsonl"))) == 3


PROGRAM = """
import sys
import warnings
from pathlib import Path
from tests.support import loggers
from tests.support.faulty import tiny_module
from tests.support.loggers import LOGGERS
from tests.support.modules import fit
from tests.training.test_run_folders import make_callback

warnings.simplefilter("ignore")
kind, folder = sys.argv[1], Path(sys.argv[2])
callback = make_callback(dirpath=folder / "x" if kind == "dirpath" else None)
logger = LOGGERS[kind](folder) if kind in LOGGERS else False
fit(tiny_module(), folder, callback, logger=logger, default_root_dir=folder)
print(callback.directory)
"""


@pytest.mark.usefixtures("clients")
@pytest.mark.parametrize("kind", ["dirpath", "tensorboard", "wandb", "mlflow"])
def test_four_runs_at_once_do_not_mix_their_files(kind: str, tmp_path: Path) -> None:
    if kind == "mlflow":
        loggers.LOGGERS[kind](tmp_path).experiment.search_experiments()  # makes the database
    (tmp_path / "program.py").write_text(PROGRAM)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = run_together([Program(tmp_path / "program.py", (kind, str(tmp_path)), tmp_path, env)] * 4)
    assert [each.returncode for each in done] == [0] * 4, done[0].stderr
    folders = [each.stdout.splitlines()[-1] for each in done]
    assert len(set(folders)) == 4
    if kind == "dirpath":
        assert set(folders) == {str(tmp_path / "x"), *(str(tmp_path / "x" / f"run_{i}") for i in (2, 3, 4))}
    for folder in folders:
        assert steps_in(folder) == [0, 4, 8]
    assert len({id_of(folder) for folder in folders}) == 4
    assert len(list(tmp_path.rglob("history.jsonl"))) == 4
