"""Give every run a folder of its own, which a resumed run finds again."""

import json
import re
from datetime import datetime, timezone
from fnmatch import fnmatch
from itertools import count
from pathlib import Path
from threading import Lock

from upath import UPath

from clipcam_lightning.cam.urls import store_errors
from clipcam_lightning.storage.atomic import write_new
from clipcam_lightning.storage.paths import as_path, is_remote
from clipcam_lightning.storage.reading import is_folder, read_bytes

RUN, HISTORY, BASELINE = "run.json", "history.jsonl", "baseline.safetensors"
CONTACT_SHEET, REPORT, SNAPSHOTS = "contact_sheet.png", "report.html", "step-*.safetensors"
FILES_OF_A_RUN = (RUN, HISTORY, BASELINE, CONTACT_SHEET, REPORT, SNAPSHOTS)


def name_snapshot(step: int) -> str:
    """Name the file of the snapshot at a step."""
    return f"step-{step:08d}.safetensors"


class RunFolder:
    """The folder of one run: ``base``, or a numbered folder in it where ``base`` holds the files of another run.

    It is chosen when :attr:`path` is first asked for, and claimed by a file ``run.json`` that holds the run's id. Of
    several runs that begin at the same time each gets a folder of its own.

    Args:
        base: where the user wants the files.
        run_id: of the run; a resumed run has the id of the run that it goes on with.
    """

    def __init__(self, base: UPath, run_id: str) -> None:
        self.base = base if is_remote(base) else as_path(Path(str(base)).absolute())  # a training may change its folder
        self.run_id = run_id
        self._path: UPath | None = None
        self._lock = Lock()

    @property
    def claimed(self) -> str | None:
        """The folder as text; ``None`` if none was claimed yet."""
        return None if self._path is None else str(self._path)

    @property
    def note(self) -> str:
        """What to say of a folder that was claimed elsewhere than at ``base``; empty if it was not."""
        if self.claimed in (None, str(self.base)):
            return ""
        return f"{self.base} holds the files of another run or callback; those of this one are in {self.claimed}"

    @property
    def path(self) -> UPath:
        """The folder.

        Raises:
            OSError: the folder cannot be read or made; the next access tries again.
        """
        with self._lock:
            if self._path is None:
                self._path = _claim(self.base, self.run_id)
            return self._path


def _claim(base: UPath, run_id: str) -> UPath:
    """Find the folder that a run has already, or claim the first one that holds no files of a run."""
    numbered = _numbered(base)
    for folder in (base, *numbered):
        if _id_in(folder) == run_id:
            return folder
    taken = {folder.name for folder in numbered}
    content = {"run": run_id, "started": datetime.now(timezone.utc).isoformat(timespec="seconds")}
    for number in count(1):
        folder = base if number == 1 else base / f"run_{number}"
        if folder.name in taken or _holds_files(folder):
            continue
        # Where it is not new, a run that began at the same time was faster, or the answer to a first try was lost.
        if write_new(folder / RUN, json.dumps(content).encode()) or _id_in(folder) == run_id:
            return folder
    raise AssertionError("count() does not end")


def _numbered(base: UPath) -> list[UPath]:
    return sorted(folder for folder in list_folder(base) if re.fullmatch(r"run_\d+", folder.name))


def is_file_of_a_run(name: str) -> bool:
    """Check whether a file has a name that the callback gives to the files of a run."""
    return any(fnmatch(name, pattern) for pattern in FILES_OF_A_RUN)


def _holds_files(folder: UPath) -> bool:
    try:
        return any(is_file_of_a_run(file.name) for file in list_folder(folder))
    except PermissionError:  # it is somebody else's
        return True


def _id_in(folder: UPath) -> str | None:
    """Read the id of the run whose files a folder holds; ``None`` if there is none, or it cannot be made out."""
    try:
        return str(json.loads(read_bytes(folder / RUN))["run"])
    except (FileNotFoundError, NotADirectoryError, PermissionError, ValueError, KeyError, TypeError):
        return None


def list_folder(folder: UPath) -> list[UPath]:
    """List what is in a folder now; nothing if there is no such folder."""
    if not is_folder(folder):
        return []
    if not is_remote(folder):
        return list(folder.iterdir())
    with store_errors(folder):
        folder.fs.invalidate_cache(folder.path)
        return list(folder.iterdir())
