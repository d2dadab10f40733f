"""Write the images of an evaluation to TensorBoard: panels and the contact sheet."""

from collections.abc import Iterator

from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.image.metadata import create_summary_metadata
from torch.utils.tensorboard import SummaryWriter

from clipcam_lightning.monitoring.evaluation import Evaluation, Sink
from clipcam_lightning.sinks.drawing import Drawer
from clipcam_lightning.sinks.tensorboard import escape_markup
from clipcam_lightning.storage.jpeg import encode_jpeg

JPEG_QUALITY = 58  # panels take 30 kB if photographs are full of detail; their text stays clean


class TensorBoardImageSink(Sink):
    """Writes one panel per probe, and the contact sheet, all in one event.

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

    def __str__(self) -> str:
        return "TensorBoard"

    def write(self, evaluation: Evaluation) -> None:
        """Write all images at the step of the evaluation and flush."""
        summary = Summary(value=list(self._values(evaluation)))
        self.writer._get_file_writer().add_summary(summary, evaluation.report.step)
        self.writer.flush()

    def _values(self, evaluation: Evaluation) -> Iterator[Summary.Value]:
        drawings = self.draw(evaluation)
        for panel in drawings.panels:
            yield _image_value(f"{self.root}_maps/{panel.name}", panel.image, escape_markup(panel.prompt))
        yield _image_value(
            f"{self.root}_contact_sheet/all_probes",
            drawings.logged_sheet,
            "One row per probe, one column per evaluation.",
        )


def _image_value(tag: str, image: Image.Image, description: str) -> Summary.Value:
    encoded = encode_jpeg(image, JPEG_QUALITY)
    # SummaryWriter.add_image supports neither JPEG nor a description.
    metadata = create_summary_metadata(display_name=tag, description=description)
    content = Summary.Image(height=image.height, width=image.width, colorspace=3, encoded_image_string=encoded)
    return Summary.Value(tag=tag, metadata=metadata, image=content)
