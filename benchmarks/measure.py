"""Time and peak memory of contenders that take turns, in units of one plain forward of the image tower."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from statistics import median
from time import perf_counter

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler would report each start on stderr

FORWARD, LIMIT = "plain forward", "limit"
TOP = 12


@dataclass(frozen=True)
class Case:
    """The input that all contenders of one field get."""

    model: str
    images: int
    prompts: int

    def __str__(self) -> str:
        return f"{self.model}, images: {self.images}, prompts: {self.prompts}"


@dataclass(frozen=True)
class Contender:
    """A function whose time and memory are measured.

    Attributes:
        run: does the work once.
        share: seconds it may take in all rounds together; a slow contender runs in fewer rounds, at least in one.
        weighed: whether its memory is measured, in a separate run that warms it up as well.
    """

    run: Callable[[], object]
    share: float
    weighed: bool = True


@dataclass(frozen=True)
class Cost:
    """Time and memory of one contender.

    Attributes:
        ratio: seconds in units of the plain forward of the same round; the median.
        over_limit: seconds in units of the limit of the same round; the median.
        seconds: the median.
        rounds: in how many it was measured.
        memory: peak memory in units of that of the plain forward; ``None`` if it was not measured.
        megabytes: peak memory.
    """

    ratio: float
    over_limit: float
    seconds: float
    rounds: int
    memory: float | None
    megabytes: float | None


def costs_of(field: Mapping[str, Contender], rounds: int, device: torch.device, label: str) -> dict[str, Cost]:
    """Measure the memory of the contenders, then their time, in turns.

    Args:
        field: contenders by name, among them ``FORWARD`` and ``LIMIT`` with an infinite share.
        rounds: turns of each contender.
        device: of the model.
        label: for the progress bar.
    """
    peaks: dict[str, int] = {}
    every = dict.fromkeys(field, rounds)  # by default one round: its time is unknown unless it is weighed
    for name, contender in track(field.items(), f"memory: {label}", transient=True):
        if contender.weighed:
            start = perf_counter()
            peaks[name] = peak_bytes(contender.run, device)
            every[name] = max(1, min(rounds, round(rounds * (perf_counter() - start) / contender.share)))

    seconds: dict[str, dict[int, float]] = {name: {} for name in field}  # by round
    turns = [(turn, name) for turn in range(rounds) for name in field if turn % every[name] == 0]
    for turn, name in track(turns, f"time: {label}", transient=True):
        seconds[name][turn] = seconds_of(field[name].run, device)

    return {
        name: Cost(
            ratio=round(median(time / seconds[FORWARD][turn] for turn, time in seconds[name].items()), 3),
            over_limit=round(median(time / seconds[LIMIT][turn] for turn, time in seconds[name].items()), 3),
            seconds=round(median(seconds[name].values()), 4),
            rounds=len(seconds[name]),
            memory=round(peaks[name] / peaks[FORWARD], 3) if name in peaks else None,
            megabytes=round(peaks[name] / 2**20, 2) if name in peaks else None,
        )
        for name in field
    }


def peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """Measure the peak memory of torch's allocator during ``run``, above what was allocated before.

    On a CPU this is the highest sum of the profiler's allocations and deallocations. Unlike the resident size of a
    process it is reproducible to the byte; memory of numpy and of the matrix libraries is not included.

    Args:
        run: what to measure.
        device: where it allocates.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    assert profiler.profiler is not None  # it has run
    events = profiler.profiler.kineto_results.events()
    steps = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    return max(accumulate(step for _, step in steps), default=0)


def print_profile(
    console: Console, title: str, run: Callable[[], object], forward: Callable[[], object], device: torch.device
) -> None:
    """Print the operators in which ``run`` spends more time than the plain forward, the slowest first.

    Args:
        console: where to print.
        title: of the table.
        run: what to profile.
        forward: the plain forward.
        device: of the model.
    """
    own, plain = _operators(run, device), _operators(forward, device)
    whole = sum(milliseconds for _, milliseconds in plain.values())
    table = Table(title=f"{title}: where the time goes beyond the plain forward")
    table.add_column("operator")
    for column in ("calls", "ms", "calls in forward", "ms in forward", "excess in forwards"):
        table.add_column(column, justify="right")
    excess = {name: milliseconds - plain.get(name, (0, 0.0))[1] for name, (_, milliseconds) in own.items()}
    for name in sorted(excess, key=lambda name: -excess[name])[:TOP]:
        calls, milliseconds = own[name]
        calls_before, before = plain.get(name, (0, 0.0))
        cells = (calls, f"{milliseconds:.1f}", calls_before, f"{before:.1f}", f"{excess[name] / whole:+.3f}")
        table.add_row(name, *map(str, cells))
    console.print(table)


def _operators(run: Callable[[], object], device: torch.device) -> dict[str, tuple[int, float]]:
    """Count calls and milliseconds of each operator by itself, and of the Python code around them."""
    cuda = device.type == "cuda"
    run()
    start = perf_counter()
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as profiler:
        run()
        whole = (perf_counter() - start) * 1e3
    operators = {
        event.key: (event.count, (event.self_device_time_total if cuda else event.self_cpu_time_total) / 1e3)
        for event in profiler.key_averages()
    }
    outside = whole - sum(milliseconds for _, milliseconds in operators.values())
    return operators | {"(outside of operators)": (1, outside)}


def seconds_of(run: Callable[[], object], device: torch.device) -> float:
    start = perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter() - start
