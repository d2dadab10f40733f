"""The command line: ``clipcam explain | snapshot | compare | check | rank | report | methods | demo``."""

import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from importlib import import_module
from io import TextIOWrapper
from pathlib import Path

from clipcam_lightning.cli.parser import UsageError, parse_arguments
from clipcam_lightning.errors import ClipCamError

UNUSABLE, INTERRUPTED = 2, 130
BUG = 70  # EX_SOFTWARE of sysexits.h; Python's own 1 would mean an alarm


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: by default those of the process.

    Returns:
        The exit code: 0 no alarm, 1 alarm, 2 the input cannot be used, 130 interrupted, 70 a bug.
    """
    try:
        return _run(arguments)
    except UsageError as error:
        return _report_unusable(f"{error} (see --help)")
    except ClipCamError as error:
        return _report_unusable(str(error))
    except OSError as error:
        return _report_unusable(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception:
        traceback.print_exc()
        return BUG


def _run(arguments: Sequence[str] | None) -> int:
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the shell, as with >&-
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - open until the process ends
        elif isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without the arrow character shows a question mark
    command, options = parse_arguments(arguments)
    if not sys.warnoptions:
        warnings.simplefilter("ignore", FutureWarning)  # addressed to the developers of libraries, not to users
    # Imported here and not at the top: torch takes seconds to import, and --help works without it.
    code: int = import_module(f"clipcam_lightning.cli.{command}").run(options)
    return code


def _report_unusable(message: str) -> int:
    line = "".join(char if char.isprintable() else " " for char in message)
    print(f"clipcam: error: {' '.join(line.split())}", file=sys.stderr)
    return UNUSABLE
