"""Whether memory grows with the number of looks, and by how much the event file does."""

import ctypes
import gc
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from rich.progress import track
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

from benchmarks.photographs import probe_set
from clipcam_lightning import find_clip
from clipcam_lightning.drift.compare import DriftRule
from clipcam_lightning.monitoring.monitor import Monitor
from clipcam_lightning.shapes_world.models import WordTokenizer
from clipcam_lightning.sinks import make_sinks

VISION = CLIPVisionCfg(layers=2, width=64, head_width=32, patch_size=32, image_size=224)
SETTLED = 20  # looks until every cache and every buffer has its size


@dataclass(frozen=True)
class Growth:
    """What looks leave behind.

    Attributes:
        kilobytes: that the last look added to the event file for each probe.
        resident: megabytes of the process after every 20th look.
    """

    probes: int
    evaluations: int
    kilobytes: float
    resident: tuple[float, ...]


def growth(evaluations: int, probes: int = 8) -> Growth:
    """Look so often at photographs with a small model, whose pictures and maps are of the size of ViT-B-32's."""
    text = CLIPTextCfg(context_length=12, vocab_size=64, width=64, heads=2, layers=2)
    model = open_clip.CLIP(embed_dim=64, vision_cfg=VISION, text_cfg=text)
    clip, resident = find_clip(model, tokenizer=WordTokenizer()), []
    settings: dict[str, Any] = {"method": "auto", "layers": None, "target": "similarity", "rule": DriftRule()}
    monitor = Monitor(probe_set(probes, int(VISION.image_size)), **settings)
    with tempfile.TemporaryDirectory() as folder:
        logger = TensorBoardLogger(folder)
        monitor.sinks = make_sinks([logger], Path(folder), "clipcam", num_images=32)
        for step in track(range(1, evaluations + 1), "memory", transient=True):
            with torch.no_grad():  # so that maps differ from look to look
                model.visual.proj.add_(1e-2 * torch.randn_like(model.visual.proj))
            problems = monitor.evaluate(clip, step=step, epoch=step).problems
            assert not problems, problems
            if step % SETTLED == 0:
                monitor.sinks[-1]._in_flight.result()  # what is being drawn is no growth
                resident.append(round(resident_megabytes(), 2))
        monitor.release()
        logger.finalize("success")
        (file,) = Path(logger.log_dir).glob("events*")
        events = LegacyEventFileLoader(str(file)).Load()
        kilobytes = sum(event.ByteSize() for event in events if event.step == evaluations) / probes / 1e3
    return Growth(probes, evaluations, round(kilobytes, 1), tuple(resident))


def resident_megabytes() -> float:
    """Of this process, without what Python and malloc only keep for later; Linux with glibc."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
