"""Goals for time and memory, and whether they are met."""

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
        contender: its name.
        prompts: per image.
        bound: the time is at most so many plain forwards; with a peer, that of the peer is at least so many times the
            contender's.
        peer: name of another contender.
    """

    contender: str
    prompts: int
    bound: float
    peer: str | None = None

    def __str__(self) -> str:
        if self.peer:
            return f"{self.peer} / {self.contender}, P = {self.prompts}: at least {self.bound:g}"
        return f"{self.contender}, P = {self.prompts}: at most {self.bound:g}"

    def measure(self, costs: Mapping[str, Cost]) -> float:
        """Get the value that is bounded."""
        own = costs[self.contender].ratio
        return costs[self.peer].ratio / own if self.peer else own

    def met(self, costs: Mapping[str, Cost]) -> bool:
        """Whether the bound holds."""
        measured = self.measure(costs)
        return measured >= self.bound if self.peer else measured <= self.bound


GOALS = (
    Goal("gradcam", 1, 1.15),
    Goal("gradcam", 8, 1.8),
    Goal("grad_eclip", 1, 1.05),
    Goal("grad_eclip", 8, 1.15),
    Goal("gae", 8, 1.6),
    Goal("decomposition", 32, 1.1),
    Goal("maskclip", 32, 1.1),
    Goal("clip_surgery", 32, 1.3),
    Goal("attnlrp", 1, 3),
    Goal("gradcam", 1, 2.8, peer=PEER),
    Goal("gradcam", 8, 12, peer=PEER),
)


@dataclass(frozen=True)
class Verdict:
    """Whether one goal is met.

    Attributes:
        where: model and input.
        goal: in words.
        measured: in words.
        met: whether the goal is met.
    """

    where: str
    goal: str
    measured: str
    met: bool


def goals_of(case: Case) -> list[Goal]:
    """List the goals for a case."""
    if case.model not in MODELS or case.images != IMAGES:
        return []
    return [goal for goal in GOALS if goal.prompts == case.prompts]


def verdicts(costs: Mapping[Case, Mapping[str, Cost]]) -> list[Verdict]:
    """Judge the goals of all cases that were measured."""
    return [
        Verdict(f"{case.model}, {case.images} images", str(goal), f"{goal.measure(field):.2f}", goal.met(field))
        for case, field in costs.items()
        for goal in goals_of(case)
    ]


def growth_verdicts(rows: Sequence[Growth]) -> list[Verdict]:
    """Judge whether time per image, and memory from the second batch on, are independent of the number of images."""
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
