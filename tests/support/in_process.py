"""TensorBoards in this process, over event files of any content."""

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

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")  # a test that forks later would wait for its threads
with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of a library that TensorBoard has a copy of
    from tensorboard import default
    from tensorboard.backend import application

LOADERS = {"legacy": "false", "fast": "true"}  # values of --load_fast
LOADED = "loaded"  # scalar that stands behind everything else in a run


@dataclass
class Board:
    """A TensorBoard without a socket.

    Attributes:
        client: asks it.
        prefix: of all its addresses.
    """

    client: Client
    prefix: str

    def get(self, route: str, query: Mapping[str, object] | None = None) -> TestResponse:
        """The answer of any route, as ``clipcam/runs`` or ``scalars/tags``."""
        answer = self.client.get(f"{self.prefix}/data/plugin/{route}", query_string=query)
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        return answer

    def json(self, route: str, query: Mapping[str, object] | None = None) -> Any:
        answer = self.get(route, query)
        assert answer.status_code == 200, answer.text
        return answer.json

    def arrays(self, route: str, **query: object) -> tuple[dict[str, np.ndarray], Any]:
        """Arrays and JSON of one of the tab's own routes."""
        answer = self.get(f"clipcam/{route}", query)
        assert answer.status_code == 200, answer.text
        length = int.from_bytes(answer.data[:8], "little")
        about = json.loads(answer.data[8 : 8 + length])["__metadata__"]["about"]
        return load(answer.data), json.loads(about, parse_constant=not_json)


def until(true: Callable[[], bool]) -> None:
    """Wait for another process, or a thread, to have read what there is."""
    for _ in range(1200):
        if true():
            return
        time.sleep(0.025)
    raise AssertionError("it took too long")


def not_json(constant: str) -> None:
    raise AssertionError(f"a browser does not know {constant}")


@contextmanager
def board_over(
    loader: str, folder: Path, flags: Sequence[str] = (), *, prefix: str = "", growing: bool = False
) -> Iterator[Board]:
    """All plugins that TensorBoard has, and the tab.

    All runs are read when this returns, unless they are ``growing``: then they are read again and again.
    """
    board = program.TensorBoard(plugins=[*default.get_static_plugins(), ClipCamLoader])
    where = [] if any(flag.startswith("--logdir") for flag in flags) else ["--logdir", str(folder)]
    interval = "--reload_interval=1" if growing else "--reload_interval=0"
    board.configure(
        ["tensorboard", *where, f"--load_fast={LOADERS[loader]}", interval, "--path_prefix", prefix, *flags]
    )
    runs = set() if growing else mark(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it keeps no handle of its data server
        provider, multiplexer = board._make_data_provider()
    app = application.TensorBoardWSGIApp(board.flags, board.plugin_loaders, provider, None, multiplexer)
    served = Board(Client(app), prefix)
    try:
        until(lambda: marks(served) == len(runs))
        yield served
    finally:
        if not multiplexer:
            board._ingester._stdin_handle.close()


def mark(folder: Path) -> set[Path]:
    """Put a scalar behind everything that is in each run; returns their folders."""
    runs = {file.parent for file in folder.rglob("events.out.*")}
    value = Summary.Value(tag=LOADED, simple_value=1.0)
    for run in runs:
        write_events(run / "events.out.tfevents.99999999999.last", [event_of([value], step=0, wall_time=1e11)])
    return runs


def marks(board: Board) -> int:
    """How many runs have been read up to their mark."""
    try:
        return sum(LOADED in tags for tags in board.json("scalars/tags").values())
    except KeyError:  # TensorBoard's own while it reads: it knows a tag a moment before its first value
        return -1


def event_of(values: Iterable[Summary.Value], step: int, wall_time: float) -> Event:
    return Event(step=step, wall_time=wall_time, summary=Summary(value=values))


def write_events(file: Path, events: Iterable[Event]) -> None:
    """An event file of exactly these events."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as opened:
        writer = RecordWriter(opened)
        for event in [Event(file_version="brain.Event:2", wall_time=1.0), *events]:
            writer.write(event.SerializeToString())
