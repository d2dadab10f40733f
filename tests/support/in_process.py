"""Run TensorBoard in this process, on event files of any content."""

import json
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load
from tensorboard import program
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from werkzeug.test import Client, TestResponse

from clipcam_lightning.tensorboard_tab import ClipCamLoader

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")  # otherwise a test that forks later waits for its threads
with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # from a library that TensorBoard bundles
    from tensorboard import default
    from tensorboard.backend import application

LOADERS = {"legacy": "false", "fast": "true"}  # values of --load_fast
LOADED = "loaded"  # tag of a scalar that comes after everything else in a run


@dataclass
class Board:
    """A TensorBoard without a socket.

    Attributes:
        client: sends requests to it.
        prefix: path prefix of all its addresses.
    """

    client: Client
    prefix: str

    def get(self, route: str, query: Mapping[str, object] | None = None) -> TestResponse:
        """Request a route, such as ``clipcam/runs`` or ``scalars/tags``."""
        response = self.client.get(f"{self.prefix}/data/plugin/{route}", query_string=query)
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        return response

    def json(self, route: str, query: Mapping[str, object] | None = None) -> Any:
        """Request a route and parse the JSON of a successful response."""
        response = self.get(route, query)
        assert response.status_code == 200, response.text
        return response.json

    def arrays(self, route: str, **query: object) -> tuple[dict[str, np.ndarray], Any]:
        """Request one of the tab's own routes and parse its arrays and JSON."""
        response = self.get(f"clipcam/{route}", query)
        assert response.status_code == 200, response.text
        length = int.from_bytes(response.data[:8], "little")
        about = json.loads(response.data[8 : 8 + length])["__metadata__"]["about"]
        return load(response.data), json.loads(about, parse_constant=refuse_constant)


def until(condition: Callable[[], bool]) -> None:
    """Wait until another process or thread has made ``condition`` true."""
    for _ in range(1200):
        if condition():
            return
        time.sleep(0.025)
    raise AssertionError("timed out")


def refuse_constant(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON; a browser cannot parse it")


@contextmanager
def board_over(
    loader: str, folder: Path, flags: Sequence[str] = (), *, prefix: str = "", growing: bool = False
) -> Iterator[Board]:
    """Run TensorBoard with all its plugins and the tab.

    Args:
        loader: a key of ``LOADERS``.
        folder: the log directory.
        flags: further flags of TensorBoard.
        prefix: path prefix of its addresses.
        growing: read the runs every second, because they are still being written; otherwise all runs have been read
            when the ``with`` block starts.
    """
    board = program.TensorBoard(plugins=[*default.get_static_plugins(), ClipCamLoader])
    where = [] if any(flag.startswith("--logdir") for flag in flags) else ["--logdir", str(folder)]
    interval = "--reload_interval=1" if growing else "--reload_interval=0"
    board.configure(
        ["tensorboard", *where, f"--load_fast={LOADERS[loader]}", interval, "--path_prefix", prefix, *flags]
    )
    runs = set() if growing else mark(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # TensorBoard keeps no handle of its data server
        provider, multiplexer = board._make_data_provider()
    app = application.TensorBoardWSGIApp(board.flags, board.plugin_loaders, provider, None, multiplexer)
    opened = Board(Client(app), prefix)
    try:
        until(lambda: count_marks(opened) == len(runs))
        yield opened
    finally:
        if not multiplexer:
            board._ingester._stdin_handle.close()


def mark(folder: Path) -> set[Path]:
    """Write a scalar after everything else in each run, and return the folders of the runs."""
    runs = {file.parent for file in folder.rglob("events.out.*")}
    value = Summary.Value(tag=LOADED, simple_value=1.0)
    for run in runs:
        write_events(run / "events.out.tfevents.99999999999.last", [event_of([value], step=0, wall_time=1e11)])
    return runs


def count_marks(board: Board) -> int:
    """Count the runs that have been read up to their mark."""
    try:
        return sum(LOADED in tags for tags in board.json("scalars/tags").values())
    except KeyError:  # in TensorBoard, which lists a tag shortly before its first value
        return -1


def event_of(values: Iterable[Summary.Value], step: int, wall_time: float) -> Event:
    return Event(step=step, wall_time=wall_time, summary=Summary(value=values))


def write_events(file: Path, events: Iterable[Event]) -> None:
    """Write an event file of exactly these events."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as opened:
        writer = RecordWriter(opened)
        for event in [Event(file_version="brain.Event:2", wall_time=1.0), *events]:
            writer.write(event.SerializeToString())
