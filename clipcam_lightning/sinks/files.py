"""Snapshots and the contact sheet as files."""

import io
from pathlib import Path

from clipcam_lightning.monitor import Look
from clipcam_lightning.render import contact_sheet
from clipcam_lightning.tensorfile import write_atomically

CONTACT_SHEET = "contact_sheet.png"


class FileSink:
    """Keeps every look's snapshot and the newest contact sheet in ``folder``.

    Args:
        folder: made when the first look is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, look: Look) -> None:
        """Write ``step-<n>.safetensors`` and ``contact_sheet.png``."""
        look.snapshot.save(self.folder / f"step-{look.snapshot.info.step:08d}.safetensors")
        picture = io.BytesIO()
        contact_sheet(look.pixels, look.snapshot.prompts, look.history).save(picture, "PNG", optimize=False)
        write_atomically(self.folder / CONTACT_SHEET, picture.getvalue())
