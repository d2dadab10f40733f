"""Where the time of a look goes, by wrapping the functions that do the work."""

import threading
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from time import perf_counter
from typing import Any
from unittest.mock import patch

import torch
from PIL import Image
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.writer import FileWriter

from clipcam_lightning import ClipCamCallback
from clipcam_lightning.monitoring import monitor
from clipcam_lightning.probes.prepared import PreparedProbes
from clipcam_lightning.sinks import files, pictures, tensorboard
from clipcam_lightning.training import ranks

PARTS: dict[str, tuple[tuple[Any, str], ...]] = {
    "explain": ((PreparedProbes, "embed_texts"), (ranks, "explain_in_memory")),
    "compare": ((monitor, "take_snapshot"), (monitor, "compare")),
    "render": ((pictures, "probe_panel"), (pictures, "contact_sheet")),
    "encode": ((Image.Image, "save"),),
    "write": (
        (files.FileSink, "write"),
        (tensorboard.TensorBoardSink, "write"),
        (pictures, "write_atomically"),
        (FileWriter, "add_summary"),
        (SummaryWriter, "flush"),
    ),
}
WAITS, BACKGROUND = "waits", "background"


class Stopwatch:
    """While it is entered, notes the seconds of each part of each look.

    Of nested parts the outermost counts. What the training waits for is the callback's whole look; what of it a thread
    of its own does is *background*.

    Args:
        measures_noise: whether the first look measures noise, or takes it for unknown.

    Attributes:
        looks: seconds by part, one dictionary a look.
    """

    def __init__(self, measures_noise: bool = True) -> None:
        self.measures_noise = measures_noise
        self.evaluations: list[dict[str, float]] = []
        self._drawn = 0
        self._inside = threading.local()
        self._patches = ExitStack()

    def __enter__(self) -> "Stopwatch":
        for part, functions in PARTS.items():
            for owner, name in functions:
                self._wrap(owner, name, lambda seconds, part=part: self._note(part, seconds))
        self._wrap(pictures.ImageSink, "write", self._note_drawn, nests=True)
        self._wrap(ClipCamCallback, "_evaluation", lambda seconds: self._note(WAITS, seconds), nests=True)
        evaluation = ClipCamCallback._evaluation

        def opened(*arguments: Any) -> None:
            self.evaluations.append(defaultdict(float))
            evaluation(*arguments)

        self._patches.enter_context(patch.object(ClipCamCallback, "_evaluation", opened))
        if not self.measures_noise:
            self._patches.enter_context(patch.object(monitor, "noise_floor", _unknown))
        return self

    def __exit__(self, *_: object) -> None:
        self._patches.close()

    def _wrap(self, owner: Any, name: str, note: Callable[[float], None], nests: bool = False) -> None:
        function = getattr(owner, name)

        def timed(*arguments: Any, **options: Any) -> Any:
            if getattr(self._inside, "part", False):
                return function(*arguments, **options)
            self._inside.part = not nests
            start = perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                self._inside.part = False
                note(perf_counter() - start)

        self._patches.enter_context(patch.object(owner, name, timed))

    def _note(self, part: str, seconds: float) -> None:
        of_worker = threading.current_thread().name.startswith("clipcam")
        if self.evaluations:
            self.evaluations[self._drawn if of_worker else -1][part] += seconds

    def _note_drawn(self, seconds: float) -> None:
        if threading.current_thread().name.startswith("clipcam"):
            self._note(BACKGROUND, seconds)
        self._drawn += 1


def _unknown(_clip: object, _prepared: object, maps: Tensor, *_: object, **_settings: object) -> Tensor:
    return torch.full((len(maps),), torch.nan)
