"""Snapshots, their history and the contact sheet as files."""

import io
import json
from pathlib import Path

from clipcam_lightning.monitor import Look
from clipcam_lightning.render import contact_sheet
from clipcam_lightning.report import report_as_json
from clipcam_lightning.tensorfile import append_line, write_atomically

CONTACT_SHEET, HISTORY = "contact_sheet.png", "history.jsonl"


class FileSink:
    """Keeps every look's snapshot, a history of all figures, and the newest contact sheet in ``folder``.

    The history has one JSON object a line and look. A run that begins begins it anew; a resumed one goes on in the same
    file: of two lines with one ``step`` the later counts.

    Args:
        folder: made when the first look is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, look: Look) -> None:
        """Write ``step-<n>.safetensors``, a line of ``history.jsonl`` and ``contact_sheet.png``."""
        info = look.snapshot.info
        if look.history[-1].look == 0:  # of another run, whose lines are none of this one's, whatever can be written of it
            (self.folder / HISTORY).unlink(missing_ok=True)
        look.snapshot.save(self.folder / f"step-{info.step:08d}.safetensors")
        line = {"epoch": info.epoch, "metrics": dict(look.metrics), **report_as_json(look.report)}
        append_line(self.folder / HISTORY, json.dumps(line))
        picture = io.BytesIO()
        contact_sheet(look.pixels, look.snapshot.prompts, look.history).save(picture, "PNG", optimize=False)
        write_atomically(self.folder / CONTACT_SHEET, picture.getvalue())
