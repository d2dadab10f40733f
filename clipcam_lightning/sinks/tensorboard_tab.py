"""Write evaluations as data for the CLIP CAM tab of TensorBoard."""

import hashlib
import io
import shlex
from collections.abc import Sequence
from urllib.parse import quote

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from clipcam_lightning.drift.probe_drift import ProbeDrift
from clipcam_lightning.drift.report import DriftReport
from clipcam_lightning.monitoring.evaluation import Evaluation, Sink
from clipcam_lightning.storage.jpeg import encode_jpeg
from clipcam_lightning.tensorboard_tab import events
from clipcam_lightning.visualization.evidence import Ground, draw_ground, list_grounds

IMAGE_SIDE, IMAGE_QUALITY = 192, 70  # 7 kB for a detailed photograph
DEFAULT_ROOT = "clipcam"  # which the page assumes
GROUND_SIDE = 96  # of one of at most six tiles, 2 kB each


class TabSink(Sink):
    """Writes each evaluation as one event of raw maps and metrics, which TensorBoard's other tabs ignore.

    Args:
        writer: ``TensorBoardLogger.experiment``.
        root: first word of every tag; two callbacks in one run need different ones.
    """

    def __init__(self, writer: SummaryWriter, root: str) -> None:
        self.writer = writer
        self.root = root
        # The maps written last, compared by identity to detect a reused baseline.
        self._baseline: Tensor | None = None
        self._newest: Tensor | None = None
        self._grounds: set[str] = set()  # names of the probes whose grounds are written

    def __str__(self) -> str:
        return "TensorBoard"

    def write(self, evaluation: Evaluation) -> None:
        """Write one event at the evaluation's step and flush."""
        snapshot, baseline, is_first = evaluation.snapshot, evaluation.baseline.maps, self._newest is None
        values = []
        if is_first:
            values.append(events.json_value(self._tag(events.PROBES), _describe_probes(evaluation)))
            values += [
                events.image_value(self._tag(events.IMAGE, name), _encode_image(pixels))
                for name, pixels in zip(snapshot.names, evaluation.pixels, strict=True)
            ]
            values += [
                events.image_value(self._tag(events.MASK, name), _encode_mask(mask))
                for name, mask in zip(snapshot.names, evaluation.masks, strict=True)
                if mask is not None
            ]
        stored = self._baseline
        if is_first or not any(baseline is written for written in (self._baseline, self._newest)):
            values.append(events.array_value(self._tag(events.BASELINE), baseline.numpy()))
            stored = baseline
        maps, scale = events.scale_maps(snapshot.maps.numpy())
        values += [
            events.array_value(self._tag(events.MAP, name), map_)
            for name, map_ in zip(snapshot.names, maps, strict=True)
        ]
        notes = sorted({_note(probe) for probe in evaluation.report.probes} - {""})
        numbers = {note: i for i, note in enumerate(notes)} | {"": -1}
        table = np.array([[*_metrics(probe), numbers[_note(probe)]] for probe in evaluation.report.probes], np.float32)
        values.append(events.array_value(self._tag(events.METRICS), np.column_stack([table, scale])))
        report = evaluation.report
        grounds = list_grounds(evaluation.baseline, snapshot, report) if report.alarm else []
        new = {name: each for each in grounds if (name := snapshot.names[each.probe]) not in self._grounds}
        values += [
            events.image_value(self._tag(events.GROUND, name), _encode_ground(evaluation, each))
            for name, each in new.items()
        ]
        values.append(events.scalar_value(self._tag(events.ALARM), float(report.alarm)))
        content = {
            **_describe(evaluation),
            **_describe_states(evaluation.report.probes),
            "stored_baseline": baseline is stored,
            "notes": notes,
            "grounds": [
                {"probe": each.probe, "called": each.called, "called_before": each.called_before} for each in grounds
            ],
        }
        values.append(events.json_value(self._tag(events.EVALUATION), content))  # last: a reader that finds it has all
        # The writer's own add_tensor sets neither plugin nor data class.
        self.writer._get_file_writer().add_summary(Summary(value=values), snapshot.info.step)
        self.writer.flush()
        self._baseline, self._newest = stored, snapshot.maps
        self._grounds |= set(new)

    def describe_address(self, report: DriftReport) -> str:
        """Say how to start TensorBoard, whose port is unknown, and at which address it shows a flagged probe."""
        choices = {"evaluation": str(report.step), "open": next((probe.name for probe in report.flagged), "")}
        if self.root != DEFAULT_ROOT:
            choices = {"run": f"{self.root}@.", **choices}
        fragment = "".join(f"&p.{events.PLUGIN}.{key}={quote(text)}" for key, text in choices.items() if text)
        command = f"tensorboard --logdir {shlex.quote(str(self.writer.get_logdir()))}"
        return f"run {command} and add #{events.PLUGIN}{fragment} to its address"

    def _tag(self, kind: str, probe: str = "") -> str:
        return events.tag(self.root, kind, probe)


