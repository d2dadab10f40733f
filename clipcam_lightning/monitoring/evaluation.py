"""What a look is, what it came to, and where it may go."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from jaxtyping import Bool, UInt8
from torch import Tensor

from clipcam_lightning.drift.compare import DriftReport
from clipcam_lightning.drift.snapshot import Snapshot
from clipcam_lightning.monitoring.history import HistoryEntry


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of the whole probe set, as the sinks get it.

    Attributes:
        pixels: what the model saw of each probe.
        masks: at the size of ``pixels``; ``None`` where a probe has none.
        snapshot: maps and figures now.
        baseline: what they are compared with; the same object at the first look.
        report: the comparison.
        history: the looks so far, this one last; of many the first and evenly spaced later ones.
        digests: of each probe, by which another run's looks at it are known.
        metrics: means over the probes by name (``drift``, ``similarity``, ...), all finite.
    """

    pixels: UInt8[Tensor, "n 3 y x"]
    masks: Sequence[Bool[Tensor, "y x"] | None]
    snapshot: Snapshot
    baseline: Snapshot
    report: DriftReport
    history: Sequence[HistoryEntry]
    digests: Sequence[str]
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Outcome:
    """What a look came to, in figures and words: small enough to be sent to every rank.

    Attributes:
        metrics: as in :class:`Look`.
        alarm: the report in words if the look is an alarm, else empty.
        note: which probes cannot be judged because their baseline says nothing, why there is a new baseline, or why
            noise is unknown.
        problems: sinks that failed.
    """

    metrics: Mapping[str, float] = field(default_factory=dict)
    alarm: str = ""
    note: str = ""
    problems: tuple[str, ...] = ()


@runtime_checkable
class Sink(Protocol):
    """Somewhere a look goes."""

    def write(self, evaluation: Evaluation) -> None:
        """Take one look."""
        ...

    def close(self) -> None:
        """Wait until every look is written; raises what a late one failed with."""
        return
