"""A look as data for the CLIP CAM tab of TensorBoard."""

import hashlib

import numpy as np
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from clipcam_lightning.drift.compare import ProbeDrift
from clipcam_lightning.monitoring.evaluation import Look, Sink
from clipcam_lightning.storage.jpeg import as_jpeg
from clipcam_lightning.tensorboard_tab import events

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
        # Maps by which a baseline is known again, itself and not by its values: those that were written last.
        self._baseline: Tensor | None = None
        self._newest: Tensor | None = None

    def write(self, look: Look) -> None:
        """Write one event at the look's step and flush."""
        snapshot, baseline, first = look.snapshot, look.baseline.maps, self._newest is None
        values = []
        if first:
            values.append(events.json_value(self._tag(events.PROBES), _probes(look)))
            values += [
                events.picture_value(self._tag(events.PICTURE, name), _picture(pixels))
                for name, pixels in zip(snapshot.names, look.pixels, strict=True)
            ]
        stored = self._baseline
        if first or not any(baseline is known for known in (self._baseline, self._newest)):
            values.append(events.array_value(self._tag(events.BASELINE), baseline.numpy()))
            stored = baseline
        maps, scale = events.scaled(snapshot.maps.numpy())
        values += [
            events.array_value(self._tag(events.MAP, name), map_)
            for name, map_ in zip(snapshot.names, maps, strict=True)
        ]
        notes = sorted({_note(probe) for probe in look.report.probes} - {""})
        table = np.array([[*_figures(probe), _index(notes, probe)] for probe in look.report.probes], np.float32)
        values.append(events.array_value(self._tag(events.FIGURES_TAG), np.column_stack([table, scale])))
        told = {**_described(look), "stored_baseline": baseline is stored, "notes": notes}
        values.append(events.json_value(self._tag(events.LOOK), told))  # last: who finds it finds the rest
        # The writer's own add_tensor names neither plugin nor data class.
        self.writer._get_file_writer().add_summary(Summary(value=values), snapshot.info.step)
        self.writer.flush()
        self._baseline, self._newest = stored, snapshot.maps

    def _tag(self, kind: str, probe: str = "") -> str:
        return events.tag(self.root, kind, probe)


def _described(look: Look) -> dict[str, object]:
    info = look.snapshot.info
    return {
        "epoch": info.epoch,
        "baseline_step": look.baseline.info.step,
        "alarmed": look.report.alarmed,
        "digest": _digest(look),
        "method": info.method,
        "target": info.target,
        "layers": list(info.layers),
        "grid": list(look.snapshot.maps.shape[1:]),
    }


def _probes(look: Look) -> dict[str, object]:
    snapshot = look.snapshot
    return {
        "digest": _digest(look),
        "names": list(snapshot.names),
        "prompts": list(snapshot.prompts),
        "digests": list(look.digests),
        "rule": str(look.report.rule),
    }


def _digest(look: Look) -> str:
    """Of the probes by their names too, since these are in the tags of their maps."""
    return hashlib.sha256("\0".join([look.snapshot.info.digest, *look.snapshot.names]).encode()).hexdigest()


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
