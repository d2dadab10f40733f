"""What the costs are meant to be."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.growth import UNIT, Growth
from benchmarks.measure import Case, Cost

IMAGES, MODELS = 16, ("ViT-B-32", "ViT-B-16")
PEER = "pytorch-grad-cam"
FLAT, NO_GROWTH = 0.1, 0.01  # relative tolerances of time and memory


@dataclass(frozen=True)
class Goal:
    """A bound on the time of a contender.

    Attributes:
        bound: at most so many plain forwards; or, of a peer, at least so many times the contender's own.
        peer: whose time is divided by the contender's.
    """

    contender: str
    prompts: int
    bound: float
    peer: str | None = None

    def __str__(self) -> str:
        if self.peer:
            return f"{self.peer} / {self.contender}, P = {self.prompts}: at least {self.bound:g}"
        return f"{self.contender}, P = {self.prompts}: at most {self.bound:g}"

    def figure(self, costs: Mapping[str, Cost]) -> float:
        """What is bounded."""
        own = costs[self.contender].ratio
        return costs[self.peer].ratio / own if self.peer else own

    def met(self, costs: Mapping[str, Cost]) -> bool:
        """Whether the bound is kept."""
        figure = self.figure(costs)
        return figure >= self.bound if self.peer else figure <= self.bound


GOALS = (
    Goal("gradcam", 1, 1.15),
    Goal("gradcam", 8, 1.8),
    Goal("grad_eclip", 1, 1.05),
    Goal("grad_eclip", 8, 1.15),
    Goal("gae", 8, 1.6),
    Goal("decomposition", 32, 1.1),
    Goal("maskclip", 32, 1.1),
    Goal("gradcam", 1, 2.8, peer=PEER),
    Goal("gradcam", 8, 12, peer=PEER),
)


@dataclass(frozen=True)
class Verdict:
    """What became of one goal."""

    where: str
    goal: str
    measured: str
    met: bool


def goals_of(case: Case) -> list[Goal]:
    """The goals that are set for ``case``."""
    if case.model not in MODELS or case.images != IMAGES:
        return []
    return [goal for goal in GOALS if goal.prompts == case.prompts]


def verdicts(costs: Mapping[Case, Mapping[str, Cost]]) -> list[Verdict]:
    """Of the goals whose cases were measured."""
    return [
        Verdict(f"{case.model}, {case.images} images", str(goal), f"{goal.figure(found):.2f}", goal.met(found))
        for case, found in costs.items()
        for goal in goals_of(case)
    ]


def growth_verdicts(rows: Sequence[Growth]) -> list[Verdict]:
    """A call's time per image, and its memory from the second batch on, are those of any other number of images."""
    where = f"{rows[0].images} to {rows[-1].images} images"
    times = [row.time for row in rows]
    memory = [row.megabytes for row in rows if row.batches > 1]
    growth = max(memory) / memory[0]
    return [
        Verdict(
            where,
            f"time per image: within {FLAT:.0%} of that at {UNIT}",
            f"{min(times):.2f} to {max(times):.2f}",
            max(abs(time - 1) for time in times) <= FLAT,
        ),
        Verdict(where, "peak memory: that of the second batch, if not less", f"{growth:.3f}", growth <= 1 + NO_GROWTH),
    ]
