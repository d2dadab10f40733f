"""A run that is killed at any moment leaves whole files, and when resumed becomes the run it would have been."""

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
from clipcam_lightning.cam import writing
from clipcam_lightning.storage import atomic, tensorfile
from tests.support import faulty

pytestmark = pytest.mark.slow

WRITERS = {writing.__file__, atomic.__file__, tensorfile.__file__}
KILLS = int(os.environ.get("CLIPCAM_KILLS", "5"))
PATIENCE = 120  # seconds after which a run counts as hanging
EVALUATIONS = Path("run") / "clipcam"


class Assassin:
    """A profiler that counts the calls that write files (open, write, flush, rename, ...) and kills the process.

    Args:
        kill_at: kill just before this call, counted from 1; ``None`` to count only.
    """

    def __init__(self, kill_at: int | None) -> None:
        self.kill_at = kill_at
        self.count = 0

    def __call__(self, frame: FrameType, event: str, _argument: object) -> None:
        caller = {"c_call": frame, "call": frame.f_back}.get(event)
        if caller is not None and caller.f_code.co_filename in WRITERS:
            self.count += 1
            if self.count == self.kill_at:
                os.kill(os.getpid(), signal.SIGKILL)


def run(folder: Path, results: Connection, kill_at: int | None) -> None:
    """Train in a process of its own, from the last checkpoint if there is one."""
    assassin, last = Assassin(kill_at), folder / "kept" / "last.ckpt"
    threading.setprofile(assassin)
    sys.setprofile(assassin)
    tempfile.tempdir = str(folder)  # for Lightning's half-written checkpoint, so that it is removed with the rest
    torch.set_num_threads(1)
    callback = ClipCamCallback(faulty.two_probes(), on_drift="log", method="gradcam", on_error="raise")
    results.send("begins")
    start = time.monotonic()
    with open(os.devnull, "w") as null, contextlib.redirect_stderr(null), warnings.catch_warnings():  # noqa: PTH123
        warnings.simplefilter("ignore")
        faulty.train(folder, callback, ckpt_path=last if last.exists() else None)
    results.send((time.monotonic() - start, assassin.count, [entry.step for entry in callback.history]))


def write(folder: Path, kill_at: int) -> None:
    """Replace one file and append to another, in a process of its own."""
    sys.setprofile(Assassin(kill_at))
    writing.write_atomically(folder / "replaced", b"new" * 10_000)
    atomic.append_line(folder / "appended", "new" * 10_000)


class Running:
    """A run in a process that was forked from one with everything imported."""

    def __init__(self, server: ForkServerContext, folder: Path, kill_at: int | None = None) -> None:
        self._results, sender = server.Pipe(duplex=False)
        self.process = server.Process(target=run, args=(folder, sender, kill_at))
        self.process.start()
        sender.close()
        assert self.receive() == "begins"

    def receive(self) -> Any:
        """Wait for the next message of the process."""
        assert self._results.poll(PATIENCE), "the run hangs"
        return self._results.recv()

    def exit_code(self) -> int:
        """Wait for the end of the process; the code of a signal is negative."""
        self.process.join(PATIENCE)
        assert self.process.exitcode is not None, "the run hangs"
        return self.process.exitcode


@dataclass(frozen=True)
class WholeRun:
    """A run that was not killed.

    Attributes:
        folder: of its files.
        seconds: it took.
        file_calls: how many calls of it wrote files.
    """

    folder: Path
    seconds: float
    file_calls: int


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServerContext]:
    """A server that forks processes with everything imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))  # the server imports with it
        yield context


@pytest.fixture(scope="module")
def whole(server: ForkServerContext, tmp_path_factory: pytest.TempPathFactory) -> WholeRun:
    folder = tmp_path_factory.mktemp("whole")
    running = Running(server, folder)
    seconds, count, steps = running.receive()
    assert running.exit_code() == 0
    assert steps == faulty.STEPS
    return WholeRun(folder, seconds, count)


def snapshots_in(folder: Path) -> dict[int, Snapshot]:
    """Load the snapshots in a folder, and check that every file is whole.

    Temporary files, whose names begin with a dot, may be left there.

    Returns:
        The snapshots by step.
    """
    snapshots = {}
    for file in folder.iterdir():
        if file.suffix == ".safetensors" and not file.name.startswith("."):
            snapshot = Snapshot.load(file)
            snapshots[snapshot.info.step] = snapshot
        elif file.name == "contact_sheet.png":
            with Image.open(file) as image:
                image.load()
        else:
            names = ("history.jsonl", "run.json", "report.html", "run_2")
            assert file.name in names or file.name.startswith(".")
    return snapshots


def history_in(folder: Path) -> dict[int, dict[str, Any]]:
    """Read the history by step, and check that every line is whole; of two lines with one step the later counts."""
    content = (folder / "history.jsonl").read_text()
    assert content.endswith("\n")
    return {line["step"]: line for line in map(json.loads, content.splitlines())}


def test_a_file_is_old_or_new_whichever_call_the_writing_process_is_killed_at(
    server: ForkServerContext, tmp_path: Path
) -> None:
    replaced, appended, sizes = tmp_path / "replaced", tmp_path / "appended", set()
    for kill_at in range(1, 100):
        replaced.write_bytes(b"old" * 10_000)
        appended.write_text("old\n")
        process = server.Process(target=write, args=(tmp_path, kill_at))
        process.start()
        process.join(PATIENCE)
        assert process.exitcode in (0, -signal.SIGKILL)
        assert replaced.read_bytes() in (b"old" * 10_000, b"new" * 10_000)
        assert appended.read_text() in ("old\n", "old\n" + "new" * 10_000 + "\n")
        sizes.add(appended.stat().st_size)
        if process.exitcode == 0:
            break
    assert process.exitcode == 0
    assert len(sizes) == 2, "some were killed before the line and some were not"


@pytest.mark.parametrize("seed", range(KILLS))
def test_a_killed_run_leaves_whole_files_and_becomes_the_whole_run_when_resumed(
    seed: int, whole: WholeRun, server: ForkServerContext, tmp_path: Path
) -> None:
    dice = random.Random(seed)
    if seed % 2:  # anywhere
        running = Running(server, tmp_path)
        time.sleep(dice.uniform(0, whole.seconds))
        running.process.kill()
        assert running.exit_code() in (-signal.SIGKILL, 0)
    else:  # while it writes
        running = Running(server, tmp_path, kill_at=dice.randint(1, whole.file_calls))
        assert running.exit_code() == -signal.SIGKILL
    folder, has_checkpoint = tmp_path / EVALUATIONS, (tmp_path / "kept" / "last.ckpt").exists()
    if folder.exists():
        snapshots_in(folder)
        if not has_checkpoint and any(not path.name.startswith(".") for path in folder.iterdir()):
            folder = folder / "run_2"  # without a checkpoint it is another run

    resumed = Running(server, tmp_path)
    _, _, steps = resumed.receive()

    assert resumed.exit_code() == 0
    assert steps == faulty.STEPS
    own, expected = snapshots_in(folder), snapshots_in(whole.folder / EVALUATIONS)
    assert own.keys() == expected.keys() == set(faulty.STEPS)
    assert all(torch.equal(own[step].maps, expected[step].maps) for step in faulty.STEPS)
    assert history_in(folder) == history_in(whole.folder / EVALUATIONS)
    weights = [
        torch.load(each / "kept" / "last.ckpt", weights_only=True)["state_dict"] for each in (tmp_path, whole.folder)
    ]
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())
