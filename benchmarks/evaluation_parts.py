"""How the time of an evaluation divides among its parts, measured by wrapping the functions that do the work."""

import threading
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from time import perf_counter
from typing import Any
from unittest.mock import patch

from PIL import Image
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.writer import FileWriter

from clipcam_lightning import ClipCamCallback
from clipcam_lightning.monitoring import explainer, monitor, snapshots, texts
from clipcam_lightning.sinks import background, drawing, files, tensorboard

PARTS: dict[str, tuple[tuple[Any, str], ...]] = {
    "embed prompts": ((texts.KeptTexts, "__call__"),),
    "noise floor": ((snapshots, "noise_floor"),),
    "evidence": (
        (snapshots, "find_objects"),
        (snapshots, "add_background"),
        (snapshots, "add_transplants"),
        (monitor, "add_background"),
        (monitor, "add_evidence"),
    ),
    "explain": ((explainer, "explain_within_memory"),),
    "compare": ((monitor, "take_snapshot"), (monitor, "compare")),
    "render": ((drawing, "probe_panel"), (drawing, "contact_sheet")),
    "encode": ((Image.Image, "save"),),
    "write": (
        (files.FileSink, "write"),
        (tensorboard.TensorBoardSink, "write"),
        (files, "write_atomically"),
        (FileWriter, "add_summary"),
        (SummaryWriter, "flush"),
    ),
}
WAITS, BACKGROUND = "waits", "background"


class Stopwatch:
    """Context manager that records the seconds of each part of each evaluation.

    Of nested parts, the outermost counts. The training waits for the evaluation in the callback; what a thread does
    later is the *background*.

    Attributes:
        evaluations: seconds by part, one dictionary per evaluation.
    """

    def __init__(self) -> None:
        self.evaluations: list[dict[str, float]] = []
        self._inside = threading.local()
        self._patches = ExitStack()

    def __enter__(self) -> "Stopwatch":
        for part, functions in PARTS.items():
            for owner, name in functions:
                self._wrap(owner, name, lambda seconds, part=part: self._record(part, seconds))
        self._wrap(background._Write, "run", lambda seconds: self._record(BACKGROUND, seconds), nests=True)
        self._number_writes()
        self._wrap(ClipCamCallback, "_evaluate", lambda seconds: self._record(WAITS, seconds), nests=True)
        evaluate = ClipCamCallback._evaluate

        def evaluate_anew(*arguments: Any) -> None:
            self.evaluations.append(defaultdict(float))
            evaluate(*arguments)

        self._patches.enter_context(patch.object(ClipCamCallback, "_evaluate", evaluate_anew))
        return self

    def __exit__(self, *_: object) -> None:
        self._patches.close()

    def _wrap(self, owner: Any, name: str, record: Callable[[float], None], nests: bool = False) -> None:
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
                record(perf_counter() - start)

        self._patches.enter_context(patch.object(owner, name, timed))

    def _record(self, part: str, seconds: float) -> None:
        if self.evaluations:
            self.evaluations[getattr(self._inside, "number", -1)][part] += seconds

    def _number_writes(self) -> None:
        """Let each background thread, which writes one evaluation, know its number."""
        run = background._Write.run

        def run_numbered(write: Any) -> None:
            self._inside.number = write._evaluation.history[-1].number
            run(write)

        self._patches.enter_context(patch.object(background._Write, "run", run_numbered))
