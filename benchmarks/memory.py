"""Whether memory grows with the number of looks."""

import ctypes
import gc
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.loggers import TensorBoardLogger
from photographs import probe_set
from rich.progress import track

from clipcam_lightning import find_clip
from clipcam_lightning.drift import DriftRule
from clipcam_lightning.monitor import Monitor
from clipcam_lightning.shapes_world.models import WordTokenizer, build_clip
from clipcam_lightning.sinks import sinks_of

SETTLED = 20  # looks until every cache and every buffer has its size


def memory(looks: int) -> list[float]:
    """Resident megabytes after every 20th look at 8 probes with a small model."""
    clip = find_clip(build_clip(), tokenizer=WordTokenizer())
    settings: dict[str, Any] = {"method": "auto", "layers": None, "target": "similarity", "rule": DriftRule()}
    monitor, found = Monitor(probe_set(8, 64), **settings), []
    with tempfile.TemporaryDirectory() as folder:
        logger = TensorBoardLogger(folder)
        monitor.sinks = sinks_of([logger], Path(folder), "clipcam", num_pictures=32)
        for step in track(range(1, looks + 1), "memory", transient=True):
            with torch.no_grad():  # so that maps differ from look to look
                clip.module.visual.proj.add_(1e-3 * torch.randn_like(clip.module.visual.proj))
            problems = monitor.look(clip, step=step, epoch=step).problems
            assert not problems, problems
            if step % SETTLED == 0:
                monitor.sinks[-1]._in_flight.result()  # what is being drawn is no growth
                found.append(resident_megabytes())
        monitor.release()
        logger.finalize("success")
    return found


def resident_megabytes() -> float:
    """Of this process, without what Python and malloc only keep for later; Linux with glibc."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
