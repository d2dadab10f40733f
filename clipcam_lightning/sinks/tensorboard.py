"""A look as TensorBoard shows it: panels, contact sheet, scalars, a table of the probes."""

import math
import re

from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.image.metadata import create_summary_metadata
from torch.utils.tensorboard import SummaryWriter

from clipcam_lightning.drift import ProbeDrift
from clipcam_lightning.jpeg import as_jpeg
from clipcam_lightning.monitor import Look
from clipcam_lightning.render import contact_sheet, probe_panel

JPEG_QUALITY = 90  # 20 kB a panel; as PNG it is 150


class TensorBoardSink:
    """Writes through the logger's own writer: a second event file in a run hides the first from TensorBoard.

    Args:
        writer: ``TensorBoardLogger.experiment``.
        root: first word of every tag; two callbacks in one run need two.
    """

    def __init__(self, writer: SummaryWriter, root: str = "clipcam") -> None:
        self.writer = writer
        self.root = root
        self._has_table = False

    def write(self, look: Look) -> None:
        """Write everything at the look's step and flush once."""
        step = look.snapshot.info.step
        for metric, value in look.metrics.items():
            self._scalar(f"{self.root}/{metric}", value, step)
        for probe in look.report.probes:
            self._scalar(f"{self.root}_drift/{probe.name}", probe.drift, step)
            self._scalar(f"{self.root}_similarity/{probe.name}", probe.similarity, step)
            self._scalar(f"{self.root}_energy_inside_mask/{probe.name}", probe.energy_inside_mask, step)
        if not self._has_table:
            self.writer.add_text(f"{self.root}/probes", probe_table(look), step)
            self._has_table = True
        steps = (look.baseline.info.step, step)
        for i, probe in enumerate(look.report.probes):
            panel = probe_panel(
                look.pixels[i], look.baseline.maps[i], look.snapshot.maps[i], probe, steps=steps, mask=look.masks[i]
            )
            name = f"{probe.name}-probe" if probe.name in look.metrics else probe.name  # one tag is of one kind
            self._image(f"{self.root}/{name}", panel, escaped(probe.prompt), step)
        sheet = contact_sheet(look.pixels, look.snapshot.prompts, look.history)
        self._image(f"{self.root}_contact_sheet/all_probes", sheet, "Probes down, looks so far across.", step)
        self.writer.flush()

    def _scalar(self, tag: str, value: float, step: int) -> None:
        if math.isfinite(value):
            self.writer.add_scalar(tag, value, step)

    def _image(self, tag: str, image: Image.Image, description: str, step: int) -> None:
        encoded = as_jpeg(image, JPEG_QUALITY)
        picture = Summary.Image(height=image.height, width=image.width, colorspace=3, encoded_image_string=encoded)
        # The writer's own add_image knows neither JPEG nor a description.
        metadata = create_summary_metadata(display_name=tag, description=description)
        value = Summary.Value(tag=tag, metadata=metadata, image=picture)
        self.writer._get_file_writer().add_summary(Summary(value=[value]), step)


def probe_table(look: Look) -> str:
    """Markdown: one row a probe, with how the maps are made above it."""
    info = look.snapshot.info
    lines = [
        f"method **{escaped(info.method)}**, target **{escaped(info.target)}**, "
        f"layer **{escaped(', '.join(info.layers))}**, alarm: {escaped(str(look.report.rule))}",
        "",
        "| probe | prompt | object mask |",
        "| --- | --- | --- |",
    ]
    masks = zip(look.report.probes, look.masks, strict=True)
    return "\n".join(lines + [_row(probe, mask is not None) for probe, mask in masks])


def escaped(text: str) -> str:
    """Text as markdown and HTML that shows exactly this text: all but letters, digits and blanks as entities.

    Control characters and half surrogate pairs are blanks: an entity of theirs would show another character.
    """
    text = re.sub(r"[\0-\x1f\x7f-\x9f\ud800-\udfff]", " ", text)
    return re.sub(r"[^\w ]|_", lambda match: f"&#{ord(match[0])};", " ".join(text.split()))


def _row(probe: ProbeDrift, has_mask: bool) -> str:
    return f"| {escaped(probe.name)} | {escaped(probe.prompt)} | {'yes' if has_mask else 'no'} |"
