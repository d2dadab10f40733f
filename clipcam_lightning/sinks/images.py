"""A look as pictures: panels and contact sheet for TensorBoard, the contact sheet as a file."""

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.image.metadata import create_summary_metadata
from torch.utils.tensorboard import SummaryWriter

from clipcam_lightning.monitoring.evaluation import Evaluation, Sink
from clipcam_lightning.sinks.tensorboard import escaped
from clipcam_lightning.storage.atomic import write_atomically
from clipcam_lightning.storage.jpeg import encode_jpeg
from clipcam_lightning.visualization.panels import contact_sheet, probe_panel

CONTACT_SHEET = "contact_sheet.png"
JPEG_QUALITY, BOARD_COLUMNS = 70, 6  # 33 and 23 kB a probe and look where photographs are full of detail
PNG_LEVEL = 1  # 12 % larger than level 6, in a quarter of the time


class ImageSink(Sink):
    """Draws panels of the probes that drifted furthest, and the contact sheet.

    TensorBoard gets a narrower sheet than the file, since an event file keeps every one: all columns would take more
    room than the panels do.

    Args:
        folder: where ``contact_sheet.png`` goes; made when the first look is written.
        writers: of every ``TensorBoardLogger``.
        root: first word of every tag.
        num_pictures: how many probes have a panel at each look, those that break the rule before the others.
    """

    def __init__(self, folder: Path, writers: Sequence[SummaryWriter], root: str, num_images: int) -> None:
        self.folder = folder
        self.writers = writers
        self.root = root
        self.num_images = num_images

    def write(self, evaluation: Evaluation) -> None:
        """Write all pictures at the look's step and flush once."""
        try:
            if self.writers:
                self._write_to_boards(evaluation)
        finally:  # a full disk may have room for the one or the other
            self._write_file(evaluation)

    def _write_file(self, evaluation: Evaluation) -> None:
        picture = io.BytesIO()
        sheet = contact_sheet(evaluation.pixels, evaluation.snapshot.prompts, evaluation.history)
        sheet.save(picture, "PNG", compress_level=PNG_LEVEL)
        write_atomically(self.folder / CONTACT_SHEET, picture.getvalue())

    def _write_to_boards(self, evaluation: Evaluation) -> None:
        steps = evaluation.baseline.info.step, evaluation.snapshot.info.step
        for i in sorted(evaluation.report.flagged_first[: self.num_images]):
            probe = evaluation.report.probes[i]
            panel = probe_panel(
                evaluation.pixels[i],
                evaluation.baseline.maps[i],
                evaluation.snapshot.maps[i],
                probe,
                steps=steps,
                mask=evaluation.masks[i],
            )
            name = f"{probe.name}-probe" if probe.name in evaluation.metrics else probe.name  # one tag is of one kind
            self._add(f"{self.root}/{name}", panel, escaped(probe.prompt), steps[1])
        sheet = contact_sheet(evaluation.pixels, evaluation.snapshot.prompts, evaluation.history, BOARD_COLUMNS)
        self._add(f"{self.root}_contact_sheet/all_probes", sheet, "Probes down, looks so far across.", steps[1])
        for writer in self.writers:
            writer.flush()

    def _add(self, tag: str, image: Image.Image, description: str, step: int) -> None:
        encoded = encode_jpeg(image, JPEG_QUALITY)
        picture = Summary.Image(height=image.height, width=image.width, colorspace=3, encoded_image_string=encoded)
        # The writer's own add_image knows neither JPEG nor a description.
        metadata = create_summary_metadata(display_name=tag, description=description)
        summary = Summary(value=[Summary.Value(tag=tag, metadata=metadata, image=picture)])
        for writer in self.writers:
            writer._get_file_writer().add_summary(summary, step)
