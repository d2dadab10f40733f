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
import time
import traceback
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TextIO

GRACE = 10  # seconds that a program has to end when another one has failed
PRELOADED = (
    "torch", "lightning.pytorch", "open_clip", "PIL.Image", "rich.console", "safetensors.torch", "pytest", "cmap",
    "hypothesis", "jaxtyping", "upath",
)  # fmt: skip


@dataclass(frozen=True)
class Program:
    """What a process runs.

    Attributes:
        what: name of a module, or a script.
        arguments: of its command line.
        cwd: working directory.
        env: environment.
    """

    what: str | Path
    arguments: tuple[str, ...]
    cwd: Path
    env: dict[str, str]


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
    env = dict(os.environ) if env is None else env
    command = [sys.executable, "-m", name, *map(str, arguments)]
    if _is_measured(env):
        return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout, check=False)
    (done,) = run_together([Program(name, tuple(command[3:]), cwd, env)], timeout)
    return done


def run_together(
    programs: Sequence[Program], timeout: float = 300, *, depend: bool = False
) -> list[subprocess.CompletedProcess[str]]:
    """Run programs at the same time, and wait for all.

    Args:
        programs: what to run.
        timeout: seconds, for all of them.
        depend: whether the others are ended once one has failed, as torchrun does.

    Raises:
        subprocess.TimeoutExpired: they did not end in time; they were killed.
    """
    commands = [_command(program) for program in programs]
    with tempfile.TemporaryDirectory() as folder:
        outputs = [[str(Path(folder, f"{name}-{i}")) for name in ("stdout", "stderr")] for i in range(len(programs))]
        if any(_is_measured(program.env) for program in programs):
            codes = _run_cold(programs, outputs, timeout, depend)
        else:
            requests = [
                {"what": str(program.what), "arguments": program.arguments, "cwd": str(program.cwd), "env": program.env}
                for program in programs
            ]
            together = [{**request, "outputs": each} for request, each in zip(requests, outputs, strict=True)]
            codes = _Server.shared().run({"programs": together, "timeout": timeout, "depend": depend})
        texts = [[Path(name).read_text(encoding="utf-8", errors="replace") for name in each] for each in outputs]
    if codes is None:
        raise subprocess.TimeoutExpired(commands[0], timeout, *("".join(each) for each in zip(*texts, strict=True)))
    return [
        subprocess.CompletedProcess(command, code, *each)
        for command, code, each in zip(commands, codes, texts, strict=True)
    ]


def _is_measured(env: dict[str, str]) -> bool:
    """Whether coverage is measured, which begins at the start of an interpreter."""
    return any(each.startswith("COV") for each in env)


def _command(program: Program) -> list[str]:
    what = [str(program.what)] if isinstance(program.what, Path) else ["-m", program.what]
    return [sys.executable, *what, *program.arguments]


def _run_cold(programs: Sequence[Program], outputs: list[list[str]], timeout: float, depend: bool) -> list[int] | None:
    """Run programs from the start of an interpreter."""
    end = time.monotonic() + timeout
    with ExitStack() as stack:
        processes = [
            subprocess.Popen(
                _command(program),
                cwd=program.cwd,
                env=program.env,
                stdout=stack.enter_context(Path(each[0]).open("w")),
                stderr=stack.enter_context(Path(each[1]).open("w")),
            )
            for program, each in zip(programs, outputs, strict=True)
        ]
        try:
            while any(process.poll() is None for process in processes):
                if time.monotonic() > end:
                    return None
                if depend and any(process.poll() for process in processes):
                    break
                time.sleep(0.05)
            for process in processes:
                process.terminate()  # does nothing to one that has ended
            return [process.wait(GRACE) for process in processes]
        except subprocess.TimeoutExpired:
            return None
        finally:
            for process in processes:
                process.kill()
                process.wait()


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

    def run(self, request: dict[str, Any]) -> list[int] | None:
        """Run programs and return their exit codes; ``None`` if they did not end in time."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        with self._lock:
            stdin.write(json.dumps(request) + "\n")
            stdin.flush()
            codes: list[int] | None = json.loads(stdout.readline())
        return codes


def _serve(requests: TextIO, answers: TextIO) -> None:
    for name in PRELOADED:
        __import__(name)
    path = sys.path[1:]  # without the folder of this file
    for line in requests:
        request = json.loads(line)
        children = []
        for program in request["programs"]:
            child = os.fork()
            if child == 0:
                _run(program, path)
            children.append(child)
        answers.write(json.dumps(_wait(children, request["timeout"], request["depend"])) + "\n")
        answers.flush()


def _wait(children: list[int], timeout: float, depend: bool) -> list[int] | None:
    """Wait for all children, and kill them after a time."""
    expired = threading.Event()
    running, codes = set(children), {}

    def kill() -> None:
        expired.set()
        for child in list(running):
            _signal(child, signal.SIGKILL)

    timers = [threading.Timer(timeout, kill)]
    timers[0].start()
    while running:
        child, status = os.wait()
        running.discard(child)
        codes[child] = os.waitstatus_to_exitcode(status)
        if depend and codes[child] and running:
            for other in running:
                _signal(other, signal.SIGTERM)
            timers.append(threading.Timer(GRACE, _kill_all, [set(running)]))
            timers[-1].start()
    for timer in timers:
        timer.cancel()
        timer.join()  # no thread may live when the next child is forked
    return None if expired.is_set() else [codes[child] for child in children]


def _kill_all(children: set[int]) -> None:
    for child in children:
        _signal(child, signal.SIGKILL)


def _signal(child: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        try:
            os.killpg(child, number)
        except ProcessLookupError:  # it has no group of its own yet
            os.kill(child, number)


def _run(program: dict[str, Any], path: list[str]) -> None:
    """Become the process of a program: never returns."""
    code = 1
    try:
        os.setsid()
        os.chdir(program["cwd"])
        os.environ.clear()
        os.environ.update(program["env"])
        # open_clip imports it. Its folder for images would be that of all programs, and is deleted by the first to end.
        for name in [each for each in sys.modules if each.partition(".")[0] == "wandb"]:
            del sys.modules[name]
        what = program["what"]
        first = str(Path(what).parent) if what.endswith(".py") else program["cwd"]
        sys.path[:] = [first, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)), *path]
        sys.argv = [what, *program["arguments"]]
        with Path(os.devnull).open() as nothing:
            os.dup2(nothing.fileno(), 0)
        for number, name in enumerate(program["outputs"], start=1):
            with Path(name).open("w") as output:
                os.dup2(output.fileno(), number)
        if what.endswith(".py"):
            runpy.run_path(what, run_name="__main__")
        else:
            runpy.run_module(what, run_name="__main__", alter_sys=True)
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
