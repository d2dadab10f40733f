"""The shell: ``clipcam explain | snapshot | compare | check | demo``."""

import sys
import traceback
import warnings
from collections.abc import Sequence
from importlib import import_module
from io import TextIOWrapper

from clipcam_lightning.cli.parser import UsageError, parsed
from clipcam_lightning.errors import ClipCamError

UNUSABLE, INTERRUPTED = 2, 130
BUG = 70  # EX_SOFTWARE of sysexits.h; Python's own 1 would say that attention drifted


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: by default those of the process.

    Returns:
        0 passed, 1 attention drifted, 2 the input cannot be used, 130 interrupted, 70 an error of this program.
    """
    try:
        return _run(arguments)
    except UsageError as error:
        return _failed(f"{error} (--help tells more)")
    except ClipCamError as error:
        return _failed(str(error))
    except OSError as error:
        return _failed(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception:
        traceback.print_exc()
        return BUG


def _run(arguments: Sequence[str] | None) -> int:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that does not know an arrow shows a question mark
    command, options = parsed(arguments)
    if not sys.warnoptions:
        warnings.simplefilter("ignore", FutureWarning)  # what libraries tell their developers
    # Not at the top: torch takes seconds to import, and help need not wait for it.
    code: int = import_module(f"clipcam_lightning.cli.{command}").run(options)
    return code


def _failed(message: str) -> int:
    line = "".join(char if char.isprintable() else " " for char in message)
    print(f"clipcam: error: {' '.join(line.split())}", file=sys.stderr)
    return UNUSABLE