def _describe(evaluation: Evaluation) -> dict[str, object]:
    info = evaluation.snapshot.info
    return {
        "epoch": info.epoch,
        "baseline_step": evaluation.baseline.info.step,
        "alarm": evaluation.report.alarm,
        "reason": ": ".join(filter(None, (evaluation.report.finding, evaluation.report.grounds))),
        "digest": _digest(evaluation),
        "method": info.method,
        "target": info.target,
        "layers": list(info.layers),
        "grid": list(evaluation.snapshot.maps.shape[1:]),
    }


def _describe_states(probes: Sequence[ProbeDrift]) -> dict[str, dict[str, str]]:
    """Name the state of each degenerate map, by probe, and what the names say."""
    states = {probe.name: probe.state for probe in probes if probe.state.is_degenerate}
    baseline_states = {probe.name: probe.baseline_state for probe in probes if not probe.has_valid_baseline}
    words = {state.value: state.words for state in (*states.values(), *baseline_states.values())}
    return {
        "states": {name: state.value for name, state in states.items()},
        "baseline_states": {name: state.value for name, state in baseline_states.items()},
        "state_words": words,
    }


def _describe_probes(evaluation: Evaluation) -> dict[str, object]:
    snapshot = evaluation.snapshot
    return {
        "digest": _digest(evaluation),
        "names": list(snapshot.names),
        "prompts": list(snapshot.prompts),
        "digests": list(evaluation.digests),
        "rule": str(evaluation.report.rule),
        "visible": [round(share, 4) for share in evaluation.visible],
    }


def _digest(evaluation: Evaluation) -> str:
    """Hash the probe set with the names, because the tags of the maps contain them."""
    return hashlib.sha256("\0".join([evaluation.snapshot.info.digest, *evaluation.snapshot.names]).encode()).hexdigest()


def _metrics(probe: ProbeDrift) -> list[float]:
    """Return the values of all ``COLUMNS`` but the last two; NaN where the report has a stand-in for the unknown."""
    values = {
        **vars(probe),
        "flagged": float(probe.flagged),
        "drift": probe.drift if probe.has_valid_baseline else np.nan,
        "top_iou": probe.top_iou if probe.has_valid_baseline else np.nan,
        "center_shift": np.nan if probe.degenerate else probe.center_shift,
    }
    return [values[name] for name in events.COLUMNS[:-2]]


def _note(probe: ProbeDrift) -> str:
    return probe.reason or ("" if probe.has_valid_baseline else f"the map of its baseline is {probe.baseline_state}")


def _encode_image(pixels: UInt8[Tensor, "3 y x"]) -> bytes:
    image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    image.thumbnail((IMAGE_SIDE, IMAGE_SIDE), Image.Resampling.BICUBIC)
    return encode_jpeg(image, IMAGE_QUALITY)


def _encode_mask(mask: Bool[Tensor, "y x"]) -> bytes:
    image = Image.fromarray(mask.numpy().astype(np.uint8) * 255)
    image.thumbnail((IMAGE_SIDE, IMAGE_SIDE), Image.Resampling.BOX)
    file = io.BytesIO()
    image.point(lambda value: 255 if value > 127 else 0).convert("1").save(file, "PNG")
    return file.getvalue()


def _encode_ground(evaluation: Evaluation, ground: Ground) -> bytes:
    """Draw the tiles of a ground side by side."""
    tiles = draw_ground(evaluation.pixels.__getitem__, evaluation.baseline, ground)
    for tile in tiles:
        tile.thumbnail((GROUND_SIDE, GROUND_SIDE), Image.Resampling.BICUBIC)
    width, height = tiles[0].size
    strip = Image.new("RGB", (width * len(tiles), height))
    for i, tile in enumerate(tiles):
        strip.paste(tile, (i * width, 0))
    return encode_jpeg(strip, IMAGE_QUALITY)
