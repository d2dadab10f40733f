"""What is said to people: tables on standard output, progress and warnings on standard error."""

import os
import sys

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

PIPE_WIDTH = 160  # columns where nobody's window says


class Output(Console):
    """Standard output. What is printed is data: no markup, no emoji codes, no control characters."""

    def __init__(self) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)

    def on_broken_pipe(self) -> None:
        """A reader that has seen enough (``| head``) does not change what the command found."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def progress() -> Progress:
    """A bar a task, gone when all is done; nothing at all where standard error is no terminal."""
    console = Console(stderr=True)
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def warn(message: str) -> None:
    """Say on standard error what is no reason to stop."""
    print(f"clipcam: warning: {plain(message)}", file=sys.stderr)


def plain(text: str) -> str:
    """Text on one line, without what a terminal would obey."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())
