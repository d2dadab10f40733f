"""The evaluations of a run so far, few enough to keep in memory and in a checkpoint."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from clipcam_lightning.cam.map_state import MapState
from clipcam_lightning.cam.representation import short_repr
from clipcam_lightning.drift.report import DriftReport
from clipcam_lightning.drift.snapshot import Snapshot

MAX_ENTRIES = 24  # twice the columns of a contact sheet, so that thinning always leaves enough for a full one


@dataclass(frozen=True, eq=False, repr=False)
class HistoryEntry:
    """One evaluation as the history keeps it.

    Attributes:
        step: optimizer steps taken.
        maps: each map divided by its own maximum (:func:`relative_saliency`), 0 to 1, float16.
        drift: one per probe, 0 to 2.
        flagged: one per probe, whether the rule flags it.
        states: one per probe, of its raw map.
        number: of the evaluation in its run, counted from 0.
        alarm: whether the evaluation was an alarm.

    Example:
        >>> from clipcam_lightning import evaluate
        >>> from clipcam_lightning.shapes_world import WordTokenizer, draw_scenes, trained_clip
        >>> scenes = draw_scenes(2)
        >>> probes = list(zip(scenes.images, scenes.captions))
        >>> evaluation = evaluate(trained_clip("vit"), probes, tokenizer=WordTokenizer())
        >>> len(evaluation.history), evaluation.history[0].drift
        (1, (0.0, 0.0))
    """

    step: int
    maps: Float[Tensor, "n h w"]
    drift: tuple[float, ...]
    flagged: tuple[bool, ...]
    states: tuple[MapState, ...]
    number: int = 0
    alarm: bool = False

    __repr__ = short_repr

    @classmethod
    def of(cls, snapshot: Snapshot, report: DriftReport, number: int) -> "HistoryEntry":
        """Reduce an evaluation to what the history keeps of it."""
        return cls(
            step=snapshot.info.step,
            maps=relative_saliency(snapshot.maps).half(),
            drift=tuple(probe.drift for probe in report.probes),
            flagged=tuple(probe.flagged for probe in report.probes),
            states=tuple(probe.state for probe in report.probes),
            number=number,
            alarm=report.alarm,
        )

    def to_state(self) -> dict[str, Any]:
        """Convert the entry to a tensor and primitives, for a checkpoint."""
        return {**asdict(self), "states": [state.value for state in self.states]}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "HistoryEntry":
        """Invert :meth:`to_state`.

        Raises:
            KeyError, TypeError, ValueError: it is not the state of an entry.
        """
        return cls(**{**state, "states": tuple(map(MapState, state["states"]))})


def thinned(entries: Sequence[HistoryEntry]) -> list[HistoryEntry]:
    """Keep at most ``MAX_ENTRIES`` entries, the first, every n-th after it and the last, and that of the first alarm.

    ``n`` is the smallest power of two that suffices. It depends only on the number of the last evaluation, so a
    history that is thinned after each evaluation stays evenly spaced, however long it grows.
    """
    last, every = entries[-1].number, 1
    while last > every * (MAX_ENTRIES - 1):
        every *= 2
    kept = next((entry for entry in entries if entry.alarm), None), entries[-1]
    return [entry for entry in entries if entry.number % every == 0 or any(entry is each for each in kept)]


def relative_saliency(maps: Float[Tensor, "n h w"]) -> Float[Tensor, "n h w"]:
    """Divide each map by its own maximum: 0 stays 0, the largest cell is 1, what is negative or not finite is 0."""
    maps = maps.nan_to_num(0.0, 0.0, 0.0).clamp_min(0)
    return maps / maps.amax((1, 2), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
