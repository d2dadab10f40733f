"""Write to the terminal: tables to standard output, progress and warnings to standard error."""

import os
import sys
from collections.abc import Mapping
from textwrap import fill

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

PIPE_WIDTH = 160  # columns of an output that is no terminal
TEXT_WIDTH = 100  # columns of a text; longer lines are hard to read


class Output(Console):
    """Standard output, on which text is data: no markup, no emoji codes."""

    def __init__(self) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)

    def explain(self, meanings: Mapping[str, str]) -> None:
        """Print what the columns of a table mean, one item per column.

        Args:
            meanings: by the column's name; one without meaning is left out.
        """
        width = min(self.width, TEXT_WIDTH)
        for name, meaning in meanings.items():
            if meaning:
                self.print(fill(f"{name}: {meaning}", width, subsequent_indent="  "), style="dim", soft_wrap=True)

    def on_broken_pipe(self) -> None:
        """Discard what follows: a reader that closes the pipe (``| head``) must not change the exit code."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def show_progress(*, time_left: bool = False) -> Progress:
    """Show one bar per task on standard error while the returned context lasts; nothing if that is no terminal.

    Args:
        time_left: show the estimated time left instead of the time that has passed.
    """
    console = Console(stderr=True)
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TimeRemainingColumn() if time_left else TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def warn(message: str) -> None:
    """Print a warning to standard error."""
    print(f"clipcam: warning: {sanitize(message)}", file=sys.stderr)


def sanitize(text: str) -> str:
    """Put a text on one line and replace control characters, which a terminal would obey."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())
