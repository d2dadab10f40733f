"""Whether memory grows with the number of evaluations, and by how much the event file grows."""

import ctypes
import gc
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import open_clip
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from rich.progress import track
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

from benchmarks.photographs import probe_set
from clipcam_lightning import find_clip
from clipcam_lightning.monitoring.explainer import LocalExplainer
from clipcam_lightning.monitoring.monitor import Monitor
from clipcam_lightning.shapes_world.models import WordTokenizer
from clipcam_lightning.sinks import BackgroundSink, LoggingSettings, make_sinks
from clipcam_lightning.storage.paths import as_path
from clipcam_lightning.storage.run_folder import RunFolder

VISION = CLIPVisionCfg(layers=2, width=64, head_width=32, patch_size=32, image_size=224)
SETTLED = 20  # evaluations until every cache and buffer has its final size
FEW = 10  # evaluations of a short run, in which contact sheets take the largest share of the event file


@dataclass(frozen=True)
class Growth:
    """Size of event file and process after many evaluations.

    Attributes:
        probes: per evaluation.
        evaluations: how many there were.
        kilobytes: per probe and evaluation in the event file, on average over the first ten evaluations.
        resident: megabytes of the process after every 20th evaluation.
    """

    probes: int
    evaluations: int
    kilobytes: float
    resident: tuple[float, ...]

    @property
    def growth(self) -> float:
        """Megabytes from the median of the first quarter of the measurements to that of the last."""
        quarter = max(1, len(self.resident) // 4)
        return median(self.resident[-quarter:]) - median(self.resident[:quarter])


def growth(evaluations: int, probes: int = 8) -> Growth:
    """Evaluate photographs with a small model, whose input and maps have the size of those of ViT-B-32.

    Args:
        evaluations: how many.
        probes: per evaluation.
    """
    model = small_clip()
    explainer = LocalExplainer(find_clip(model, tokenizer=WordTokenizer()))
    monitor, resident = Monitor(probe_set(probes, int(VISION.image_size))), []
    with tempfile.TemporaryDirectory() as folder:
        logger = TensorBoardLogger(folder)
        monitor.sinks = make_sinks([logger], RunFolder(as_path(folder), monitor.run_id), LoggingSettings())
        for step in track(range(1, evaluations + 1), "memory", transient=True):
            with torch.no_grad():  # so that each evaluation has other maps
                model.visual.proj.add_(1e-2 * torch.randn_like(model.visual.proj))
            problems = monitor.evaluate(explainer, step=step, epoch=step).problems
            assert not problems, problems
            if step % SETTLED == 0:
                for sink in monitor.sinks:  # images that are being drawn are not growth
                    if isinstance(sink, BackgroundSink):
                        sink.wait(sink.patience)
                resident.append(round(resident_megabytes(), 2))
        problems = monitor.close()
        assert not problems, problems
        logger.finalize("success")
        (file,) = Path(logger.log_dir).glob("events*")
        events = LegacyEventFileLoader(str(file)).Load()
        kilobytes = sum(event.ByteSize() for event in events if event.step <= FEW) / probes / FEW / 1e3
    return Growth(probes, evaluations, round(kilobytes, 1), tuple(resident))


def small_clip() -> open_clip.CLIP:
    """Build a CLIP whose input and maps have the size of those of ViT-B-32."""
    text = CLIPTextCfg(context_length=12, vocab_size=64, width=64, heads=2, layers=2)
    return open_clip.CLIP(embed_dim=64, vision_cfg=VISION, text_cfg=text)


def resident_megabytes() -> float:
    """Measure the resident memory of this process, without free memory of Python and malloc; Linux with glibc."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
