"""A look as data for the CLIP CAM tab of TensorBoard."""

import hashlib

import numpy as np
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from clipcam_lightning.drift.compare import ProbeDrift
from clipcam_lightning.monitoring.evaluation import Evaluation, Sink
from clipcam_lightning.storage.jpeg import encode_jpeg
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

    def write(self, evaluation: Evaluation) -> None:
        """Write one event at the look's step and flush."""
        snapshot, baseline, first = evaluation.snapshot, evaluation.baseline.maps, self._newest is None
        values = []
        if first:
            values.append(events.json_value(self._tag(events.PROBES), _probes(evaluation)))
            values += [
                events.image_value(self._tag(events.PICTURE, name), _picture(pixels))
                for name, pixels in zip(snapshot.names, evaluation.pixels, strict=True)
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
        notes = sorted({_note(probe) for probe in evaluation.report.probes} - {""})
        table = np.array([[*_figures(probe), _index(notes, probe)] for probe in evaluation.report.probes], np.float32)
        values.append(events.array_value(self._tag(events.FIGURES_TAG), np.column_stack([table, scale])))
        told = {**_described(evaluation), "stored_baseline": baseline is stored, "notes": notes}
        values.append(events.json_value(self._tag(events.EVALUATION), told))  # last: who finds it finds the rest
        # The writer's own add_tensor names neither plugin nor data class.
        self.writer._get_file_writer().add_summary(Summary(value=values), snapshot.info.step)
        self.writer.flush()
        self._baseline, self._newest = stored, snapshot.maps

    def _tag(self, kind: str, probe: str = "") -> str:
        return events.tag(self.root, kind, probe)


def _described(evaluation: Evaluation) -> dict[str, object]:
    info = evaluation.snapshot.info
    return {
        "epoch": info.epoch,
        "baseline_step": evaluation.baseline.info.step,
        "alarm": evaluation.report.alarm,
        "digest": _digest(evaluation),
        "method": info.method,
        "target": info.target,
        "layers": list(info.layers),
        "grid": list(evaluation.snapshot.maps.shape[1:]),
    }


def _probes(evaluation: Evaluation) -> dict[str, object]:
    snapshot = evaluation.snapshot
    return {
        "digest": _digest(evaluation),
        "names": list(snapshot.names),
        "prompts": list(snapshot.prompts),
        "digests": list(evaluation.digests),
        "rule": str(evaluation.report.rule),
    }


def _digest(evaluation: Evaluation) -> str:
    """Of the probes by their names too, since these are in the tags of their maps."""
    return hashlib.sha256("\0".join([evaluation.snapshot.info.digest, *evaluation.snapshot.names]).encode()).hexdigest()


def _figures(probe: ProbeDrift) -> list[float]:
    """All but the last two of ``FIGURES``."""
    known = {
        **vars(probe),
        "flagged": float(probe.flagged),
        "drift": probe.drift if probe.has_valid_baseline else np.nan,
    }
    return [known[name] for name in events.FIGURES[:-2]]


def _note(probe: ProbeDrift) -> str:
    return probe.reason or (probe.degenerate and f"its map or that of its baseline is {probe.degenerate}")


def _index(notes: list[str], probe: ProbeDrift) -> int:
    return notes.index(_note(probe)) if _note(probe) else -1


def _picture(pixels: Tensor) -> bytes:
    image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    image.thumbnail((PICTURE_SIDE, PICTURE_SIDE), Image.Resampling.BICUBIC)
    return encode_jpeg(image, PICTURE_QUALITY)
