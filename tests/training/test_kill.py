"""Killed without a word at any moment, a run leaves whole files; resumed, it becomes the run it would have been."""

import contextlib
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from PIL import Image

from clipcam_lightning import ClipCamCallback, Snapshot
from clipcam_lightning.storage import atomic, tensorfile
from tests.support import faulty

WRITERS = {atomic.__file__, tensorfile.__file__}
KILLS = int(os.environ.get("CLIPCAM_KILLS", "5"))
PATIENCE = 120  # seconds after which a run is taken to hang
EVALUATIONS = Path("run") / "clipcam"


class Assassin:
    """Counts the calls by which files are written (open, write, flush, rename, ...), and kills just before the n-th."""

    def __init__(self, kill_at: int | None) -> None:
        self.kill_at = kill_at
        self.count = 0

    def __call__(self, frame: FrameType, event: str, _argument: object) -> None:
        caller = {"c_call": frame, "call": frame.f_back}.get(event)
        if caller is not None and caller.f_code.co_filename in WRITERS:
            self.count += 1
            if self.count == self.kill_at:
                os.kill(os.getpid(), signal.SIGKILL)


def run(folder: Path, told: Connection, kill_at: int | None) -> None:
    """One run in a process of its own, from the last checkpoint if there is one."""
    assassin, last = Assassin(kill_at), folder / "kept" / "last.ckpt"
    threading.setprofile(assassin)
    sys.setprofile(assassin)
    tempfile.tempdir = str(folder)  # where Lightning's half-written checkpoint is left, and removed with the rest
    torch.set_num_threads(1)
    watcher = ClipCamCallback(faulty.two_probes(), on_drift="log", method="gradcam", on_error="raise")
    told.send("begins")
    began = time.monotonic()
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere), warnings.catch_warnings():  # noqa: PTH123
        warnings.simplefilter("ignore")
        faulty.train(folder, watcher, ckpt_path=last if last.exists() else None)
    assert watcher.monitor is not None
    told.send((time.monotonic() - began, assassin.count, [column.step for column in watcher.monitor.history]))


def write(folder: Path, kill_at: int) -> None:
    """Replace one file and lengthen another, in a process of its own."""
    sys.setprofile(Assassin(kill_at))
    atomic.write_atomically(folder / "replaced", b"new" * 10_000)
    atomic.append_line(folder / "lengthened", "new" * 10_000)


class Running:
    """A run that has begun, in a process that was forked from one with everything imported."""

    def __init__(self, server: ForkServerContext, folder: Path, kill_at: int | None = None) -> None:
        self._told, there = server.Pipe(duplex=False)
        self.process = server.Process(target=run, args=(folder, there, kill_at))
        self.process.start()
        there.close()
        assert self.told() == "begins"

    def told(self) -> Any:
        """What the process tells next."""
        assert self._told.poll(PATIENCE), "the run hangs"
        return self._told.recv()

    def ended(self) -> int:
        """Its exit code, negative for a signal."""
        self.process.join(PATIENCE)
        assert self.process.exitcode is not None, "the run hangs"
        return self.process.exitcode


@dataclass(frozen=True)
class Whole:
    """What a run comes to that nobody kills."""

    folder: Path
    seconds: float
    file_calls: int


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServerContext]:
    """Forks processes that have everything imported and have done nothing yet."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))  # the server imports by it
        yield context


@pytest.fixture(scope="module")
def whole(server: ForkServerContext, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("whole")
    running = Running(server, folder)
    seconds, count, steps = running.told()
    assert running.ended() == 0
    assert steps == faulty.STEPS
    return Whole(folder, seconds, count)


def snapshots_in(folder: Path) -> dict[int, Snapshot]:
    """By step; every file of a look must be whole, whatever was left under a temporary name, with a dot before it."""
    snapshots = {}
    for file in folder.iterdir():
        if file.suffix == ".safetensors" and not file.name.startswith("."):
            snapshot = Snapshot.load(file)
            snapshots[snapshot.info.step] = snapshot
        elif file.name == "contact_sheet.png":
            with Image.open(file) as picture:
                picture.load()
        else:
            assert file.name == "history.jsonl" or file.name.startswith(".")
    return snapshots


def history_in(folder: Path) -> dict[int, dict[str, Any]]:
    """Lines by step, the later of two; each must be whole."""
    content = (folder / "history.jsonl").read_text()
    assert content.endswith("\n")
    return {line["step"]: line for line in map(json.loads, content.splitlines())}


def test_a_file_is_the_old_or_the_new_one_whichever_call_of_its_writing_is_the_last(
    server: ForkServerContext, tmp_path: Path
) -> None:
    replaced, lengthened, lengths = tmp_path / "replaced", tmp_path / "lengthened", set()
    for kill_at in range(1, 100):
        replaced.write_bytes(b"old" * 10_000)
        lengthened.write_text("old\n")
        process = server.Process(target=write, args=(tmp_path, kill_at))
        process.start()
        process.join(PATIENCE)
        assert process.exitcode in (0, -signal.SIGKILL)
        assert replaced.read_bytes() in (b"old" * 10_000, b"new" * 10_000)
        assert lengthened.read_text() in ("old\n", "old\n" + "new" * 10_000 + "\n")
        lengths.add(lengthened.stat().st_size)
        if process.exitcode == 0:
            break
    assert process.exitcode == 0
    assert len(lengths) == 2, "some were killed before the line and some were not"


@pytest.mark.parametrize("seed", range(KILLS))
def test_a_killed_run_leaves_whole_files_and_resumed_it_is_the_run_nobody_killed(
    seed: int, whole: Whole, server: ForkServerContext, tmp_path: Path
) -> None:
    dice = random.Random(seed)
    if seed % 2:  # anywhere
        running = Running(server, tmp_path)
        time.sleep(dice.uniform(0, whole.seconds))
        running.process.kill()
        assert running.ended() in (-signal.SIGKILL, 0)
    else:  # in the writing itself
        running = Running(server, tmp_path, kill_at=dice.randint(1, whole.file_calls))
        assert running.ended() == -signal.SIGKILL
    if (tmp_path / EVALUATIONS).exists():
        snapshots_in(tmp_path / EVALUATIONS)

    resumed = Running(server, tmp_path)
    _, _, steps = resumed.told()

    assert resumed.ended() == 0
    assert steps == faulty.STEPS
    here, there = snapshots_in(tmp_path / EVALUATIONS), snapshots_in(whole.folder / EVALUATIONS)
    assert here.keys() == there.keys() == set(faulty.STEPS)
    assert all(torch.equal(here[step].maps, there[step].maps) for step in faulty.STEPS)
    assert history_in(tmp_path / EVALUATIONS) == history_in(whole.folder / EVALUATIONS)
    ends = [
        torch.load(each / "kept" / "last.ckpt", weights_only=True)["state_dict"] for each in (tmp_path, whole.folder)
    ]
    assert all(torch.equal(weight, ends[1][name]) for name, weight in ends[0].items())
