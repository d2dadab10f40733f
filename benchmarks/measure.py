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

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler reports each of its starts on stderr

FORWARD, LIMIT = "plain forward", "limit"
TOP = 12


@dataclass(frozen=True)
class Case:
    """What all contenders of one field are given."""

    model: str
    images: int
    prompts: int

    def __str__(self) -> str:
        return f"{self.model}, images: {self.images}, prompts: {self.prompts}"


@dataclass(frozen=True)
class Contender:
    """Something to be measured.

    Attributes:
        run: does the work once.
        share: seconds of all rounds together that it may take; a slow one takes part in fewer rounds, at least in one.
        weighed: whether its memory is measured, in a run of its own that warms it up as well.
    """

    run: Callable[[], object]
    share: float
    weighed: bool = True


@dataclass(frozen=True)
class Cost:
    """What one contender takes.

    Attributes:
        ratio: its seconds in units of the plain forward of the same round; the median.
        over_limit: the same in units of the limit of the same round.
        seconds: the median.
        rounds: how many rounds it took part in.
        memory: its peak in units of the plain forward's; ``None`` if it was not weighed.
        megabytes: that peak itself.
    """

    ratio: float
    over_limit: float
    seconds: float
    rounds: int
    memory: float | None
    megabytes: float | None


def costs_of(field: Mapping[str, Contender], rounds: int, device: torch.device, label: str) -> dict[str, Cost]:
    """Weigh the contenders, then let them take turns; the plain forward and the limit must take part in every round."""
    peaks: dict[str, int] = {}
    every = dict.fromkeys(field, rounds)  # one round for those whose time is not known
    for name, contender in track(field.items(), f"memory: {label}", transient=True):
        if contender.weighed:
            start = perf_counter()
            peaks[name] = peak_bytes(contender.run, device)
            every[name] = max(1, min(rounds, round(rounds * (perf_counter() - start) / contender.share)))

    taken: dict[str, dict[int, float]] = {name: {} for name in field}  # by round
    turns = [(turn, name) for turn in range(rounds) for name in field if turn % every[name] == 0]
    for turn, name in track(turns, f"time: {label}", transient=True):
        taken[name][turn] = _seconds(field[name].run, device)

    return {
        name: Cost(
            ratio=round(median(time / taken[FORWARD][turn] for turn, time in taken[name].items()), 3),
            over_limit=round(median(time / taken[LIMIT][turn] for turn, time in taken[name].items()), 3),
            seconds=round(median(taken[name].values()), 4),
            rounds=len(taken[name]),
            memory=round(peaks[name] / peaks[FORWARD], 3) if name in peaks else None,
            megabytes=round(peaks[name] / 2**20, 2) if name in peaks else None,
        )
        for name in field
    }


def peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """The most that torch's allocator held at one time during ``run``, above what it held before.

    On a CPU this is the highest sum of all that the profiler saw allocated and freed. Unlike the resident size of a
    process it repeats to the byte; what numpy and the matrix libraries allocate for themselves is not in it.
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
    """Print the operators in which ``run`` spends more time than the plain forward does, the worst first."""
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
    """Calls and milliseconds of each operator by itself, and of the Python code around them all."""
    cuda = device.type == "cuda"
    run()
    start = perf_counter()
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as profiler:
        run()
        whole = (perf_counter() - start) * 1e3
    found = {
        event.key: (event.count, (event.self_device_time_total if cuda else event.self_cpu_time_total) / 1e3)
        for event in profiler.key_averages()
    }
    return found | {"(outside of operators)": (1, whole - sum(milliseconds for _, milliseconds in found.values()))}


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    start = perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter() - start
