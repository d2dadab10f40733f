"""A run of maps that anyone can tell from each other: one cell is lit, and it is known where it goes."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from clipcam_lightning.monitoring.evaluation import Evaluation
from tests.support.synthetic_evaluations import evaluations_of, snapshot_of

GRID, SIZE = (3, 5), (96, 160)  # rows and columns of a map, height and width of a picture: neither is square
STEPS = (0, 10, 20, 30)
TOP_LEFT, TOP_RIGHT, BOTTOM_LEFT, BOTTOM_RIGHT = (0, 0), (0, -1), (-1, 0), (-1, -1)
CORNERS = (TOP_LEFT, TOP_RIGHT, BOTTOM_LEFT, BOTTOM_RIGHT)
NOWHERE = None
PROBES = {  # where each probe's map is lit at each step, and how brightly
    "blind": [(NOWHERE, 0.0), (TOP_LEFT, 1.0), (BOTTOM_RIGHT, 1.0), (BOTTOM_RIGHT, 1.0)],
    "still": [(BOTTOM_LEFT, 2.0)] * 4,
    "walks": [(TOP_LEFT, 1.0), (TOP_RIGHT, 1.0), (BOTTOM_RIGHT, 1.0), (BOTTOM_RIGHT, 1.0)],
    "fades": [(TOP_RIGHT, 4.0), (TOP_RIGHT, 2.0), (TOP_RIGHT, 1.0), (TOP_RIGHT, 0.0625)],
    "vanishes": [(TOP_LEFT, 1.0), (TOP_LEFT, 1.0), (TOP_LEFT, 1.0), (NOWHERE, 0.0)],
    "slow": [(TOP_LEFT, 1.0), (TOP_LEFT, 1.0), (TOP_LEFT, 1.0), (TOP_RIGHT, 1.0)],
}
NAMES = tuple(PROBES)
PROMPTS = tuple(f"a photo of what {name}" for name in NAMES)
COLORS = ((200, 40, 40), (40, 200, 40), (40, 40, 200), (128, 128, 128), (220, 220, 60))
STEADY = 0.125  # of every map that is lit anywhere; more where it is lit


def lit(corner: tuple[int, int] | None, brightness: float) -> Float[Tensor, "3 5"]:
    """A map with one corner lit; all zero if nothing is."""
    map_ = torch.zeros(GRID)
    if corner is not None:
        map_ += STEADY * brightness
        map_[corner] = brightness
    return map_


def known_maps() -> dict[int, Float[Tensor, "n 3 5"]]:
    """By step."""
    return {step: torch.stack([lit(*places[i]) for places in PROBES.values()]) for i, step in enumerate(STEPS)}


def pictures() -> UInt8[Tensor, "n 3 96 160"]:
    """Each of one colour, which a JPEG keeps; but that of "slow" is redder to the right and greener to the bottom."""
    height, width = SIZE
    flat = torch.tensor(COLORS, dtype=torch.uint8)[:, :, None, None].expand(-1, -1, *SIZE)
    red, green = torch.linspace(0, 250, width).expand(SIZE), torch.linspace(0, 250, height)[:, None].expand(SIZE)
    ramp = torch.stack([red, green, torch.full(SIZE, 60.0)]).round().to(torch.uint8)
    return torch.cat([flat, ramp[None]])


def known_evaluations(baseline: tuple[int, int] | None = None) -> list[Evaluation]:
    """The run; with a baseline of its own where of each map this corner is lit."""
    digests = [f"digest of {name}" for name in NAMES]
    before = torch.stack([lit(baseline, 1.0)] * len(NAMES))
    filed = snapshot_of(before, PROMPTS, NAMES, digests, step=5) if baseline else None
    return evaluations_of(known_maps(), PROMPTS, NAMES, pictures(), filed, digests)
