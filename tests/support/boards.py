"""Start TensorBoard as users do, and wait until it has read what was written."""

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
    """Start TensorBoard and yield its address; at the end, its output must have no traceback."""
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

        def output() -> str:
            log.seek(0)
            return log.read()

        try:
            address = until(
                lambda: re.search(r"at (http://\S+) \(Press", output()) or process.poll() is not None,
                "TensorBoard starts",
            )
            assert isinstance(address, re.Match), output()
            yield address[1].rstrip("/")
        finally:
            stop(process)
        assert "Traceback" not in output(), output()


def stop(process: subprocess.Popen[Any]) -> None:
    """Terminate a TensorBoard; kill it if it misses the signal, which happens once in hundreds of times."""
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def until(condition: Callable[[], object], what: str) -> object:
    """Wait until ``condition`` returns a true value, and return it."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.05)
    raise AssertionError(f"timed out before {what}")


def evaluations(board: str, run: str, root: str = "clipcam") -> dict[str, np.ndarray]:
    """Fetch the arrays of a run as the page does; empty while there are none."""
    query = urllib.parse.urlencode({"run": run, "root": root})
    try:
        with urllib.request.urlopen(f"{board}/data/plugin/clipcam/evaluations?{query}") as response:
            return load(response.read())
    except urllib.error.HTTPError:
        return {}


def runs(board: str) -> list[tuple[str, str]]:
    """List every run with a callback, and the callback's root."""
    with urllib.request.urlopen(f"{board}/data/plugin/clipcam/runs") as response:
        return [(source["run"], source["root"]) for source in json.load(response)["runs"]]


def wait_for(board: str, run: str, steps: Sequence[int], root: str = "clipcam") -> None:
    """Wait until TensorBoard has read exactly these steps of the run."""
    until(
        lambda: [*evaluations(board, run, root).get("step", [])] == [*steps],
        f"{run} with steps {steps} is read at {board}",
    )
