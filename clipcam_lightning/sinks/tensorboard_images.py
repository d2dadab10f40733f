"""Write the images of an evaluation to TensorBoard: panels and the contact sheet."""

from collections.abc import Sequence

from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.image.metadata import create_summary_metadata
from torch.utils.tensorboard import SummaryWriter

from clipcam_lightning.monitoring.evaluation import Evaluation, Sink
from clipcam_lightning.sinks.drawing import Drawer, Drawings
from clipcam_lightning.sinks.tensorboard import escape_markup
from clipcam_lightning.storage.jpeg import encode_jpeg

JPEG_QUALITY = 48  # panels take 25 kB if photographs are full of detail; their text stays clean


class TensorBoardImageSink(Sink):
    """Writes one panel per probe and, if it is due, the contact sheet, all in one event.

    Their tags come after those of the metrics in the alphabet, so that the page of all charts begins with the metrics.

    Args:
        writer: ``TensorBoardLogger.experiment``.
        root: first word of every tag.
        draw: draws the images of an evaluation.
    """

    def __init__(self, writer: SummaryWriter, root: str, draw: Drawer) -> None:
        self.writer = writer
        self.root = root
        self.draw = draw
        self._without_sheet: Evaluation | None = None

    def __str__(self) -> str:
        return "TensorBoard"

    def write(self, evaluation: Evaluation) -> None:
        """Write the images at the step of the evaluation and flush."""
        drawings = self.draw(evaluation)
        values = [
            _image_value(f"{self.root}_maps/{panel.name}", panel.image, escape_markup(panel.prompt))
            for panel in drawings.panels
        ]
        is_due = drawings.is_sheet_due
        self._without_sheet = None if is_due else evaluation
        self._add(values + [self._sheet_value(drawings)] * is_due, evaluation)

    def close(self) -> None:
        """Write the contact sheet of the last evaluation, if it was not due."""
        last, self._without_sheet = self._without_sheet, None
        if last is not None and self.writer.all_writers is not None:  # a closed writer would begin another file
            self._add([self._sheet_value(self.draw(last))], last)

    def _add(self, values: Sequence[Summary.Value], evaluation: Evaluation) -> None:
        self.writer._get_file_writer().add_summary(Summary(value=values), evaluation.report.step)
        self.writer.flush()

    def _sheet_value(self, drawings: Drawings) -> Summary.Value:
        tag, description = f"{self.root}_contact_sheet/all_probes", "One row per probe, one column per evaluation."
        return _image_value(tag, drawings.logged_sheet, description)


def _image_value(tag: str, image: Image.Image, description: str) -> Summary.Value:
    encoded = encode_jpeg(image, JPEG_QUALITY)
    # SummaryWriter.add_image supports neither JPEG nor a description.
    metadata = create_summary_metadata(display_name=tag, description=description)
    content = Summary.Image(height=image.height, width=image.width, colorspace=3, encoded_image_string=encoded)
    return Summary.Value(tag=tag, metadata=metadata, image=content)
