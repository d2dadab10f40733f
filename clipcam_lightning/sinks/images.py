"""Write an evaluation as images: panels and contact sheet for TensorBoard; the contact sheet and a report as files."""

import io
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.image.metadata import create_summary_metadata
from torch.utils.tensorboard import SummaryWriter

from clipcam_lightning.monitoring.evaluation import Evaluation, Sink
from clipcam_lightning.sinks.tensorboard import escape_markup
from clipcam_lightning.storage.atomic import write_atomically
from clipcam_lightning.storage.jpeg import encode_jpeg
from clipcam_lightning.visualization.contact_sheet import contact_sheet
from clipcam_lightning.visualization.panels import probe_panel
from clipcam_lightning.visualization.report import html_report

CONTACT_SHEET, REPORT = "contact_sheet.png", "report.html"
JPEG_QUALITY, BOARD_COLUMNS = 70, 6  # 33 and 23 kB per probe and evaluation if photographs are full of detail
PNG_LEVEL = 1  # 12 % larger than level 6, in 25 % of the time


class ImageSink(Sink):
    """Draws panels of the first probes in the order of the report, the contact sheet, and the report of an alarm.

    TensorBoard gets a narrower sheet than the file, because an event file keeps the sheet of every evaluation: with all
    columns the sheets would take more room than the panels.

    Args:
        folder: for ``contact_sheet.png`` and, from the first alarm on, ``report.html``; created when the first
            evaluation is written.
        writers: one per ``TensorBoardLogger``.
        root: first word of every tag.
        num_images: probes with a panel per evaluation, flagged ones first.
    """

    def __init__(self, folder: Path, writers: Sequence[SummaryWriter], root: str, num_images: int) -> None:
        self.folder = folder
        self.writers = writers
        self.root = root
        self.num_images = num_images

    def write(self, evaluation: Evaluation) -> None:
        """Write the files, then all images at the step of the evaluation to every writer.

        Raises:
            Exception: one of them could not be written; the others are.
        """
        with ExitStack() as stack:  # calls all that it holds, even if one of them raises
            stack.callback(self._write_sheet, evaluation)
            stack.callback(self._write_report, evaluation)
            if self.writers:
                summary = Summary(value=list(self._draw(evaluation)))
                for writer in self.writers:
                    stack.callback(_log, writer, summary, evaluation.report.step)

    def _write_sheet(self, evaluation: Evaluation) -> None:
        file = io.BytesIO()
        sheet = contact_sheet(
            evaluation.pixels, evaluation.snapshot.prompts, evaluation.history, evaluation.report.flagged_first
        )
        sheet.save(file, "PNG", compress_level=PNG_LEVEL)
        write_atomically(self.folder / CONTACT_SHEET, file.getvalue())

    def _write_report(self, evaluation: Evaluation) -> None:
        """Write the report of an alarm; a first evaluation removes that of another run."""
        file = self.folder / REPORT
        if evaluation.report.alarm:
            page = html_report(evaluation.baseline, evaluation.snapshot, evaluation.report)
            write_atomically(file, page.encode())
        elif evaluation.history[-1].number == 0:
            file.unlink(missing_ok=True)

    def _draw(self, evaluation: Evaluation) -> Iterator[Summary.Value]:
        report, order = evaluation.report, evaluation.report.flagged_first
        for i in order[: self.num_images]:
            probe = report.probes[i]
            panel = probe_panel(
                evaluation.pixels[i],
                evaluation.baseline.maps[i],
                evaluation.snapshot.maps[i],
                probe,
                steps=(report.baseline_step, report.step),
                mask=evaluation.masks[i],
            )
            # A scalar and an image must not share a tag.
            name = f"{probe.name}-probe" if probe.name in evaluation.metrics else probe.name
            yield _image_value(f"{self.root}/{name}", panel, escape_markup(probe.prompt))
        sheet = contact_sheet(evaluation.pixels, evaluation.snapshot.prompts, evaluation.history, order, BOARD_COLUMNS)
        yield _image_value(
            f"{self.root}_contact_sheet/all_probes", sheet, "One row per probe, one column per evaluation."
        )


def _image_value(tag: str, image: Image.Image, description: str) -> Summary.Value:
    encoded = encode_jpeg(image, JPEG_QUALITY)
    # SummaryWriter.add_image supports neither JPEG nor a description.
    metadata = create_summary_metadata(display_name=tag, description=description)
    content = Summary.Image(height=image.height, width=image.width, colorspace=3, encoded_image_string=encoded)
    return Summary.Value(tag=tag, metadata=metadata, image=content)


def _log(writer: SummaryWriter, summary: Summary, step: int) -> None:
    writer._get_file_writer().add_summary(summary, step)
    writer.flush()
