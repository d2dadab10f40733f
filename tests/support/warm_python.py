"""Run Python programs in processes that have torch and Lightning imported already.

Each program has a process of its own, forked from a server that has imported what takes seconds to import, and nothing
of this package. So a test of a program costs little more than what the program does.

Run as a program, this file is the server: it reads requests from its standard input and writes exit codes to its
standard output, one JSON value per line.
"""

import atexit
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from functools import cache
from pathlib import Path
from typing import Any, TextIO

PRELOADED = ("torch", "lightning.pytorch", "open_clip", "PIL.Image", "rich.console", "safetensors.torch", "pytest")


def run_module(
    name: str, *arguments: object, cwd: Path, env: dict[str, str] | None = None, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run ``python -m name arguments``, as :func:`subprocess.run` does.

    Args:
        name: of the module.
        arguments: of its command line.
        cwd: working directory.
        env: environment; by default that of this process.
        timeout: seconds.

    Raises:
        subprocess.TimeoutExpired: the program did not end in time; it was killed.
    """
    command = [sys.executable, "-m", name, *map(str, arguments)]
    env = dict(os.environ) if env is None else env
    if any(each.startswith("COV") for each in env):  # coverage is measured from the start of an interpreter
        return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout, check=False)
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder, name) for name in ("stdout", "stderr")]
        request = {"name": name, "argv": command[3:], "cwd": str(cwd), "env": env, "outputs": list(map(str, outputs))}
        code = _Server.shared().run({**request, "timeout": timeout})
        texts = [output.read_text(encoding="utf-8", errors="replace") for output in outputs]
    if code is None:
        raise subprocess.TimeoutExpired(command, timeout, *texts)
    return subprocess.CompletedProcess(command, code, *texts)


class _Server:
    """The server of this process."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        self._lock = threading.Lock()
        atexit.register(self._process.kill)

    @classmethod
    @cache
    def shared(cls) -> "_Server":
        return cls()

    def run(self, request: dict[str, Any]) -> int | None:
        """Run a program and return its exit code; ``None`` if it did not end in time."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        with self._lock:
            stdin.write(json.dumps(request) + "\n")
            stdin.flush()
            code: int | None = json.loads(stdout.readline())
        return code


def _serve(requests: TextIO, answers: TextIO) -> None:
    for name in PRELOADED:
        __import__(name)
    path = sys.path[1:]  # without the folder of this file
    for line in requests:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            _run(request, path)
        answers.write(json.dumps(_wait(child, request["timeout"])) + "\n")
        answers.flush()


def _wait(child: int, timeout: float) -> int | None:
    expired = threading.Event()

    def kill() -> None:
        expired.set()
        os.killpg(child, signal.SIGKILL)

    timer = threading.Timer(timeout, kill)
    timer.start()
    _, status = os.waitpid(child, 0)
    timer.cancel()
    timer.join()  # no thread may live when the next child is forked
    return None if expired.is_set() else os.waitstatus_to_exitcode(status)


def _run(request: dict[str, Any], path: list[str]) -> None:
    """Become the process of a program: never returns."""
    code = 1
    try:
        os.setsid()
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["env"])
        sys.path[:] = [request["cwd"], *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)), *path]
        sys.argv = [request["name"], *request["argv"]]
        with Path(os.devnull).open() as nothing:
            os.dup2(nothing.fileno(), 0)
        for number, name in enumerate(request["outputs"], start=1):
            with Path(name).open("w") as output:
                os.dup2(output.fileno(), number)
        runpy.run_module(request["name"], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if code and not isinstance(error.code, int):
            print(error.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        _finish(code)


def _finish(code: int) -> None:
    """End as an interpreter does: threads, exit handlers, buffers."""
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


if __name__ == "__main__":
    _serve(sys.stdin, sys.stdout)
