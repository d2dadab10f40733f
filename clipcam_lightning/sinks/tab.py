"""A look as data for the CLIP CAM tab of TensorBoard."""

import numpy as np
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from clipcam_lightning import tab_events as events
from clipcam_lightning.drift import ProbeDrift
from clipcam_lightning.jpeg import as_jpeg
from clipcam_lightning.look import Look, Sink

PICTURE_SIDE, PICTURE_QUALITY = 192, 70  # 7 kB where photographs are full of detail


class TabSink(Sink):
    """Writes each look as one event of raw maps and figures, which TensorBoard's other tabs do not see.

    Args:
        writer: ``TensorBoardLogger.experiment``.
        root: first word of every tag; two callbacks in one run need two.
    """

    def __init__(self, writer: SummaryWriter, root: str) -> None:
        self.writer = writer
        self.root = root
        self._written: list[Tensor] = []  # maps a later look may be compared with: the baseline and the newest
        self._foreign: Tensor | None = None  # the baseline that was written last

    def write(self, look: Look) -> None:
        """Write one event at the look's step and flush."""
        baseline, first = look.baseline.maps, not self._written
        is_new = not any(baseline is known for known in [look.snapshot.maps, *self._written])
        foreign = baseline if is_new else self._foreign
        maps, scale = events.scaled(look.snapshot.maps.numpy())
        notes = sorted({_note(probe) for probe in look.report.probes} - {""})
        table = np.array([[*_figures(probe), _index(notes, probe)] for probe in look.report.probes], np.float32)
        described = {**_described(look), "foreign": baseline is foreign, "notes": notes}
        values = [
            events.json_value(self._tag(events.LOOK), described),
            events.array_value(self._tag(events.FIGURES_TAG), np.column_stack([table, scale])),
        ]
        if first:
            values.append(events.json_value(self._tag(events.PROBES), _probes(look)))
            values += [
                events.picture_value(self._tag(events.PICTURE, name), _picture(pixels))
                for name, pixels in zip(look.snapshot.names, look.pixels, strict=True)
            ]
        if is_new:
            values.append(events.array_value(self._tag(events.BASELINE), baseline.numpy()))
        values += [
            events.array_value(self._tag(events.MAP, name), map_)
            for name, map_ in zip(look.snapshot.names, maps, strict=True)
        ]
        # The writer's own add_tensor names neither plugin nor data class.
        self.writer._get_file_writer().add_summary(Summary(value=values), look.snapshot.info.step)
        self.writer.flush()
        self._written, self._foreign = [baseline, look.snapshot.maps], foreign

    def _tag(self, kind: str, probe: str = "") -> str:
        return events.tag(self.root, kind, probe)


def _described(look: Look) -> dict[str, object]:
    info = look.snapshot.info
    return {
        "epoch": info.epoch,
        "baseline_step": look.baseline.info.step,
        "alarmed": look.report.alarmed,
        "digest": info.digest,
        "method": info.method,
        "target": info.target,
        "layers": list(info.layers),
        "grid": list(look.snapshot.maps.shape[1:]),
    }


def _probes(look: Look) -> dict[str, object]:
    snapshot = look.snapshot
    return {
        "digest": snapshot.info.digest,
        "names": list(snapshot.names),
        "prompts": list(snapshot.prompts),
        "digests": list(look.digests),
        "rule": str(look.report.rule),
    }


def _figures(probe: ProbeDrift) -> list[float]:
    """All but the last two of ``FIGURES``."""
    known = {**vars(probe), "alarm": float(probe.alarm), "drift": np.nan if probe.blind else probe.drift}
    return [known[name] for name in events.FIGURES[:-2]]


def _note(probe: ProbeDrift) -> str:
    return probe.reason or (probe.degenerate and f"its map or that of its baseline is {probe.degenerate}")


def _index(notes: list[str], probe: ProbeDrift) -> int:
    return notes.index(_note(probe)) if _note(probe) else -1


def _picture(pixels: Tensor) -> bytes:
    image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    image.thumbnail((PICTURE_SIDE, PICTURE_SIDE), Image.Resampling.BICUBIC)
    return as_jpeg(image, PICTURE_QUALITY)
