"""TensorBoard as users start it, and waiting until it has read what was written."""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from safetensors.numpy import load

PATIENCE = 60  # seconds, on a busy machine


@contextmanager
def tensorboard(*options: object) -> Iterator[str]:
    """Its address; at the end it must have raised nothing."""
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "tensorboard.main", "--port", "0", "--host", "127.0.0.1"),
                *("--reload_interval", "1", *map(str, options)),
            ],
            stdout=log,
            stderr=log,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

        def said() -> str:
            log.seek(0)
            return log.read()

        try:
            found = until(
                lambda: re.search(r"at (http://\S+) \(Press", said()) or process.poll() is not None,
                "TensorBoard starts",
            )
            assert isinstance(found, re.Match), said()
            yield found[1].rstrip("/")
        finally:
            stop(process)
        assert "Traceback" not in said(), said()


def stop(process: subprocess.Popen[Any]) -> None:
    """End a TensorBoard; one that has lost the signal, as happens once in hundreds of times, is killed."""
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def until(condition: Callable[[], object], what: str) -> object:
    """What ``condition`` returns as soon as that is true."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.05)
    raise AssertionError(f"waited in vain until {what}")


def evaluations(board: str, run: str, root: str = "clipcam") -> dict[str, np.ndarray]:
    """What the page is told of a run; nothing as long as there is nothing."""
    query = urllib.parse.urlencode({"run": run, "root": root})
    try:
        with urllib.request.urlopen(f"{board}/data/plugin/clipcam/looks?{query}") as answer:
            return load(answer.read())
    except urllib.error.HTTPError:
        return {}


def runs(board: str) -> list[tuple[str, str]]:
    """Every run with a callback, and the callback's root."""
    with urllib.request.urlopen(f"{board}/data/plugin/clipcam/runs") as answer:
        return [(told["run"], told["root"]) for told in json.load(answer)["runs"]]


def wait_for(board: str, run: str, steps: Sequence[int], root: str = "clipcam") -> None:
    """Until TensorBoard has read these steps of the run, neither more nor less."""
    until(
        lambda: [*evaluations(board, run, root).get("step", [])] == [*steps],
        f"{run} with steps {steps} is read at {board}",
    )
